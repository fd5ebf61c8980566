"""Checkpoints on the disk: written in a thread while training goes on, the one before kept, leftovers removed."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch

from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write
from deit.runs.kinds import State

NEWEST, PREVIOUS, BEST = "checkpoint.pth", "checkpoint_previous.pth", "best_checkpoint.pth"


class Saver:
    """Writes checkpoints into a folder (None: nowhere), one after the other, in a thread of its own.

    A context manager. continued: the checkpoint that the run continues, or None. When a checkpoint.pth is written, the
    one before it stays as checkpoint_previous.pth if it is this run's and could be read. What a killed process left
    half written is removed.
    """

    def __init__(self, folder: Path | str | None, continued: Path | str | None = None) -> None:
        self.folder, self.thread = Path(folder) if folder else None, ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None
        before = Path(continued) if continued else None
        own = before is not None and self.folder is not None and before.resolve().parent == self.folder.resolve()
        self.keep = own and before is not None and before.name == NEWEST
        if self.folder:
            for leftover in self.folder.glob(".*.partial"):
                leftover.unlink(missing_ok=True)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if error is None:
            self.wait()

    def save(self, names: Sequence[str], content: State) -> None:
        """Write content (as torch.save takes it) to each name; what it holds now counts, whatever changes later.

        Waits for the last checkpoint first, and raises UserError where that could not be written.
        """
        self.wait()
        if self.folder:
            saved = {key: copied(value) for key, value in content.items()}
            self.pending = self.thread.submit(write, self.folder, names, saved, self.keep)
            self.keep = self.keep or NEWEST in names

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk. Raises UserError where it could not be written."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def copied(content: object) -> object:
    """The same nested dictionaries and lists with copies of the tensors, in main memory."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copied(value) for key, value in content.items()}
    return [copied(value) for value in content] if isinstance(content, (list, tuple)) else content


def write(folder: Path, names: Sequence[str], content: State, keep: bool) -> None:
    """Write content to files of the folder, each whole or not at all. Raises UserError where the disk does not take it.

    keep: rename checkpoint.pth to checkpoint_previous.pth once the new one is on the disk, under its temporary name.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    for name in names:
        path = folder / name
        try:
            with atomic_write(path) as handle:
                handle.write(buffer.getbuffer())
                handle.flush()
                os.fsync(handle.fileno())
                if keep and name == NEWEST and path.exists():
                    path.replace(folder / PREVIOUS)
        except OSError as error:
            before = "the checkpoint before it is as it was; make room, then continue with --auto-resume"
            if not (folder / NEWEST).exists():
                before = "the run has no checkpoint yet; make room, then start again"
            raise UserError(
                f"{path} of epoch {content['epoch']} cannot be written ({error.strerror}): {before}"
            ) from None
