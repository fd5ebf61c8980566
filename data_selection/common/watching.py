"""The processes of a run look at each other: one that is gone, stands still or has failed ends all, and is named."""

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from data_selection.common.errors import UserError

# Seconds between signs of life of a rank, and without one until it counts as gone. The beat is a thread, which only
# runs where nothing holds Python's lock. Sorts and products of NumPy, SciPy and PyTorch let it go,
# and so do files; sorted(), set() and json of whole lists do not, nor does loading a library: seconds in the trainer
# (a list of 4 million numbers is sorted in 2), longer where pools are of any size.
BEAT, SILENCE, PATIENT = 3, 30, 300
PATIENCE = datetime.timedelta(seconds=10)  # with the launcher's store, which may have ended with its process
# What gloo says, as a plain RuntimeError, where it is the other side that is to blame; nccl raises dist.DistError
BROKEN = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe", "Timed out", "pair closure")


class Gone(UserError):
    """Another process has ended, which has an error of its own."""


def open_store() -> dist.TCPStore:
    """The launcher's store, by a connection of its own: a process group's is taken while an operation waits."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=PATIENCE)


def key(what: str) -> str:
    """The name of an entry in the store, which torchrun keeps over its restarts."""
    return f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{what}"


@contextlib.contextmanager
def broken_by_others() -> Iterator[None]:
    """Turn what gloo or nccl raises where another process is gone into a UserError that has that one's error.

    Whatever else goes wrong is raised as it is: memory that is short, a type that gloo does not know.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in BROKEN):
            raise
        first = first_error()
        raise Gone(
            f"another process of this run has ended ({first})"
            if first
            else f"another process of this run has ended ({text}): see its error"
        ) from None


@contextlib.contextmanager
def own_error_told(rank: int) -> Iterator[None]:
    """Leave the first error of all processes where the others find it; it is raised all the same."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, Gone):
            with contextlib.suppress(RuntimeError):
                store = open_store()
                text = (str(error).splitlines() or [""])[0]
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                store.compare_set(key("error"), "", f"rank {rank}: {kind}{text}")
        raise


def first_error() -> str:
    """What own_error_told has left, "" where there is nothing or the store has ended."""
    with contextlib.suppress(RuntimeError):
        store = open_store()
        if store.check([key("error")]):
            return str(store.get(key("error")).decode())
    return ""


@contextlib.contextmanager
def watched(rank: int, size: int, silence: float) -> Iterator[None]:
    """Within the block, end this process (status 1, one line on stderr) where another one is gone or stands still.

    For what the process group does not notice: nccl waits for a rank that was killed, and gloo for one that hangs.
    Every rank counts up a number in the launcher's store every few seconds, in a thread, however long its work takes;
    each looks at its neighbour's, which may stand still for `silence` seconds, and for an error that one has left. The
    block ends together on all ranks, unless it fails.
    """
    if size == 1:
        yield
        return
    over, looks = threading.Event(), Looks()
    watcher = threading.Thread(target=watch, args=(rank, size, silence, over, looks), daemon=True)
    watcher.start()
    threading.Thread(target=guard, args=(silence, over, looks), daemon=True).start()
    try:
        with own_error_told(rank):
            yield
            with broken_by_others():
                dist.barrier()  # rank 0 may hold the store: nobody leaves before all have stopped looking into it
    finally:
        over.set()
        watcher.join(BEAT)


class Looks:
    """When the watcher has last had an answer of the store."""

    def __init__(self) -> None:
        self.last = time.monotonic()


def guard(silence: float, over: threading.Event, looks: Looks) -> None:
    """End this process where the watcher waits: rank 0 holds the store, if the launcher does not, and stands still."""
    while not over.wait(BEAT):
        if time.monotonic() - looks.last > silence + BEAT:
            end_here("the one that holds the store")


def end_here(gone: int | str) -> None:
    """End this process, whose main thread may wait in nccl or gloo for ever. gone: what is to blame."""
    sys.stderr.write(f"error: a process of this run is gone or stands still ({gone}): this one ends too\n")
    os._exit(1)


def watch(rank: int, size: int, silence: float, over: threading.Event, looks: Looks) -> None:
    """Beat and look until `over` is set."""
    other = (rank + 1) % size
    seen: int | None = None
    gone: int | str = 0
    since = time.monotonic()
    try:
        store = open_store()
        while not over.wait(BEAT):
            store.add(key(str(rank)), 1)
            count = store.add(key(str(other)), 0)
            if count != seen:
                seen, since = count, time.monotonic()
            if time.monotonic() - since > silence:
                store.add(key("gone"), other + 1)  # so that all know at once
            gone = store.add(key("gone"), 0)
            looks.last = time.monotonic()
            if not gone and store.check([key("error")]) and not over.wait(BEAT):  # time to leave by itself
                gone = str(store.get(key("error")).decode())
            if gone:
                break
    except RuntimeError as error:
        gone = str(error).splitlines()[0]
    if not over.is_set():
        end_here(gone)
