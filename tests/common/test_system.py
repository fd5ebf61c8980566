"""The ways round what some systems lack: each call is patched away."""

import os
import pickle
import types

import numpy as np
import pytest

from data_selection.commands.extract import main_extract
from data_selection.common import system
from data_selection.common.system import cores, lock
from data_selection.embedding.image_batches import Decoded, View, collate
from data_selection.embedding.preprocessing import DEMO_PREPROCESS
from data_selection.images.image_files import WHITE
from data_selection.images.pools import Pool
from data_selection.nearest import pool_reader


@pytest.fixture
def windows(monkeypatch):
    """A stand-in for msvcrt, whose locks are kept in a set of inodes, in place of fcntl."""
    taken = set()

    def locking(descriptor, kind, count):
        assert (kind, count, os.lseek(descriptor, 0, os.SEEK_CUR)) == (2, 1, system.FAR)
        if os.fstat(descriptor).st_ino in taken:
            raise PermissionError(13, "Permission denied")
        taken.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "sysconf")
    return taken


def test_a_lock_is_one_process_s(tmp_path, windows, monkeypatch):
    with (tmp_path / "a").open("w+b") as one, (tmp_path / "a").open("a+b") as other:
        one.write(b"12345")
        lock(one)
        assert one.tell() == 5
        assert system.FAR >= 1 << 30  # no reader comes so far
        with pytest.raises(BlockingIOError):
            lock(other)
        monkeypatch.setattr(system.time, "sleep", lambda _: windows.clear())  # it ends meanwhile
        lock(other.fileno(), wait=True)
    monkeypatch.setattr(system, "msvcrt", None)  # neither: there are no locks
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as other:
        lock(one)
        lock(other, record=True)


def test_cores_are_those_of_the_process(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert cores() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert cores() == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_extraction_runs_without_what_linux_has(tmp_path, monkeypatch, windows):
    from PIL import Image

    for i in range(6):
        (tmp_path / "pool").mkdir(exist_ok=True)
        Image.new("L", (28, 28), 40 * i).save(tmp_path / "pool" / f"{i}.png")
    flags = ["--dataset", str(tmp_path / "pool"), "--arch", "demo_vit", "--batch_size_per_gpu", "2", "--amp", "off"]
    main_extract([*flags, "--num_workers", "0", "--output_dir", str(tmp_path / "other")])
    assert len(windows) == 1
    monkeypatch.undo()
    main_extract([*flags, "--num_workers", "0", "--output_dir", str(tmp_path / "linux")])
    one, other = (np.load(tmp_path / name / "pool_train.npy") for name in ("linux", "other"))
    assert np.array_equal(one, other)


def test_memory_of_a_system_that_does_not_tell(monkeypatch, windows):
    def none(*_, **__):
        raise OSError

    monkeypatch.setattr(pool_reader.Path, "read_text", none)
    assert pool_reader.available_memory() == pool_reader.UNTOLD


def test_what_loads_images_goes_to_processes_that_start_anew():
    """macOS and Windows have no fork: the pool and its transform are pickled."""
    decoded = Decoded(Pool(paths=["a.png"], names=["a.png"], left_out={"hidden": 2}), View(DEMO_PREPROCESS))
    sent = pickle.loads(pickle.dumps((decoded, collate)))[0]
    assert (sent.pool.names, sent.pool.background, sent.prepare) == (("a.png",), WHITE, View(DEMO_PREPROCESS))
