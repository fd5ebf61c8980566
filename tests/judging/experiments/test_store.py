"""Finished cells outlive half lines and full disks, and a cell has one owner."""

import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from data_selection.common.errors import UserError
from data_selection.judging.experiments.store import FILE_LOCK, Store, place


def record(number):
    return {"digest": f"{number:064x}", "scores": {"accuracy": 50.0}}


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "out")
    yield made
    made.close()


def test_half_a_last_line_is_left_out_and_mended(store):
    store.append(record(1))
    whole = store.path.read_bytes()
    for half in (b'{"digest": "0', b"x" * 100_000):
        store.path.write_bytes(whole + half)
        assert list(store.known()) == [record(1)["digest"]]
    store.append(record(2))
    assert store.path.read_bytes().startswith(whole)
    assert store.path.read_bytes().count(b"\n") == 2
    assert list(store.known()) == [record(1)["digest"], record(2)["digest"]]
    store.path.write_bytes(b"half")  # the first line was never finished
    store.append(record(3))
    assert store.path.read_bytes().startswith(b'{"digest"')


def test_a_broken_line_in_between_is_told(store):
    store.append(record(1))
    with store.path.open("a") as handle:
        handle.write("no record\n")
    with pytest.raises(UserError, match=r"results\.jsonl has a line that is no record: b'no record'"):
        store.known()


def test_a_full_disk_loses_no_finished_cell(store, monkeypatch):
    store.append(record(1))
    whole = store.path.read_bytes()
    real = os.pwrite

    def full(handle, line, at):
        if at > len(whole):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, line[:10], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space") as caught:
        store.append(record(2))
    assert caught.value.filename == str(store.path)
    assert store.path.read_bytes() == whole
    monkeypatch.undo()
    store.append(record(2))
    assert len(store.known()) == 2


def test_what_was_written_is_synced(store, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    store.append(record(1))
    assert len(synced) == 1


def test_a_claim_has_one_owner_and_dies_with_it(store):
    """Another process can't claim the same, can claim others, and inherits what a killed one held."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()

    def hold():
        rival = Store(store.folder)
        other.send([rival.claim("aa" * 32), rival.claim("bb" * 32)])
        other.recv()

    assert store.claim("aa" * 32)
    child = context.Process(target=hold)
    child.start()
    assert mine.recv() == [False, True]
    assert not store.claim("bb" * 32)
    child.kill()
    child.join()
    assert store.claim("bb" * 32)
    assert len({place(f"{number:064x}"[::-1]) for number in range(100)} - {0}) == 100


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not list open files")
def test_no_file_stays_open(store):
    """A grid has thousands of cells, and a process may open a thousand files."""
    store.append(record(1))
    before = len([*Path("/proc/self/fd").iterdir()])
    for number in range(2, 9):
        store.append(record(number))
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_one_process_adds_a_cell_at_a_time(store):
    """The file is mended and added to at its end: two at once would write over each other."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()

    def add():
        rival = Store(store.folder)
        other.send("begun")
        rival.append(record(2))
        other.send("added")

    fcntl.lockf(store.claims, fcntl.LOCK_EX, 1, FILE_LOCK)
    child = context.Process(target=add)
    child.start()
    assert mine.recv() == "begun"
    assert not mine.poll(0.5)
    fcntl.lockf(store.claims, fcntl.LOCK_UN, 1, FILE_LOCK)
    assert mine.recv() == "added"
    child.join()
    assert list(store.known()) == [record(2)["digest"]]
