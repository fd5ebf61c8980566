"""Flags of the recipe, each seen in the weights or the loss of a whole run; and every family of models trains."""

import json
import math

import pytest
import timm
import torch

from data_selection.embedding.backbones import build_model
from deit.learner import building
from deit.main import main
from tests.support.trainer_runs import DEMO, checkpoint, command, log_lines, make_images, write_images

NESTEROV = 1.9  # the first step of SGD with Nesterov momentum 0.9 moves by 1.9 times rate times gradient


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def one_step(images, tmp_path):
    """A function of flags: run one epoch of one step. Returns ({name: change of the weights}, its line of log.txt)."""

    def run(**flags):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        (images / "four.json").write_text("[2, 3, 4, 5]")
        still = {"warmup_epochs": 0, "weight_decay": 0, "drop_path": 0, "subset_ids": images / "four.json"}
        main(command(images, out, epochs=1, **still | flags))
        before, after = torch.load(images / "weights.pth", weights_only=True), checkpoint(out)["model"]
        return {name: after[name] - before[name] for name in before if not name.startswith("head.")}, log_lines(out)[0]

    return run


@pytest.mark.parametrize("sched", ["cosine", "none"])
def test_layer_decay_slows_each_layer_by_its_depth(one_step, sched):
    plain, decayed = one_step(sched=sched)[0], one_step(sched=sched, layer_decay=0.5)[0]
    layers = ["patch_embed.proj.weight", *(f"blocks.{i}.mlp.fc1.weight" for i in range(6))]
    ratios = [(decayed[name].norm() / plain[name].norm()).item() for name in layers]
    assert ratios == pytest.approx([0.5**below for below in (7, 6, 5, 4, 3, 2, 1)], rel=2e-2)
    for name in ("cls_token", "pos_embed"):
        assert (decayed[name].norm() / plain[name].norm()).item() == pytest.approx(ratios[0], rel=2e-2)


def test_label_smoothing_moves_the_loss_linearly(one_step):
    none, some, more = (one_step(smoothing=value, lr=0, min_lr=0)[1]["train_loss"] for value in (0, 0.3, 0.6))
    assert abs(some - none) > 1e-5
    assert more - none == pytest.approx(2 * (some - none), rel=1e-2)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_clipping_bounds_the_step(one_step, images, tmp_path, amp):
    """In fp16 the gradients are scaled: clipped before they are unscaled, they would be thousands of times smaller."""
    limit = 0.01
    moved, line = one_step(clip_grad=limit, amp=amp)
    length = math.sqrt(sum(change.double().square().sum().item() for change in moved.values()))
    bound = NESTEROV * line["train_lr"] * limit
    assert 0.1 * bound < length <= 1.01 * bound  # the head, left out here, takes its part
    if amp == "off":
        free = one_step()[0]
        assert math.sqrt(sum(change.double().square().sum().item() for change in free.values())) > 2 * bound


def test_precisions_differ_as_asked(images, tmp_path):
    losses, scales = {}, {}
    (tmp_path / "four.json").write_text("[2, 3, 4, 5]")
    for amp in ("off", "bf16", "fp16"):
        main(command(images, tmp_path / amp, epochs=1, amp=amp, subset_ids=tmp_path / "four.json"))
        losses[amp] = log_lines(tmp_path / amp)[0]["train_loss"]
        scales[amp] = checkpoint(tmp_path / amp)["scaler"]
    assert len(set(losses.values())) == 3
    assert losses["fp16"] == pytest.approx(losses["off"], rel=1e-2)
    assert scales["fp16"]["scale"] >= 1
    assert not scales["bf16"]
    assert not scales["off"]


FAMILIES = {  # timm's names, made small
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2, 1)},
    "convnext_atto": {},
    "resnet10t": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_two_steps(tmp_path, monkeypatch, name):
    def small(wanted, classes, img_size=None, **rates):
        size = FAMILIES[name] if wanted == name else {}
        return timm.create_model(wanted, num_classes=classes, **size, **{k: v for k, v in rates.items() if v})

    monkeypatch.setattr(building, "build_model", small)
    names = ["a/1.png", "b/22.png"]
    for split in ("train", "val"):
        write_images(tmp_path / split, names)
    (tmp_path / "subset.json").write_text("[0, 1]")
    flags = {"model": name, "input_size": 64, "batch_size": 3, "finetune": "none", "num_workers": 0}
    if "distilled" in name:
        torch.save({"model": build_model("resnet10t", 2).state_dict()}, tmp_path / "teacher.pth")
        flags |= {"distillation_type": "hard", "teacher_model": "resnet10t", "teacher_path": tmp_path / "teacher.pth"}
    main(command(tmp_path, tmp_path / "out", epochs=1, warmup_epochs=0, **flags))
    saved, line = checkpoint(tmp_path / "out"), log_lines(tmp_path / "out")[0]
    assert math.isfinite(line["train_loss"])
    momenta = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    assert len(momenta) == len(list(small(name, 2).parameters()))
    assert sum(bool(momentum.any()) for momentum in momenta) > 0.9 * len(momenta)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["last"]["epoch"] == 1


def test_compiled_training_draws_and_learns_the_same(images, tmp_path, monkeypatch):
    """The graph is traced and the masks of the drop layers come from the step, but no compiler is needed."""
    compiled, compile_model = [], torch.nn.Module.compile

    def traced(model):
        compiled.append(model)
        compile_model(model, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    (tmp_path / "eight.json").write_text(str([*range(2, 10)]))
    flags = {"drop_path": 0.3, "drop": 0.1, "epochs": 2, "subset_ids": tmp_path / "eight.json", "no_model_ema": True}
    flags |= DEMO  # it has fewer layers to trace
    main(command(images, tmp_path / "plain", **flags))
    main(command(images, tmp_path / "compiled", compile=True, **flags))
    assert len(compiled) == 1
    for plain, other in zip(log_lines(tmp_path / "plain"), log_lines(tmp_path / "compiled"), strict=True):
        assert other["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    one, two = (checkpoint(tmp_path / name)["model"] for name in ("plain", "compiled"))
    assert list(one) == list(two)
