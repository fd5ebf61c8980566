"""Processes that decode images: every error ends the run in one line, within seconds, and leaves no process behind."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from data_selection.common.errors import UserError
from deit import epochs as deit_epochs
from deit.main import main
from tests.support.trainer_runs import MAIN, command, make_images


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_image_ends_the_run_in_one_line(images, split):
    victim = images / split / "class1" / "03.png"
    victim.write_bytes(victim.read_bytes()[:60])
    words = command(images, None, epochs=1, aa="rand-m9", num_workers=2, cache="none")
    done = subprocess.run(
        [sys.executable, str(MAIN), *words], capture_output=True, text=True, timeout=60, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: image ")
    assert str(victim) in done.stderr


def test_no_worker_outlives_an_error(images, monkeypatch):
    def fail(learner, data, *args, **kwargs):
        next(data.plain(range(4), 2))  # starts the workers
        assert len(multiprocessing.active_children()) == 2
        raise ZeroDivisionError

    monkeypatch.setattr(deit_epochs, "train_one_epoch", fail)
    with pytest.raises(ZeroDivisionError) as caught:
        main(command(images, None, epochs=1, aa="rand-m9", num_workers=2))
    assert not multiprocessing.active_children()
    assert caught.tb  # which holds the frames, and with them the loader


UNFORESEEN = """
import sys
from deit import epochs
from deit.main import main

def fail(learner, data, *args, **kwargs):
    next(data.plain(range(4), 2))
    raise ZeroDivisionError

epochs.train_one_epoch = fail
main(sys.argv[1:])
"""


def test_an_error_that_nobody_foresaw_ends_the_process(images):
    words = command(images, None, epochs=1, aa="rand-m9", num_workers=2)
    done = subprocess.run(
        [sys.executable, "-c", UNFORESEEN, *words], capture_output=True, text=True, timeout=60, cwd=MAIN.parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError")


def test_a_run_leaves_no_worker(images):
    main(command(images, None, epochs=1, aa="rand-m9", num_workers=2))
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_nobody_waits_raises_nothing_later(images, monkeypatch):
    real = deit_epochs.train_one_epoch

    def murder(learner, data, *args, **kwargs):
        next(data.plain(range(4), 2))
        for worker in multiprocessing.active_children():
            worker.kill()
        return real(learner, data, *args, **kwargs)

    monkeypatch.setattr(deit_epochs, "train_one_epoch", murder)
    with pytest.raises(UserError, match=r"a process that loads images has died") as caught:
        main(command(images, None, epochs=1, aa="rand-m9", num_workers=2))
    assert caught.tb
    subprocess.run([sys.executable, "-c", ""], check=True)  # the end of a child wakes PyTorch's handler
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [ConnectionResetError, ConnectionRefusedError, EOFError, FileNotFoundError])
def test_a_worker_that_dies_while_it_hands_over_is_named(images, monkeypatch, error):
    def broken(queue, *args, **kwargs):
        raise error("reset")

    monkeypatch.setattr("multiprocessing.queues.Queue.get", broken)
    with pytest.raises(UserError, match=r"a process that loads images has died \(DataLoader worker is gone: reset"):
        main(command(images, None, epochs=1, aa="rand-m9", num_workers=1))
