"""One of two processes is killed, stopped, starved of memory or slow, at any point of any work: what the other does."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from data_selection.common import distributed, watching
from data_selection.common.errors import run
from data_selection.embedding.backbones import build_model
from data_selection.methods.activeft import select_activeft
from deit.main import main
from tests.support.extraction_cases import save, small_pool
from tests.support.forks import FORKS
from tests.support.trainer_runs import command, free_port, make_images

BEAT, SILENCE, SLOW = 0.2, 2, 3  # seconds
MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."
POINTS = {  # what is at work, the function that the rank is struck in, how, and which rank
    "opening": ("train", "deit.trainer.open_job", "starve", 1),
    "first collective": ("train", "deit.trainer.check_start_agrees", "kill", 1),
    "building": ("train", "deit.trainer.bring_up", "hang", 1),
    "loading": ("train", "deit.trainer.decode", "starve", 0),
    "step": ("train", "deit.engine.descend", "starve", 1),
    "slow step": ("train", "deit.engine.descend", "slow", 1),
    "evaluation": ("train", "deit.epochs.judged", "kill", 0),
    "checkpoint": ("train", "deit.runs.checkpoints.content", "hang", 0),
    "result": ("train", "deit.epochs.conclude", "kill", 1),
    "selection": ("select", "data_selection.methods.activeft.loss_and_gradient", "starve", 1),
    "extraction": ("extract", "data_selection.embedding.extraction._write", "kill", 0),
}


STRUCK = []


def strike(how):
    if STRUCK:
        return
    STRUCK.append(how)
    if how == "starve":
        raise torch.OutOfMemoryError(MEMORY)
    if how == "slow":
        time.sleep(SLOW)
    else:
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


def train(_folder, words):
    main(words)


def select(_folder, _words):
    with distributed.start("cpu", watching.SILENCE):
        select_activeft(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), 4)


def extract(folder, _words):
    with distributed.start("cpu", watching.SILENCE) as world:
        save(small_pool(), build_model("demo_vit").eval(), folder / "table.npy", world=world)


def process(rank, port, point, folder, words):
    """A rank of two; what it says goes into folder/said_RANK."""
    work, place, how, victim = POINTS[point]
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    watching.BEAT, watching.SILENCE = BEAT, SILENCE
    torch.set_num_threads(1)
    with (folder / f"said_{rank}").open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if rank == victim:
        name, _, attribute = place.rpartition(".")
        module = importlib.import_module(name)
        real = getattr(module, attribute)
        setattr(module, attribute, lambda *args, **words: (strike(how), real(*args, **words))[1])
    sys.exit(run(lambda _: globals()[work](folder, words)))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("point", POINTS)
def test_one_rank_is_lost(point, images, tmp_path):
    _, _, how, victim = POINTS[point]
    words = command(images, tmp_path / "out", epochs=2, num_workers=0, batch_size=12)
    arguments = free_port(), point, tmp_path, words
    processes = [FORKS.Process(target=process, args=(rank, *arguments)) for rank in range(2)]
    try:
        for one in processes:
            one.start()
        processes[1 - victim].join(30)
        said = [Path(tmp_path / f"said_{rank}").read_text() for rank in range(2)]
        if how == "slow":
            processes[victim].join(30)
            assert [one.exitcode for one in processes] == [0, 0], said
            return
        assert processes[1 - victim].exitcode in (1, 2), said
        if how == "starve":
            processes[victim].join(30)
            assert processes[victim].exitcode == 1
    finally:
        for one in processes:
            one.kill()
    said = [(tmp_path / f"said_{rank}").read_text() for rank in range(2)]
    assert "Traceback" not in said[1 - victim]
    if how == "starve":
        assert f"OutOfMemoryError: {MEMORY}" in said[victim]
        assert victim == 0 or f"rank 1: OutOfMemoryError: {MEMORY}" in said[0]
    else:
        told = ("another process of this run has ended", "a process of this run is gone or stands still")
        assert any(words in said[1 - victim] for words in told)
