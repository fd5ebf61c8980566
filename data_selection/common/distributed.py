"""Start-up under a launcher (torchrun, torch.distributed.launch) or without one; the device is chosen here."""

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_selection.common.errors import UserError
from data_selection.common.watching import PATIENT, broken_by_others, watched

T = TypeVar("T")

SLOW = 30.0  # seconds that processes of a launcher may take to meet before it is told
TIMEOUT = datetime.timedelta(minutes=30)  # ranks wait for each other while rank 0 downloads weights or data


@dataclass(frozen=True)
class World:
    """Who this process is: rank 0..size-1, its device, and whether it may write files and print."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line on rank 0; the others say nothing."""
        if self.is_main:
            print(text, flush=True)  # noqa: T201 - what every command says goes through here

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over the ranks, in place; returns it."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def begin_sum(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Begin to add a tensor up over the ranks, in place; what is returned is to be called before it is read.

        The tensor is on this World's device. On a GPU that call makes the stream wait, not the program.
        """
        if self.size == 1:
            return lambda: None
        with broken_by_others():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with broken_by_others():
                work.wait()

        return wait

    def least(self, value: int) -> int:
        """The lowest of the ranks' values."""
        return int(self._reduce(torch.tensor(value, device=self.device), dist.ReduceOp.MIN)) if self.size > 1 else value

    def _reduce(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.size > 1:
            by_nccl = dist.get_backend() == "nccl"  # the caller's group: it takes tensors on a GPU alone
            moved = tensor.cuda() if by_nccl and tensor.device.type == "cpu" else tensor
            with broken_by_others():
                dist.all_reduce(moved, operation)
            if moved is not tensor:
                tensor.copy_(moved)
        return tensor

    def gather(self, value: str) -> list[str]:
        """The ranks' values, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            with broken_by_others():
                dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            with broken_by_others():
                dist.barrier()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's (picklable) value, on every rank."""
        box = [value]
        if self.size > 1:
            with broken_by_others():
                dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def pick_device(name: str, local_rank: int = 0, size: int = 1) -> torch.device:
    """torch.device of `auto`, `cpu`, `cuda` or `cuda:N`; each of the `size` processes of a launcher takes its own GPU.

    Raises UserError for an unknown name, a CUDA device that is not there, or one GPU named for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if size > 1 and device.index is not None:
            raise UserError(
                f"device {name!r} would put all {size} processes on one GPU: use --device cuda, where each takes its "
                "own; CUDA_VISIBLE_DEVICES says which there are"
            )
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            several = f" for process {index + 1} of this machine" if size > 1 else ""
            raise UserError(
                f"device {name!r} (GPU {index}) asked for{several}, {count} CUDA GPUs are visible: "
                f"{'start no more processes than GPUs, or ' if several else ''}try --device cpu"
            )
        return torch.device("cuda", index)
    return device


def taken(device: torch.device) -> torch.device:
    """The device, which events, streams and `cuda` without a number mean from now on where it is a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def one_process(command: str, hint: str = "") -> None:
    """Raise UserError where a launcher has started several processes of a command that works in one.

    The first one raises, the others leave quietly.
    """
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        if os.environ["RANK"] != "0":
            raise SystemExit(2)
        count = os.environ["WORLD_SIZE"]
        raise UserError(f"{command} works in one process, and a launcher started {count}: start it alone{hint}")


def current_world(device: torch.device) -> World:
    """The place of this process among the ranks: those of torch.distributed where it runs, else alone."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(0, 1, device)


@contextlib.contextmanager
def start(device: str = "auto", silence: float = PATIENT) -> Iterator[World]:
    """The World of this process; the process group (nccl on CUDA, gloo on CPU) ends with the block, together.

    Within it a process that is gone, has failed or gives no sign of life for `silence` seconds ends the others (see
    watching.py).

    A launcher's environment (RANK, WORLD_SIZE, LOCAL_RANK) makes a group, also of one process; without it there is
    none. A SLURM variable alone changes nothing (the released trainer took any srun shell for a launcher).
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(0, 1, taken(pick_device(device)))
        return
    try:
        rank, size, local_rank = (int(os.environ.get(name, 0)) for name in names)
    except ValueError:
        values = {name: os.environ.get(name) for name in names}
        raise UserError(f"launcher variables {values} are not whole numbers: start with torchrun") from None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set but {' and '.join(missing)} are not: start with torchrun, or unset them"
        )
    own = taken(pick_device(device, local_rank, size))
    backend, card = ("nccl", own) if own.type == "cuda" else ("gloo", None)
    # nccl guesses the card by the rank where it is not told, and connects at the first operation
    with told_when_waiting(size):
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT, device_id=card)
    try:
        with watched(rank, size, silence):
            yield World(rank, size, own)
    finally:
        if backend == "gloo":
            # A gloo thread may still be letting go of the last operation's tensors. It needs the interpreter lock for
            # that, which the group's destructor holds while it joins the thread: a rare deadlock (seen in PyTorch 2.5).
            # Sleeping gives the lock away.
            time.sleep(0.1)
        dist.destroy_process_group()


@contextlib.contextmanager
def told_when_waiting(size: int) -> Iterator[None]:
    """Say on stderr what is waited for, where the processes of a launcher are slow to meet, or are no more."""

    def tell() -> None:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        sys.stderr.write(
            f"waiting for all {size} processes at {place}, as RANK and WORLD_SIZE say: unset them for one process "
            "alone\n"
        )

    timer = threading.Timer(SLOW, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def on_main(world: World, function: Callable[[], T]) -> T:
    """function() on rank 0; its result on every rank.

    Where it fails, rank 0 raises and the others leave quietly, with exit status 2: one error, not one per process.
    """
    result: list[T] = []
    error: Exception | None = None
    if world.is_main:
        try:
            result.append(function())
        except Exception as caught:  # noqa: BLE001 - whatever it is, it is raised below, once all processes know
            error = caught
    failed, result = world.broadcast_object((error is not None, result))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)
    return result[0]


def on_main_first(world: World, function: Callable[[], T]) -> T:
    """function() on rank 0, which may download, then on the others, which find the files. Errors as in on_main."""
    box: list[T] = []
    on_main(world, lambda: box.append(function()))  # not its result: a pool or a model is not for sending around
    return box[0] if box else function()


def on_all(world: World, function: Callable[[], T]) -> T:
    """function() on every rank at once; where it fails on several the first of them raises, the others leave quietly.

    It may not wait for other ranks: one that fails would leave them waiting.
    """
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(function())
    except Exception as caught:  # noqa: BLE001 - raised below, once all processes know
        error = caught
    failed = [rank for rank, word in enumerate(world.gather("failed" if error else "")) if word]
    if error is not None and failed[0] == world.rank:
        raise error
    if failed:
        raise SystemExit(2)
    return result[0]


def share_error(world: World, error: Exception | None) -> None:
    """Raise a rank's error (an exception or None) there; where another rank has one, leave quietly, as on_main does."""
    failed = world.sum_(torch.tensor(int(error is not None), device=world.device))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)
