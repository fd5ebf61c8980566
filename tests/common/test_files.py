"""A file is on the disk before it has its name, and one process makes it."""

import os
from pathlib import Path

import pytest
import torch

from data_selection.common import files
from data_selection.common.distributed import World
from data_selection.common.files import atomic_write, one_at_a_time
from data_selection.embedding import table_writer


@pytest.fixture
def calls(monkeypatch):
    """What is synced, written and renamed, in order: (what, name of the file)."""
    seen = []

    def noted(where, name, path):
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *words: (seen.append((name, path(words))), real(*words))[1])

    noted(os, "fsync", lambda words: Path(f"/proc/self/fd/{words[0]}").resolve().name)
    noted(Path, "replace", lambda words: words[0].name)
    noted(table_writer, "write_at", lambda words: Path(f"/proc/self/fd/{words[0]}").resolve().name)
    return seen


linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")


@linux
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    """A machine that loses power may have done the renaming alone, and have left an empty file."""
    with atomic_write(tmp_path / "x") as handle:
        handle.write(b"1")
    (_, synced), (_, renamed) = calls
    assert [what for what, _ in calls] == ["fsync", "replace"]
    assert synced == renamed


@linux
def test_rows_are_on_the_disk_before_they_are_marked(tmp_path, calls):
    """A mark without its row would be believed by the next start."""
    with table_writer.TableWriter(
        tmp_path / "x.npy", (2, 3), "float32", {}, World(0, 1, torch.device("cpu"))
    ) as writer:
        writer.write(0, [[1, 2, 3], [4, 5, 6]])
        calls.clear()
        writer.save()
        assert calls == [("fsync", "table.npy"), ("write_at", "done"), ("fsync", "done")]


def test_who_waited_for_a_lock_that_is_gone_takes_the_next(tmp_path, monkeypatch):
    """The one before removes its file: a lock on that keeps nobody out."""
    said, real = [], files.lock
    guard = tmp_path / "x.lock"

    def lock(handle, wait=False):
        if not said:
            raise BlockingIOError
        if len(said) == 1:
            said.append("its file is another one")
            guard.unlink()
            guard.touch()
        real(handle)

    monkeypatch.setattr(files, "lock", lock)
    with one_at_a_time(tmp_path / "x.json", said.append), guard.open() as other, pytest.raises(BlockingIOError):
        real(other)
    assert said == [f"another process is making {tmp_path}/x.json: waiting for it", "its file is another one"]
    assert not guard.exists()
