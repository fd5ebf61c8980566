"""The trainer as a whole, on real demo images: files, schedules, resuming, processes, weights."""

import argparse
import dataclasses
import json

import pytest
import torch
import yaml
from timm.utils import ModelEmaV3

from data_selection.common.errors import UserError, run
from data_selection.images import pools
from deit import epochs as deit_epochs
from deit import trainer
from deit.learner import building
from deit.learner.optimizers import make_optimizer
from deit.learner.schedules import make_scheduler
from deit.main import main
from deit.options import parse
from deit.runs.checkpoints import RECIPE, restore
from tests.support.trainer_runs import DEMO, checkpoint, command, log_lines, make_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_a_run_writes_its_files_and_evaluates_the_last_epoch(images, tmp_path, capsys):
    main(command(images, tmp_path / "out", epochs=3, eval_interval=2))
    lines = log_lines(tmp_path / "out")
    bare = ["train_lr", "train_loss", "epoch", "n_parameters"]
    assert list(lines[0]) == bare
    assert list(lines[1]) == [*bare[:2], "test_loss", "test_acc1", "test_acc5", *bare[2:]]
    assert [("test_acc1" in line, line["epoch"]) for line in lines] == [(False, 1), (True, 2), (True, 3)]
    saved = checkpoint(tmp_path / "out")
    assert saved["epoch"] == 3
    assert isinstance(saved["args"], dict)
    assert {"model", "optimizer", "lr_scheduler", "model_ema", "scaler", "best"} <= set(saved)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["last"]["acc1"] == lines[-1]["test_acc1"]
    assert result["best"]["acc1"] == max(line.get("test_acc1", 0) for line in lines)
    assert checkpoint(tmp_path / "out", "best_checkpoint.pth")["epoch"] == result["best"]["epoch"]
    assert yaml.safe_load((tmp_path / "out" / "args.yaml").read_text())["global_batch_size"] == 24
    assert lines[2]["train_loss"] != lines[0]["train_loss"]  # that it learns is tested on real weights, in test_chain
    said = capsys.readouterr().out
    assert "Creating model: test_vit" in said
    assert "2 tensors keep their fresh values, not in weights.pth: head.weight, head.bias" in said
    assert "top-1 after the last epoch (3)" in said
    assert said.count("the average stays where it began") == 1  # at the default decay, of 100,000 steps

    main(command(images, epochs=3, model_ema_decay=0.5))
    assert "the average stays where it began" not in capsys.readouterr().out
    main(command(images, eval=True, finetune=None, resume=tmp_path / "out" / "checkpoint.pth"))
    assert f"the network on the 10 test images: {result['last']['acc1']:.1f}%" in capsys.readouterr().out


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


def test_a_resumed_run_ends_bit_equal(images, tmp_path, monkeypatch, capsys):
    flags = {"drop_path": 0.2, "mixup": 0.8, "mixup_prob": 1.0, "model_ema_decay": 0.9, "lr_noise": 0.2}
    main(command(images, tmp_path / "whole", epochs=4, **flags))
    epochs = iter([1, 2])

    def stop(*args, **kwargs):
        next(epochs)  # raises StopIteration in epoch 3
        return real(*args, **kwargs)

    real = deit_epochs.train_one_epoch
    monkeypatch.setattr(deit_epochs, "train_one_epoch", stop)
    with pytest.raises(StopIteration):
        main(command(images, tmp_path / "part", epochs=4, **flags))
    monkeypatch.undo()
    with (tmp_path / "part" / "log.txt").open("a") as handle:
        handle.write('{"train_lr": 0.1, "tr')  # killed while writing
    main(command(images, tmp_path / "part", epochs=4, auto_resume=True, **flags))
    whole, part = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "part")
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "part")
    assert same_weights(whole["model"], part["model"])
    assert same_weights(whole["model_ema"], part["model_ema"])
    assert whole["best"] == part["best"]
    momentum = [[v["momentum_buffer"] for v in run["optimizer"]["state"].values()] for run in (whole, part)]
    assert all(torch.equal(a, b) for a, b in zip(*momentum, strict=True))

    path = tmp_path / "part" / "checkpoint.pth"
    before = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    monkeypatch.setattr(trainer, "decode", None)  # no image is decoded for a finished run
    capsys.readouterr()
    assert run(main, command(images, tmp_path / "part", epochs=4, auto_resume=True, **flags)) == 0
    assert "4 epochs and 4 are asked for: the run is finished; its result is in" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before
    with pytest.raises(UserError, match=r"4 epochs and 4 are asked for: the run is finished"):
        main(command(images, finetune=None, resume=path, epochs=4, **flags))
    with pytest.raises(UserError, match=r"--epochs 9 \(was 4\), --lr 0.1 \(was 0.05\).*--finetune"):
        main(command(images, finetune=None, resume=path, epochs=9, **flags | {"lr": 0.1}))


