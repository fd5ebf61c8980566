"""A run that is asked to end does so after the running step, and goes on from there as if nothing had been."""

import contextlib
import os
import signal

import pytest
import torch

from data_selection.common.errors import run
from deit import epochs as deit_epochs
from deit import selftrain
from deit.main import main
from deit.runs import stopping
from deit.runs.meters import RunLog
from tests.deit.test_reliability import poisoned, wait_for
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images, ranks

SIGNALS = {0: signal.SIGTERM, 130: signal.SIGINT}  # by exit status
SMALL = {"epochs": 2, "batch_size": 16, "num_workers": 0, "auto_resume": True, "eval_interval": 1}  # 4 steps an epoch
VIT = {"drop_path": 0.2, "drop": 0.1, "mixup": 0.8, "mixup_prob": 1.0, "model_ema_decay": 0.9}
CASES = {  # flags, and the places where the run is stopped, in turn: (epoch, step), or (epoch, None): in its evaluation
    "by step": (
        VIT | {"sched_unit": "step", "batch_size": 5, "global_batch_size": 16, "save_interval": 2},
        [(1, 0), (1, 3), (2, 2), (2, None)],
    ),
    "batch norm": (
        {"model": "resnet10t", "input_size": 32, "finetune": "none", "skip_nonfinite": True, "lr_noise": "0.0"},
        [(1, 2)],
    ),
    "linear": ({"mode": "linear", "batch_size": None, "lr": None, "warmup_epochs": None, "epochs": None}, [(0, None)]),
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@contextlib.contextmanager
def stopped_at(place, number):
    """Within the block the signal comes at a place: at the end of a step, or where an evaluation begins."""
    step, judged = RunLog.step, deit_epochs.judged

    def at_step(log, epoch, which, *rest):
        step(log, epoch, which, *rest)
        if (epoch, which) == place:
            signal.raise_signal(number)

    def at_evaluation(job, learner, data, epoch):
        if (epoch, None) == place:
            signal.raise_signal(number)
        return judged(job, learner, data, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", at_step)
        patch.setattr(deit_epochs, "judged", at_evaluation)
        yield


def tensors(content):
    """All tensors in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        return [content]
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def same(one, two):
    """Whether two folders hold the same lines, weights and states, bit by bit."""
    assert log_lines(one) == log_lines(two)
    pairs = zip(tensors(checkpoint(one)), tensors(checkpoint(two)), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("case", CASES)
def test_stopped_anywhere_it_ends_as_the_unbroken_run(case, images, tmp_path, capsys, monkeypatch):
    flags, places = CASES[case]
    flags = SMALL | flags
    if "skip_nonfinite" in flags:
        poisoned(monkeypatch, {1})
    main(command(images, tmp_path / "whole", **flags))
    if "skip_nonfinite" in flags:
        poisoned(monkeypatch, {1})
    words = command(images, tmp_path / "broken", **flags)
    for count, place in enumerate(places):
        status = sorted(SIGNALS)[count % 2]
        with stopped_at(place, SIGNALS[status]):
            assert run(main, words) == status
        said = capsys.readouterr().out
        assert f"{'Ctrl-C' if status else 'SIGTERM'}: stopped" in said
        assert not (tmp_path / "broken" / "result.json").exists()
        left = checkpoint(tmp_path / "broken")
        if place == (1, 3):  # the last step: the evaluation goes no further
            assert (left["epoch"], set(left["line"])) == (1, {"train_lr", "train_loss"})
        elif place[1] is not None:
            assert (left["epoch"], len(left["sofar"]["losses"])) == (place[0] - 1, place[1] + 1)
            assert f"after step {place[1] + 1} of epoch {place[0]} of 2" in said
    main(words)
    if count := len(left.get("sofar", {}).get("losses", ())):
        assert f"after epoch {left['epoch']} and {count} steps" in capsys.readouterr().out
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_every_stage_of_self_training(images, tmp_path, monkeypatch):
    monkeypatch.setattr(selftrain, "CHUNK", 2)
    flags = SMALL | {"recipe": "few-shot", "mode": "self-train", "rounds": 2, "folds": 0, "global_batch_size": 8,
             "restarts": 1, "batch_size": 8, "lr": 0.01, "amp": "off", "warmup_epochs": None}  # fmt: skip
    main(command(images, tmp_path / "whole", **flags))
    for place in [(0, None), (2, 1), (3, 0), (4, 1), (6, 0), (6, None)]:
        with stopped_at(place, signal.SIGTERM):
            main(command(images, tmp_path / "broken", **flags))
        assert not (tmp_path / "broken" / "result.json").exists()
    main(command(images, tmp_path / "broken", **flags))
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_the_embedding_of_the_pool_is_left_at_once(images, tmp_path, monkeypatch, capsys):
    """The checkpoint before it is there already."""
    real = selftrain.frozen_features

    def asked(learner, *args):
        learner.asked.set()
        return real(learner, *args)

    monkeypatch.setattr(selftrain, "frozen_features", asked)
    monkeypatch.setattr(selftrain, "smoothed_probe", lambda *_: pytest.fail("it went on"))
    flags = {"recipe": "few-shot", "mode": "self-train", "rounds": 1, "folds": 0, "amp": "off", "epochs": 1,
             "restarts": 1, "warmup_epochs": None}  # fmt: skip
    main(command(images, tmp_path, **SMALL | flags))
    assert checkpoint(tmp_path)["epoch"] == 1
    assert "SIGTERM: stopped at epoch 2 of 2; wrote" in capsys.readouterr().out


def test_one_rank_that_is_asked_stops_all_at_the_same_step(images, tmp_path):
    words = command(images, tmp_path / "out", **SMALL | {"epochs": 100_000, "batch_size": 8, "save_interval": 10_000})
    processes = ranks(words, tmp_path)
    wait_for(lambda: (tmp_path / "out" / "log.txt").exists() and (tmp_path / "out" / "log.txt").stat().st_size > 0)
    os.kill(processes[1].pid, signal.SIGTERM)
    for rank, process in enumerate(processes):
        process.join(60)
        assert process.exitcode == 0, (tmp_path / f"said_{rank}").read_text()
    left = checkpoint(tmp_path / "out")
    assert len(log_lines(tmp_path / "out")) == left["epoch"] - ("line" in left)


def test_an_epoch_that_is_not_over_is_no_best_one(images, tmp_path):
    words = command(images, tmp_path, **SMALL)
    with stopped_at((2, 1), signal.SIGTERM):
        main(words)
    state = checkpoint(tmp_path)
    assert state["best"]["epoch"] == 1
    torch.save(state | {"best": {**state["best"], "acc1": 101.0}}, tmp_path / "checkpoint.pth")  # nothing beats it
    (tmp_path / "best_checkpoint.pth").unlink()
    main(words)
    assert checkpoint(tmp_path, "best_checkpoint.pth")["epoch"] == 2  # sought among those that follow


def test_a_signal_that_comes_twice():
    """At once it is the launcher's copy of a Ctrl-C; later it means it."""
    ever = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without
    try:
        with stopping.listening() as asked:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert asked.told == "Ctrl-C"
            asked.since -= stopping.ECHO + 1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, ever)
