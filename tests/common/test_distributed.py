"""Device names and launcher variables are checked; sums go over the ranks."""

import contextlib
import io
import sys
import threading
import time

import pytest
import torch

from data_selection.common import distributed
from data_selection.common.distributed import pick_device, start
from data_selection.common.errors import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cuda:99"])
def test_devices_that_cannot_be_used_are_refused(name):
    with pytest.raises(UserError, match="device"):
        pick_device(name)


def test_the_first_process_speaks_at_once_and_alone(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw))  # as a pipe or a log: it keeps what nobody flushes
    for rank in (1, 0):
        distributed.World(rank, 2, torch.device("cpu")).say(f"rank {rank}")
    assert raw.getvalue() == b"rank 0\n"


def test_who_is_waited_for_is_told_after_a_while(monkeypatch, capsys):
    """Variables that a launcher has left are waited by for ever."""
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "29")
    monkeypatch.setattr(distributed, "SLOW", 60)
    with distributed.told_when_waiting(3):
        pass
    monkeypatch.setattr(distributed, "SLOW", 0.01)
    with distributed.told_when_waiting(3):
        end = time.monotonic() + 20
        while not (said := capsys.readouterr().err) and time.monotonic() < end:
            time.sleep(0.02)
    assert said == (
        "waiting for all 3 processes at here:29, as RANK and WORLD_SIZE say: unset them for one process alone\n"
    )
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_process_alone_asks_nobody():
    """There is no group that it could ask."""
    alone, tensor = distributed.World(0, 1, torch.device("cpu")), torch.tensor([3.0])
    assert alone.sum_(tensor) is tensor
    assert tensor == 3
    alone.begin_sum(tensor)()
    assert alone.least(7) == 7
    assert alone.gather("a") == ["a"]
    assert alone.broadcast_object({"a": 1}) == {"a": 1}
    alone.barrier()


def test_a_gpu_by_number_is_refused_for_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [pick_device("cuda", rank, 4).index for rank in range(4)] == [0, 1, 2, 3]
    assert pick_device("cuda:1").index == 1
    with pytest.raises(UserError, match="'cuda:1' would put all 2 processes on one GPU"):
        pick_device("cuda:1", 0, 2)
    with pytest.raises(
        UserError, match=r"for process 6 of this machine, 4 CUDA .* no more processes than GPUs, or try"
    ):
        pick_device("cuda", 5, 8)
    with pytest.raises(UserError, match=r"\(GPU 5\) asked for, 4 CUDA GPUs are visible: try"):
        pick_device("cuda:5")


def test_the_gpu_asked_for_is_the_current_one_and_the_group_knows_it(monkeypatch):
    current, group = [], {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    with start("cuda:1") as world:
        assert current == [world.device] == [torch.device("cuda:1")]
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **given: group.update(given))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed, "watched", lambda *_: contextlib.nullcontext())
    for name, value in zip(LAUNCHER, ("2", "3", "2", "127.0.0.1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with start("cuda"):
        assert current[1:] == [torch.device("cuda:2")]
        assert group["device_id"] == torch.device("cuda:2")


def test_auto_takes_what_is_there():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_without_a_launcher_there_is_one_process_and_no_group(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    with start("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert world.sum_(torch.ones(2)).tolist() == [1, 1]
        assert world.broadcast_object("x") == "x"


def test_half_a_launcher_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT are not"), start("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="not whole numbers"), start("cpu"):
        pass


def test_a_group_of_one_ends_with_the_block(monkeypatch):
    for name, value in zip(LAUNCHER, ("0", "1", "0", "127.0.0.1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with start("cpu") as world:
        assert world.size == 1
        assert torch.distributed.is_initialized()
    assert not torch.distributed.is_initialized()


def test_a_command_of_one_process_says_so_once(monkeypatch):
    distributed.one_process("x.py")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    distributed.one_process("x.py")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"^x\.py works in one process, and a launcher started 3: start it alone; so$"):
        distributed.one_process("x.py", "; so")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit) as end:
        distributed.one_process("x.py")
    assert end.value.code == 2