@pytest.mark.parametrize("args", [argparse.Namespace(lr=0.05, opt="SGD"), {}, None])
def test_a_checkpoint_of_the_released_trainer_is_continued(images, tmp_path, args):
    """Its arguments are a Namespace, and know few of the flags here."""
    main(command(images, tmp_path / "whole"))
    main(command(images, tmp_path / "other", epochs=1, sched="none"))
    state = checkpoint(tmp_path / "other")
    state["args"] = args
    torch.save({key: value for key, value in state.items() if value is not None}, tmp_path / "released.pth")
    main(command(images, tmp_path / "on", finetune=None, resume=tmp_path / "released.pth"))
    assert [line["epoch"] for line in log_lines(tmp_path / "on")] == [2]
    assert log_lines(tmp_path / "on")[0]["train_lr"] == log_lines(tmp_path / "whole")[1]["train_lr"]
    if args:
        with pytest.raises(UserError, match=r"--lr 0.1 \(was 0.05\)"):
            main(command(images, finetune=None, resume=tmp_path / "released.pth", lr=0.1))


def test_every_flag_that_decides_the_weights_must_be_that_of_the_run_to_continue():
    """The others: files, whose labels and classes are compared, what a machine does, when and where it is told."""
    others = set(vars(parse(["--data-set", "DEMO"]))) - set(RECIPE)
    assert others == {
        "data_path", "train_path", "val_path", "labels", "val_labels", "subset_ids", "missing", "val_fraction",
        "inat_category", "features", "finetune", "resume", "auto_resume", "checkpoint_key", "allow_http",
        "teacher_path", "batch_size", "amp", "compile", "cache", "num_workers", "pin_mem", "device", "dist_eval",
        "model_ema", "model_ema_force_cpu", "eval", "eval_ema", "eval_interval", "save_interval", "skip_nonfinite",
        "start_epoch", "minutes", "output_dir", "tensorboard", "verbose", "recipe", "config", "given",
    }  # fmt: skip


