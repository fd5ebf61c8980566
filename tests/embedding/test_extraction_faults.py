"""Extraction under kills, full disks, dying processes: the unbroken file, bit for bit, or a clear error and no file."""

import os
import random
import resource
import signal
import socket
import time
import types

import numpy as np
import pytest
import torch

import data_selection.embedding.table_writer as table_writer
from data_selection.commands.extract import main_extract
from data_selection.common.distributed import World, on_main_first
from data_selection.common.errors import UserError, run
from data_selection.embedding.forward import class_tokens
from data_selection.images.pools import Pool, open_pool, read_image
from tests.support.extraction_cases import ALONE, COUNT, save, small_pool
from tests.support.forks import FORKS


class Dies(Exception):
    """Stands for a kill: nothing catches it."""


def dying(embed, calls):
    """embed that fails at the given call (1 counts the dry run)."""
    left = [calls]

    def counted(model, images):
        left[0] -= 1
        if left[0] == 0:
            raise Dies
        return embed(model, images)

    return counted


@pytest.mark.parametrize("calls", [2, 3, 5, 6])
def test_goes_on_after_a_failure(model, tmp_path, calls):
    whole, seen = save(small_pool(), model, tmp_path / "whole.npy"), []
    with pytest.raises(Dies):
        save(small_pool(), model, tmp_path / "t.npy", embed=dying(class_tokens, calls))
    assert not (tmp_path / "t.npy").exists()

    def watched(model, images):
        seen.append(len(images))
        return class_tokens(model, images)

    assert np.array_equal(save(small_pool(), model, tmp_path / "t.npy", embed=watched), whole)
    # one call is the dry run, one dies, and the batch before it is not written yet: what was safe is not embedded again
    assert sum(seen[1:]) == COUNT - 16 * max(0, calls - 3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "t.images.json",
        "t.npy",
        "whole.images.json",
        "whole.npy",
    ]


@pytest.mark.parametrize(("count", "weights"), [(COUNT, "def"), (60, "abc")])
def test_unfinished_work_of_another_command_is_dropped_with_a_word(model, tmp_path, count, weights):
    said = []
    with pytest.raises(Dies):
        save(small_pool(), model, tmp_path / "t.npy", embed=dying(class_tokens, 4), request={"weights": "abc"})
    written = save(small_pool(count), model, tmp_path / "t.npy", request={"weights": weights}, log=said.append)
    assert len(written) == count
    assert [line.split("holds")[1] for line in said] == [
        " unfinished work, which is dropped (of other images, or damaged)"
    ]


def test_two_writers_do_not_mix(model, tmp_path):
    def meet(model, images):
        with pytest.raises(UserError, match="another process is writing"):
            save(small_pool(), model, tmp_path / "t.npy")
        return class_tokens(model, images)

    calls = iter([class_tokens] + [meet] * 99)
    save(small_pool(), model, tmp_path / "t.npy", embed=lambda m, x: next(calls)(m, x))


def test_full_disk_keeps_the_rows(model, tmp_path, monkeypatch):
    real, calls = os.pwrite, []

    def full(descriptor, data, offset):
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"cannot write .*t.npy \(No space left on device\): the rows so far are kept"):
        save(small_pool(), model, tmp_path / "t.npy")
    assert not (tmp_path / "t.npy").exists()
    monkeypatch.setattr(os, "pwrite", real)
    assert np.array_equal(save(small_pool(), model, tmp_path / "t.npy"), save(small_pool(), model, tmp_path / "u.npy"))
    monkeypatch.setattr(table_writer.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"v\.npy needs 54\.0 kB, 100 bytes are free in "):
        save(small_pool(), model, tmp_path / "v.npy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.images.json", "t.npy", "u.images.json", "u.npy"]


def test_a_dying_worker_is_named(model, tmp_path, folder, monkeypatch):
    pool, main = open_pool(str(folder)), os.getpid()
    monkeypatch.setattr(Pool, "image", lambda self, i: os._exit(1) if os.getpid() != main else None)
    with pytest.raises(UserError, match="a loading process died"):
        save(pool, model, tmp_path / "t.npy", num_workers=2)


class Failing(World):
    """Rank 0 of two, the other of which has failed."""

    def sum_(self, tensor):
        return tensor.add_(1)


class Second(World):
    """Rank 1 of two, of which rank 0 has failed."""

    def broadcast_object(self, value):
        return True, None


def test_an_error_of_rank_0_comes_once():
    asked = []
    with pytest.raises(SystemExit) as caught:
        on_main_first(Second(1, 2, ALONE.device), lambda: asked.append("image folder"))
    assert (caught.value.code, asked) == (2, [])
    with pytest.raises(UserError, match=r"lost\.png cannot be read"):
        on_main_first(ALONE, lambda: read_image("lost.png"))


def test_one_failure_is_one_error(model, tmp_path, folder):
    """The process that fails says why; the others stop, silently, and keep their rows."""
    with pytest.raises(SystemExit) as caught:
        save(small_pool(), model, tmp_path / "t.npy", world=Failing(0, 1, ALONE.device))
    assert caught.value.code == 2
    assert not (tmp_path / "t.npy").exists()
    marks = []

    def told(model, images):
        marks.append(len(images))
        (tmp_path / "t.partial" / "stop").touch()
        return class_tokens(model, images)

    (tmp_path / "t.partial" / "done").write_bytes(bytes(COUNT))
    with pytest.raises(SystemExit):
        save(small_pool(), model, tmp_path / "t.npy", world=Failing(0, 1, ALONE.device), embed=told)
    assert marks == [1, 16]  # the dry run, then the batch in which the other one failed
    lines = []
    save(small_pool(), model, tmp_path / "t.npy", log=lines.append)
    assert lines[0].startswith("going on: 16 of 70 rows")


