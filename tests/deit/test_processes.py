"""One run on one and on several processes, and what holds for networks with batch norm."""

import json

import pytest

from deit.main import main
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images, train_on

CURVES = ("train_lr", "train_loss", "test_loss", "test_acc1")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_four_processes_follow_the_curve_of_one(images, tmp_path):
    flags = {
        "epochs": 2, "drop": 0.1, "drop_path": 0.3, "mixup": 0.8, "cutmix": 1.0, "mixup_prob": 0.8, "clip_grad": 2.0,
        "global_batch_size": 24, "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.3, "num_workers": 0,
    }  # fmt: skip
    runs = {}
    for processes in (1, 4):
        train_on(processes, command(images, tmp_path / str(processes), **flags | {"batch_size": 5}), tmp_path)
        runs[processes] = log_lines(tmp_path / str(processes))
    for key in CURVES:
        one, many = ([line[key] for line in runs[count]] for count in (1, 4))
        assert many == pytest.approx(one, rel=1e-4), key
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("1", "4")]
    assert results[0]["ema"]["loss"] == pytest.approx(results[1]["ema"]["loss"], rel=1e-4)


def test_batch_norm_trains_alike_where_the_passes_are_alike_and_evaluates_alike(images, tmp_path, capsys):
    """Passes over the same images have the same statistics; only the running averages differ, and are averaged."""
    flags = {
        "model": "resnet10t", "input_size": 32, "finetune": "none", "epochs": 1, "warmup_epochs": 0,
        "batch_size": 10, "num_workers": 0, "global_batch_size": 20,  # the 60 entries of an epoch make full steps
    }  # fmt: skip
    for processes in (1, 2):
        train_on(processes, command(images, tmp_path / str(processes), **flags), tmp_path)
    one, two = (log_lines(tmp_path / name) for name in ("1", "2"))
    assert [line["train_loss"] for line in two] == pytest.approx([line["train_loss"] for line in one], rel=1e-4)
    saved = checkpoint(tmp_path / "2")["model"]
    assert any("running_var" in name for name in saved)
    main(command(images, eval=True, **flags | {"finetune": None, "resume": tmp_path / "2" / "checkpoint.pth"}))
    assert f"loss {two[-1]['test_loss']:.3f}" in capsys.readouterr().out  # of two processes, evaluated by one