def test_an_average_that_a_checkpoint_lacks_starts_from_its_weights():
    torch.manual_seed(0)
    model, saved, said = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    learner = argparse.Namespace(
        model=model, optimizer=optimizer, scheduler=None, scaler=None, ema=ModelEmaV3(model), kept={}
    )
    state = {"model": saved.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    restore(learner, state, "old.pth", said.append, 1)
    assert same_weights(learner.ema.module.state_dict(), saved.state_dict())
    assert said == ["old.pth holds no EMA: it starts from the checkpoint's weights"]


def test_what_cross_validation_has_found_goes_on_with_the_run(images, tmp_path):
    main(command(images, tmp_path / "begun", epochs=2))
    state = checkpoint(tmp_path / "begun", "checkpoint_previous.pth")
    found = {"temperature": 0.5, "verdict": {"kept": "finetuned"}}
    torch.save(state | {"args": state["args"] | found}, tmp_path / "asked.pth")
    main(command(images, tmp_path / "on", finetune=None, resume=tmp_path / "asked.pth", epochs=2))
    assert checkpoint(tmp_path / "on")["args"] | found == checkpoint(tmp_path / "on")["args"]


def test_accumulated_passes_follow_the_same_curve(images, tmp_path, capsys):
    main(command(images, tmp_path / "one"))
    main(command(images, tmp_path / "many", batch_size=4, global_batch_size=24))
    one, many = log_lines(tmp_path / "one"), log_lines(tmp_path / "many")
    assert [line["train_loss"] for line in many] == pytest.approx([line["train_loss"] for line in one], rel=1e-5)
    assert [line["train_lr"] for line in many] == [line["train_lr"] for line in one]
    assert "holds an earlier run" not in capsys.readouterr().out
    main(command(images, tmp_path / "one", epochs=3, start_epoch=3))
    assert "holds an earlier run: 6 files are set aside in" in capsys.readouterr().out
    assert [line["epoch"] for line in log_lines(tmp_path / "one")] == [3]


@pytest.mark.parametrize("wrap", [
    lambda w: w,
    lambda w: {"model": w, "args": argparse.Namespace(lr=1)},
    lambda w: {"state_dict": {f"module.{key}": value for key, value in w.items()}},
    lambda w: {"teacher": {f"backbone.{k}": v for k, v in w.items()} | {"head.last_layer.weight_v": torch.ones(2)}},
])  # fmt: skip
@pytest.mark.parametrize("flag", ["resume", "finetune"])
def test_wrapped_weights_load_with_either_word(images, tmp_path, capsys, wrap, flag):
    weights = torch.load(images / "weights.pth", weights_only=True)
    torch.save(wrap(weights), tmp_path / "wrapped.pth")
    main(command(images, tmp_path / "out", epochs=1, lr=0, min_lr=0, warmup_lr=0, weight_decay=0,
                 **{"finetune": None, flag: tmp_path / "wrapped.pth"}))  # fmt: skip
    trained = checkpoint(tmp_path / "out")
    assert all(torch.equal(trained["model"][key], weights[key]) for key in weights)
    assert all(torch.equal(trained["model_ema"][key], weights[key]) for key in weights)  # taken after loading
    assert ("taken as pretrained weights" in capsys.readouterr().out) == (flag == "resume")


def test_the_demo_set_brings_its_own_defaults(images, tmp_path, monkeypatch, capsys):
    arrays = {key: value[:30] for key, value in pools.load_demo().items()}
    monkeypatch.setattr(pools, "load_demo", lambda: arrays)
    monkeypatch.setitem(
        building.DEFAULTS, "DEMO", dataclasses.replace(building.SMALL_GREY, pretrained=images / "demo.pth")
    )
    main(["--data-set", "DEMOSUBSET", "--subset_ids", str(images / "subset.json"), "--epochs", "1", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "training on 20 of 30 images, 10 classes, 32 per step on 1 process (cpu), evaluating on 30" in said
    assert f"pretrained weights: {images / 'demo.pth'}" in said
    args = parse(["--data-set", "DEMO", "--model", "deit_tiny_patch16_224"])
    defaults = building.resolve(args)[1]
    assert (args.input_size, defaults.pretrained) == (224, None)


def rates(epochs, **changes):
    args = parse(["--epochs", str(epochs)])
    vars(args).update(changes)
    optimizer = make_optimizer(args, torch.nn.Linear(2, 2), args.lr)
    scheduler, seen = make_scheduler(args, optimizer, 1), []
    for epoch in range(1, epochs + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    return seen


def test_the_released_rates_per_epoch():
    """BiLAF's table: one epoch at the warm-up rate, linear to the base rate, cosine not offset by the warm-up."""
    seen = rates(1000)
    assert [round(rate, 4) for rate in seen[:5]] == [0, 0.0006, 0.0012, 0.0018, 0.0024]
    assert seen[0] == 1e-6
    assert seen[5] == pytest.approx(3e-3, rel=1e-3)
    assert seen[-1] == pytest.approx(1e-5, rel=1e-2)
    cosine = 1e-5 + (3e-3 - 1e-5) * (1 + torch.cos(torch.tensor(torch.pi * 300 / 1000)).item()) / 2
    assert seen[300] == pytest.approx(cosine, rel=1e-5)


@pytest.mark.parametrize(("noise", "noisy"), [([0.5], range(10, 20)), ([0.25, 0.5], range(5, 10)), (None, [])])
def test_the_rate_is_noisy_where_the_fractions_say(noise, noisy):
    quiet, loud = rates(20), rates(20, lr_noise=noise)
    assert [epoch for epoch in range(20) if quiet[epoch] != loud[epoch]] == list(noisy)


def test_the_rate_scales_with_the_global_batch(images, tmp_path):
    main(command(images, tmp_path / "a", epochs=1, warmup_epochs=0, batch_size=32, lr=0.016))
    main(command(images, tmp_path / "b", epochs=1, warmup_epochs=0, batch_size=16, global_batch_size=64, lr=0.016))
    assert log_lines(tmp_path / "a")[0]["train_lr"] == pytest.approx(0.001)
    assert log_lines(tmp_path / "b")[0]["train_lr"] == pytest.approx(0.002)


def test_a_loss_that_is_not_finite_stops_the_run(images, tmp_path):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at epoch \d, step \d of 3.*smaller --lr"):
        main(command(images, tmp_path / "out", epochs=3, lr=1e12, warmup_epochs=0))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_distillation_loss_is_deits(kind):
    """The loss alone; what it does to a student's weights is tested with the flags."""
    from deit.losses import Criterion

    draw = torch.Generator().manual_seed(0)
    logits, student, teach = (torch.randn(6, 4, generator=draw) for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = Criterion(0.1, lambda images: teach, kind, 0.3, 2.0)(None, (logits, student), labels)
    base = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    if kind == "hard":
        term = torch.nn.CrossEntropyLoss()(student, teach.argmax(1))
    else:
        p, q = (teach / 2).softmax(1), (student / 2).softmax(1)
        term = (p * (p.log() - q.log())).sum() * 4 / p.numel()
    torch.testing.assert_close(loss / 6, 0.7 * base + 0.3 * term)


def test_training_from_the_demo_backbone_learns(images, tmp_path):
    main(command(images, tmp_path / "out", epochs=8, **DEMO | {"finetune": building.DEMO_WEIGHTS}))
    losses = [line["train_loss"] for line in log_lines(tmp_path / "out")]
    assert losses[-1] < losses[0]
