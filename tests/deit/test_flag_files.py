"""Flags that decide what is read, kept, written and said, and those that are refused."""

import os

import numpy as np
import pytest
import torch
import yaml

from data_selection.common.errors import UserError
from data_selection.images.pools import Pool
from deit import epochs as deit_epochs
from deit import job, trainer
from deit.datasets import PilImages
from deit.options import parse
from deit.samples.tensor_images import CroppedImages, EvaluationImages, PaddedImages, ResizedImages
from tests.support.flag_runs import ROWS, Runs, row, small_model, words
from tests.support.plain_training import distance

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = {"lr": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("files"))


def prepared(runs, **flags):
    """What prepare was asked for and what it made, for each set of images of a run."""
    asked, real = [], job.prepare

    def noted(*args, **settings):
        made = real(*args, **settings)
        asked.append((settings, made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "prepare", noted)
        runs.run(runs.flags({"epochs": 1} | flags), None)
    return asked


KEPT = (PaddedImages, ResizedImages, CroppedImages)
KINDS = {"auto": KEPT, "device": KEPT, "ram": (PilImages, EvaluationImages), "none": (PilImages,)}


@row("cache", "none", "device")
def test_images_are_kept_as_asked(runs, one, other):
    for cache in (one, other, "ram"):
        for settings, made in prepared(runs, cache=cache, input_size=48):
            assert settings["cache"] == cache
            assert isinstance(made, KINDS[cache])
            if isinstance(made, PilImages):
                assert (made.loader.dataset.cached is None) == (cache == "none")


@row("num_workers", 0, 1)
def test_loaders_have_the_asked_workers(runs, one, other):
    for count in (one, other):
        assert {
            made.loader.num_workers for _, made in prepared(runs, cache="none", input_size=48, num_workers=count)
        } == {count}


@row("pin_mem", True, False)
def test_memory_is_page_locked_where_asked(runs, one, other):
    from deit.datasets import prepare
    from deit.samples.pipeline import Pipeline

    assert {settings["pin_memory"] for settings, _ in prepared(runs)} == {one}
    assert {settings["pin_memory"] for settings, _ in prepared(runs, no_pin_mem=True)} == {other}
    pool = Pool(arrays=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1], classes=2)
    pipeline = Pipeline(48, (0.5,) * 3, (0.5,) * 3)
    for pinned in (one, other):
        made = prepare(
            pool, [0, 1], pipeline, torch.device("cuda"), train=True, cache="none", workers=0, pin_memory=pinned
        )
        assert made.loader.pin_memory == pinned