def test_a_kill_after_the_file_got_its_name(model, tmp_path, monkeypatch):
    """The folder that is left over has no table any more: it must not end up as an empty file."""

    def kill(folder, **_):
        if folder.suffix == ".partial":
            raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(table_writer.shutil, "rmtree", kill)
        with pytest.raises(Dies):
            save(small_pool(), model, tmp_path / "t.npy")
    whole = np.load(tmp_path / "t.npy")
    with pytest.raises(Dies):
        save(small_pool(), model, tmp_path / "t.npy", embed=dying(class_tokens, 4))
    assert np.array_equal(np.load(tmp_path / "t.npy"), whole)
    assert np.array_equal(save(small_pool(), model, tmp_path / "t.npy"), whole)


def limit_file_size(size):
    """The system refuses writes beyond this many bytes of a file, as it does on a full disk. Returns the old limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return before[0]


@pytest.mark.parametrize("calls", [0, 3])
def test_refused_writes(model, tmp_path, calls):
    """From the start, or from some batch on; nothing has the file's name, and the next start goes on."""
    whole, made, before = save(small_pool(), model, tmp_path / "whole.npy"), [], None

    def embed(model, images):
        made.append(len(images))
        if len(made) == calls:
            limit_file_size(20_000)  # of 54,000
        return class_tokens(model, images)

    before = limit_file_size(-1 if calls else 20_000)
    try:
        with pytest.raises(UserError, match=r"cannot write .*t.npy \(File too large\)"):
            save(small_pool(), model, tmp_path / "t.npy", embed=embed)
    finally:
        limit_file_size(before)
    assert not (tmp_path / "t.npy").exists()
    assert np.array_equal(save(small_pool(), model, tmp_path / "t.npy"), whole)


# Real processes


def start_command(flags, log, environment=()):
    """A process that runs extract_feature.py on one thread, saves after every batch, and prints into a file."""
    process = FORKS.Process(target=command_process, args=(flags, log, dict(environment)))
    process.start()
    return process


def command_process(flags, log, environment):
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)
    table_writer.SAVE_SECONDS = 0.0
    os._exit(run(main_extract, flags))


def demo_command(out, *flags):
    return ["--dataset", "DEMO", "--split", "test", "--batch_size_per_gpu", "16", "--device", "cpu", "--amp", "off",
            "--output_dir", str(out), *flags]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The bytes of the demo test images' file, written by one process in one go."""
    out = tmp_path_factory.mktemp("unbroken")
    finish([start_command(demo_command(out), out / "log")], out / "log")
    return (out / "DEMO_test.npy").read_bytes()


def finish(processes, log):
    """Wait for the end of processes that must succeed. Returns what they said."""
    for process in processes:
        process.join(120)
    said = log.read_text()
    assert [process.exitcode for process in processes] == [0] * len(processes), said
    return said


def wait_for_rows(out, count, process):
    """Until so many of the 2,000 rows are marked as done."""
    done, until = out / "DEMO_test.partial" / "done", time.monotonic() + 120
    while not done.exists() or sum(done.read_bytes()) < count:
        assert process.exitcode is None, f"ended before {count} rows were done"
        assert time.monotonic() < until
        time.sleep(0.001)


def test_five_kills_at_random_moments(unbroken, tmp_path):
    draws, log, out = random.Random(0), tmp_path / "log", tmp_path / "out"
    for count in sorted(draws.sample(range(1, 1800), 5)):
        done = out / "DEMO_test.partial" / "done"
        before = sum(done.read_bytes()) if done.exists() else 0  # the one before may have come further than this
        process = start_command(demo_command(out), log)
        wait_for_rows(out, max(count, before + 1), process)
        time.sleep(draws.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert [entry.name for entry in out.iterdir()] == ["DEMO_test.partial"]
    said = finish([start_command(demo_command(out), log)], log)
    assert said.count("going on: ") == 5
    assert (out / "DEMO_test.npy").read_bytes() == unbroken
    assert not (out / "DEMO_test.partial").exists()


def start_group(size, out, log):
    """The processes of a launcher: RANK and WORLD_SIZE say who they are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    ranks = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [start_command(demo_command(out), log, rank) for rank in ranks]


def test_three_processes_finish_what_two_began(unbroken, tmp_path):
    """One of two is killed: the other ends with an error. Three go on, to the file that one process writes."""
    log, out = tmp_path / "log", tmp_path / "out"
    first, second = start_group(2, out, log)
    wait_for_rows(out, 300, first)
    os.kill(second.pid, signal.SIGKILL)
    first.join(120)
    assert first.exitcode == 2
    assert "error: another process of this run has ended" in log.read_text()
    assert [entry.name for entry in out.iterdir()] == ["DEMO_test.partial"]
    said = finish(start_group(3, out, log), log)
    assert (said.count("going on: "), said.count("2000 rows in")) == (1, 1)
    assert (out / "DEMO_test.npy").read_bytes() == unbroken
