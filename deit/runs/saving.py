"""Checkpoints on the disk: written in a thread while training goes on, the one before kept, leftovers removed."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write

NEWEST, PREVIOUS, BEST = "checkpoint.pth", "checkpoint_previous.pth", "best_checkpoint.pth"


class Saver:
    """Writes checkpoints into a folder (None: nowhere), one after the other, in a thread of its own.

    A context manager. continued: the checkpoint that the run continues, or None. When a checkpoint.pth is written, the
    one before it stays as checkpoint_previous.pth if it is this run's and could be read. What a killed process left
    half written, and a previous checkpoint of another run, is removed.
    """

    def __init__(self, folder, continued=None):
        self.folder, self.pending, self.thread = folder and Path(folder), None, ThreadPoolExecutor(1)
        own = bool(folder and continued) and Path(continued).resolve().parent == self.folder.resolve()
        self.keep = own and Path(continued).name == NEWEST
        if self.folder:
            for leftover in (*self.folder.glob(".*.partial"), *([] if own else [self.folder / PREVIOUS])):
                leftover.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.thread.shutdown()
        if error is None:
            self.wait()

    def save(self, names, content):
        """Write content (as torch.save takes it) to each name; what it holds now counts, whatever changes later.

        Waits for the last checkpoint first, and raises UserError where that could not be written.
        """
        self.wait()
        if self.folder:
            self.pending = self.thread.submit(write, self.folder, names, copied(content), self.keep)
            self.keep = self.keep or NEWEST in names

    def wait(self):
        """Return when the last checkpoint is on the disk. Raises UserError where it could not be written."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def copied(content):
    """The same nested dictionaries and lists with copies of the tensors, in main memory."""
    if torch.is_tensor(content):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copied(value) for key, value in content.items()}
    return [copied(value) for value in content] if isinstance(content, (list, tuple)) else content


def write(folder, names, content, keep):
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
                    os.replace(path, folder / PREVIOUS)
        except OSError as error:
            raise UserError(
                f"{path} of epoch {content['epoch']} cannot be written ({error.strerror}): the checkpoint before it is "
                "as it was; make room, then continue with --auto-resume"
            ) from None
