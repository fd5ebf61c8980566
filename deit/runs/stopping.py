"""Reasons to stop early: a scheduler's warning, a loss that is not finite, a worker process that died."""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write

BAD_BATCH = "nonfinite_batch.json"


@contextlib.contextmanager
def sigterm() -> Iterator[threading.Event]:
    """A threading.Event that is set when the first SIGTERM comes; the second one ends the process as ever."""
    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def asked_to_stop(asked: threading.Event, world: World) -> bool:
    """Whether any process of the run has been asked to; the same answer on all of them."""
    return bool(world.sum_(torch.tensor(float(asked.is_set()), device=world.device)))


@contextlib.contextmanager
def workers_named(close: Callable[[], None]) -> Iterator[None]:
    """Turn what a DataLoader raises, at any moment, where one of its workers was killed into a UserError.

    close: called in the end, however the block ends: ends the workers. Until then a worker's death may raise again.
    """
    try:
        yield
    except RuntimeError as error:
        close()
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


def with_batch(error: NotFinite, epoch: int, ids: Sequence[int], size: int, folder: Path | None) -> UserError:
    """The UserError to raise for a NotFinite: where a step is to blame, naming the file, written here, of its ids.

    ids: pool indices of the epoch in order, `size` to a step. folder: None where nothing is written (on ranks above 0,
    or without --output_dir).
    """
    if error.step is None:
        return error
    batch = ids[error.step * size :][:size]
    hint = "--output_dir DIR would save the ids of its batch"
    if folder:
        path = Path(folder) / BAD_BATCH
        with atomic_write(path, "w") as handle:
            json.dump({"epoch": epoch, "step": error.step + 1, "ids": batch}, handle)
        hint = f"the ids of its batch are in {path}"
    return UserError(f"{error}; {hint}; --skip-nonfinite leaves such steps out and goes on")
