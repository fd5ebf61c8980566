"""Reasons to stop early: SIGTERM, Ctrl-C, a loss that is not finite, a worker process that died."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError, no_more_files
from data_selection.common.files import atomic_write

BAD_BATCH = "nonfinite_batch.json"
ECHO = 3  # seconds: torchrun hands a Ctrl-C on that the terminal has sent to all processes already
T = TypeVar("T")


class Asked(threading.Event):
    """Set when this process is asked to end; by: the signal that asked, at the moment `since` of time.monotonic."""

    by: signal.Signals | None = None
    since = 0.0

    @property
    def told(self) -> str:
        """What asked, in a word."""
        return "Ctrl-C" if self.by == signal.SIGINT else "SIGTERM"


@dataclass(frozen=True)
class Sofar:
    """The steps of an epoch that are done. losses: float32 (steps,). sizes: float64 (steps,), 0 for those left out."""

    losses: torch.Tensor
    sizes: torch.Tensor


class Stopped(Exception):
    """The run was asked to end, on all processes at the same place. sofar: the epoch it is in the middle of, if any."""

    def __init__(self, sofar: Sofar | None = None) -> None:
        super().__init__("asked to stop")
        self.sofar = sofar


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
    """An Asked for SIGTERM and Ctrl-C within the block; one that comes again, ECHO seconds later, acts as ever."""
    asked = Asked()

    def note(number: int, _frame: FrameType | None) -> None:
        if not asked.is_set():
            asked.by, asked.since = signal.Signals(number), time.monotonic()
            asked.set()
        elif time.monotonic() - asked.since > ECHO:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    before = {int(number): signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked_to_stop(asked: Asked, world: World) -> bool:
    """Whether any process of the run has been asked to; the same answer on all of them."""
    if world.size == 1:  # a GPU is not waited for
        return asked.is_set()
    return bool(world.sum_(torch.tensor(float(asked.is_set()), device=world.device)))


def until_asked(items: Iterable[T], asked: Asked, world: World) -> Iterator[T]:
    """The items, until this process is asked to end. Raises Stopped at the end of them where any process was."""
    for item in items:
        yield item
        if asked.is_set():
            break
    if asked_to_stop(asked, world):
        raise Stopped


@contextlib.contextmanager
def torch_errors_named(close: Callable[[], None]) -> Iterator[None]:
    """Turn errors of torch that users can mend, at any moment, into UserErrors.

    They are what a DataLoader raises where one of its workers was killed, or where no more files may be opened, and
    batch norm's of a single image. close:
    called in the end, however the block ends: ends the workers. Until then a worker's death may raise again.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a process has a single image in a step, of which batch norm estimates nothing: --batch-norm fixed, or "
            "another --batch-size or --global-batch-size"
        ) from None
    except RuntimeError as error:
        close()
        if str(error).startswith("Too many open files"):
            raise UserError(no_more_files()) from None
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"a process that loads images has died ({str(error).splitlines()[0]}), often for want of memory: try fewer "
            "--num_workers or --cache none, and continue with --auto-resume"
        ) from None
    finally:
        close()


class NotFinite(UserError):
    """The loss of a step (counted from 0) is not a finite number; None: its batch is not to blame."""

    def __init__(self, text: str, step: int | None) -> None:
        super().__init__(text)
        self.step = step


def with_batch(
    error: NotFinite, epoch: int, ids: Sequence[int], size: int, folder: Path | None, trial: str = ""
) -> UserError:
    """The UserError to raise for a NotFinite: where a step is to blame, naming the file, written here, of its ids.

    ids: pool indices of the epoch in order, `size` to a step. folder: None where nothing is written (on ranks above 0,
    or without --output_dir). trial: the name of a training that is none of the run's own, as those of cross-validation.
    """
    if error.step is None:
        return error
    batch = ids[error.step * size :][:size]
    hint = f"that was in {trial} of cross-validation" if trial else "--output_dir DIR would save the ids of its batch"
    if folder:
        path = Path(folder) / BAD_BATCH
        with atomic_write(path, "w") as handle:
            json.dump({"epoch": epoch, "step": error.step + 1, "ids": batch}, handle)
        hint = f"the ids of its batch are in {path}"
    return UserError(f"{error}; {hint}; --skip-nonfinite leaves such steps out and goes on")