@row("resume", None, "checkpoint.pth")
def test_a_run_goes_on_from_its_checkpoint(runs, tmp_path, one, other):
    """Stopped after an epoch of a moving schedule and warm-up, with momentum, average and best epoch kept."""
    flags = {
        "sched": "cosine",
        "warmup_epochs": 2,
        "epochs": 4,
        "mixup": 0.8,
        "mixup_prob": 1.0,
        "model_ema_warmup": True,
    }
    whole, real, left = runs(**flags), deit_epochs.train_one_epoch, iter([1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deit_epochs, "train_one_epoch", lambda *a, **k: next(left) and real(*a, **k))
        with pytest.raises(StopIteration):
            runs(**flags, output_dir=tmp_path)
    state = torch.load(tmp_path / other, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = 9.0  # the rate is the schedule's, as a function of the epoch, not what a file says
    torch.save(state, tmp_path / "half.pth")
    part = runs(**flags, finetune=None, resume=tmp_path / "half.pth", output_dir=tmp_path / "on")
    assert [line["train_lr"] for line in part.lines] == [line["train_lr"] for line in whole.lines[2:]]
    assert len({line["train_lr"] for line in whole.lines}) == 4
    for name in ("model", "model_ema"):
        assert distance(part.state[name], whole.state[name]) == 0
    assert part.lines == whole.lines[2:]
    again = runs(**flags, output_dir=tmp_path, auto_resume=True)
    assert again.lines == whole.lines
    assert len(again.seen) == 4  # two epochs of two steps


ROWS["auto_resume"] = test_a_run_goes_on_from_its_checkpoint


def test_a_continued_run_has_the_gradient_scale_of_its_checkpoint(runs, tmp_path):
    """fp16 alone scales gradients; a scale unlike the first one must be there again, and its count of good steps."""
    flags = {"amp": "fp16", "epochs": 2, "lr": 0.05}
    first = runs(**flags, output_dir=tmp_path / "whole")
    state = first.state | {"epoch": 1}
    state["scaler"] = first.state["scaler"] | {"scale": 512.0, "_growth_tracker": 7}
    torch.save(state, tmp_path / "half.pth")
    on = runs(**flags, finetune=None, resume=tmp_path / "half.pth")
    assert (on.state["scaler"]["scale"], on.state["scaler"]["_growth_tracker"]) == (512.0, 9)


@row("output_dir", None, "out")
def test_files_are_written_where_asked(runs, tmp_path, monkeypatch, one, other):
    monkeypatch.chdir(tmp_path)
    runs(epochs=1, output_dir=one)
    assert not list(tmp_path.iterdir())
    runs(epochs=1, output_dir=tmp_path / other)
    left = {path.name for path in (tmp_path / other).iterdir()}
    assert left >= {"log.txt", "args.yaml", "checkpoint.pth", "best_checkpoint.pth", "result.json"}


@row("verbose", False, True)
def test_every_step_has_a_line(runs, capsys, one, other):
    assert "step 2/2: loss" not in runs(capsys, epochs=1).said
    said = runs(capsys, epochs=2, verbose=other).said
    for line in ("epoch 1/2 step 1/2", "epoch 1/2 step 2/2", "epoch 2/2 step 1/2", "epoch 2/2 step 2/2"):
        assert said.count(f"{line}: loss ") == 1
    assert f"epoch 1/2 step 1/2: loss {plain_loss(runs):.4f}" in said


def plain_loss(runs):
    """The loss of the first step, by torch."""
    run = runs(epochs=2)
    model = small_model("test_vit", 2, 32)
    model.load_state_dict(torch.load(run.flags["finetune"], weights_only=True)["model"])
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    return criterion(model.train()(run.seen[0].images), run.seen[0].targets).item()


def test_the_loss_in_the_log_is_the_mean_over_images(runs):
    assert runs(epochs=1, batch_size=8, **STILL).lines[0]["train_loss"] == pytest.approx(
        np.mean([runs(epochs=1, batch_size=size, **STILL).lines[0]["train_loss"] for size in (3, 4)]), rel=1e-4
    )


@row("tensorboard", False, True)
def test_events_have_the_numbers_of_the_log(runs, monkeypatch, one, other):
    from deit.runs import meters

    events = []

    class Writer:
        def __init__(self, folder):
            events.append(folder)

        def add_scalar(self, tag, value, step):
            events.append((tag, value, step))

        def close(self):
            events.append("closed")

    monkeypatch.setattr(meters, "summary_writer", lambda: Writer)
    runs(epochs=2, tensorboard=one or None)
    assert not events
    run = runs(epochs=2, tensorboard=other)
    assert events[0] == str(run.folder / "tensorboard")
    assert events[-1] == "closed"
    for line in run.lines:
        for name, value in line.items():
            assert (name.replace("_", "/", 1), value, line["epoch"]) in events


@row("recipe", "paper", "few-shot")
def test_the_recipe_sets_what_no_flag_does(runs, one, other, tmp_path):
    for name in (one, other):
        wanted = yaml.safe_load((job.Path(trainer.__file__).parents[1] / f"configs/recipes/{name}.yaml").read_text())
        args = vars(parse(["--recipe", name, "--data-set", "FOLDER"]))
        for key, value in wanted.items():
            assert args[key.replace("-", "_")] == value, key
    (tmp_path / "own.yaml").write_text("opt: adamw\nsmoothing: 0.3\n")
    args = parse(["--recipe", str(tmp_path / "own.yaml"), "--smoothing", "0.2"])
    assert (args.opt, args.smoothing, args.recipe) == ("adamw", 0.2, str(tmp_path / "own.yaml"))


@row("config", None, "c.yaml")
def test_a_file_of_flags_is_as_good_as_flags(runs, tmp_path, one, other):
    (tmp_path / other).write_text("momentum: 0.3\nopt: SGD\n")
    flags = runs.flags({"momentum": None, "opt": None, "config": tmp_path / other})
    told = yaml.safe_load((runs.run(flags, None).folder / "args.yaml").read_text())
    assert (told["momentum"], told["opt"]) == (0.3, "SGD")
    plain, told = runs(momentum=0.3), runs.run(flags, None)
    assert distance(plain.state["model"], told.state["model"]) == 0


REFUSED = {"data_Gen_path": "x", "resplit": True, "world_size": 2, "dist_url": "env://", "patience_epochs": 3}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_that_would_do_nothing_is_refused(flag):
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} is not available: ".replace("-path", ".path")):
        parse(words({flag: REFUSED[flag]}))


ROWS |= REFUSED


def test_what_old_launchers_pass_is_taken():
    assert vars(parse(["--local_rank", "1"])) == vars(parse([]))
    assert os.environ.get("LOCAL_RANK") is None


ROWS["local_rank"] = test_what_old_launchers_pass_is_taken
