"""The few-shot recipe's parts against plain torch and timm driven by hand, and the whole of it, stopped and resumed."""

import json
import os
import signal

import pytest
import timm
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy

from data_selection.common.distributed import World
from deit import epochs as deit_epochs
from deit import timing
from deit.engine import train_one_epoch
from deit.learner.building import batch_norms, build_learner, resolve
from deit.main import main
from deit.options import parse
from deit.runs.meters import RunLog
from deit.samplers import plan_epoch, split_rows
from tests.support.trainer_runs import checkpoint, few_shot, log_lines, make_colours, train_on

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
SIZE, CLASSES, BATCH = 32, 3, 4
pytestmark = pytest.mark.usefixtures("one_thread")


class Batches:
    """Images and labels that are the same in every epoch, as train_one_epoch takes them."""

    def __init__(self, count=12):
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, SIZE, SIZE, generator=draw)
        self.labels = torch.arange(count) % CLASSES

    def augmented(self, parts, epoch):
        for part in parts:
            yield self.images[part.indices], self.labels[part.indices]


def train(learner, epoch=1, data=None, batch=BATCH, on_step=None):
    """One epoch of three steps of BATCH images each, `batch` at a time."""
    data = data or Batches()
    steps = plan_epoch(torch.arange(len(data.labels)), BATCH, batch)
    train_one_epoch(learner, data, steps, epoch, classes=CLASSES, seed=0, on_step=on_step)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A function of a model's name: a file of weights with batch norm statistics unlike those of a fresh model."""

    def make(name):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=CLASSES)
        for layer in batch_norms(model):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
        torch.save(model.state_dict(), path)
        return path

    return make


def learner_of(name, source, updates=3, **flags):
    """The learner of the few-shot recipe but for `flags`."""
    words = ["--data-set", "FOLDER", "--model", name, "--input-size", str(SIZE), "--device", "cpu", "--amp", "off"]
    for key, value in ({"epochs": 2} | flags).items():
        words += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    args = parse(words)
    resolve(args)
    return build_learner(args, ALONE, CLASSES, BATCH, updates, RunLog("", False), str(source))


PLAIN = {"opt": "SGD", "weight_decay": 0, "sched": "none", "drop": 0, "no_model_ema": True, "lr": 6.4, "head_rate": 1}


@pytest.mark.parametrize(("kind", "batch"), [("fixed", 4), ("fixed", 2), ("train", 4)])
def test_steps_with_fixed_batch_norm_are_plain_torch_with_those_layers_in_evaluation_mode(weights, kind, batch):
    source = weights("test_resnet")
    learner = learner_of("test_resnet", source, batch_norm=kind, **PLAIN)
    train(learner, batch=batch)

    plain, data = timm.create_model("test_resnet", num_classes=CLASSES), Batches()
    plain.load_state_dict(torch.load(source, weights_only=True))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    plain.train()
    for layer in batch_norms(plain) if kind == "fixed" else []:
        layer.eval()
    for images, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        cross_entropy(plain(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(learner.model.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["fixed", "train"])
def test_fixed_batch_norm_keeps_its_statistics_and_learns_its_weights(weights, kind):
    source = weights("test_resnet")
    before = torch.load(source, weights_only=True)
    learner = learner_of("test_resnet", source, batch_norm=kind)
    for epoch in (1, 2):
        train(learner, epoch)
    after, layers = learner.model.state_dict(), batch_norms(learner.model)
    buffers = {name for name, _ in learner.model.named_buffers()}
    assert len(buffers) == 3 * len(layers) > 9
    assert {torch.equal(before[name], after[name]) for name in buffers} == {kind == "fixed"}
    norms = {id(parameter) for layer in layers for parameter in layer.parameters()}
    moved = [name for name, p in learner.model.named_parameters() if id(p) in norms]
    assert len(moved) == 2 * len(layers)
    assert not any(torch.equal(before[name], after[name]) for name in moved)


@pytest.mark.parametrize(("warmup", "steps"), [({"warmup_steps": 2}, 2), ({"warmup_steps": 99}, 3),
                                               ({"warmup_steps": 0}, 0), ({"warmup_epochs": 2}, 6)])  # fmt: skip
def test_every_step_has_the_rate_of_timms_schedule(weights, warmup, steps):
    """Four epochs of three steps; warm-up takes at most a quarter of them, where it is given in steps."""
    flags = {"epochs": 4, "lr": 6.4, "min_lr": 0.001, "warmup_lr": 0.002, **warmup}
    source = weights("test_resnet")

    def rates(learner, epochs):
        seen = []
        for epoch in epochs:
            train(learner, epoch, on_step=lambda *_: seen.append((learner.rate, learner.optimizer.state_dict())))
        for rate, state in seen:
            assert sorted({round(g["lr"] / rate, 6) for g in state["param_groups"]}) == [1, round(1280 / 96, 6)]
        return [rate for rate, _ in seen]

    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    oracle = CosineLRScheduler(
        other, t_initial=12, lr_min=0.001, warmup_t=steps, warmup_lr_init=0.002, t_in_epochs=False
    )
    expected = []
    for update in range(12):
        oracle.step_update(update)
        expected.append(other.param_groups[0]["lr"])
    assert rates(learner_of("test_resnet", source, **flags), range(1, 5)) == pytest.approx(expected)
    assert len(set(expected)) >= 11
    assert expected[0] == (0.002 if steps else 0.05)

    resumed = learner_of("test_resnet", source, **flags)
    resumed.scheduler.step(2)  # as checkpoints.restore does after epoch 2
    assert rates(resumed, [3]) == pytest.approx(expected[6:9])


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_timms(weights, warmup):
    """Its warm-up counts steps from 1 over all epochs, as timm's own program does."""
    flags = {} if warmup else {"no_model_ema_warmup": True}
    learner = learner_of("test_resnet", weights("test_resnet"), drop_path=0, **flags)
    oracle, steps = ModelEmaV3(learner.model, decay=0.99, use_warmup=warmup), []

    def follow(*_):
        steps.append(len(steps) + 1)
        oracle.update(learner.model, step=steps[-1] if warmup else None)

    learner.optimizer.register_step_post_hook(follow)
    for epoch in (1, 2):
        train(learner, epoch)
        average = learner.ema.module.state_dict()
        assert all(torch.equal(average[name], value) for name, value in oracle.module.state_dict().items())
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not torch.equal(average["fc.weight"], learner.model.state_dict()["fc.weight"])


def dropped(learner, images, rows, epoch=1, step=0):
    """What the classifier sees of images in training, which are rows of a step's batch."""
    seen = []
    hook = learner.model.get_classifier().register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    learner.draws.begin(epoch, step, rows, CPU)
    learner.model.train()
    for layer in learner.fixed:
        layer.eval()
    with torch.no_grad():
        learner.model(images)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit"])
def test_dropout_before_the_classifier_belongs_to_the_image_not_to_the_process(weights, name):
    """An EfficientNet of timm calls a function for its own dropout, which no layer could be put in the place of."""
    source, images = weights(name), Batches(7).images
    learner, rows = learner_of(name, source, drop=0.5), torch.arange(7)
    with torch.no_grad():
        kept = learner.model.eval()
        features = kept.forward_head(kept.forward_features(images), pre_logits=True)
        logits = kept(images)
        plain = timm.create_model(name, num_classes=CLASSES, **({"img_size": SIZE} if "vit" in name else {})).eval()
        plain.load_state_dict(kept.state_dict())
        torch.testing.assert_close(plain(images), logits, atol=1e-5, rtol=1e-4)  # absent in evaluation
    live = features.abs() > 1e-6  # what ReLU has left

    def mask(learner, some=rows, **when):
        return (dropped(learner, images[some], some, **when) != 0) & live[some]

    whole = mask(learner)
    torch.testing.assert_close(dropped(learner, images, rows), features * whole * 2, atol=1e-5, rtol=1e-4)
    assert whole[live].float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(mask(learner), whole)
    for part in split_rows(7, 2):
        assert torch.equal(mask(learner, part), whole[part])
    other_seed = learner_of(name, source, drop=0.5, seed=1)
    for other in (mask(learner, epoch=2), mask(learner, step=1), mask(other_seed)):
        assert 0.3 < (other != whole)[live].float().mean() < 0.7
    assert torch.equal(mask(learner_of(name, source, drop=0)), live)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_colours(tmp_path_factory.mktemp("images"))


def test_dropout_is_the_same_on_two_processes(images, tmp_path):
    flags = {"model": "test_efficientnet", "input_size": SIZE, "finetune": "none", "folds": 0, "epochs": 1, "lr": 0.05,
             "head_scale": 1}  # fmt: skip
    for processes in (1, 2):
        words = few_shot(images, tmp_path / str(processes), drop=0.5, **flags | {"batch_size": 4 // processes})
        train_on(processes, words, tmp_path)
    main(few_shot(images, tmp_path / "none", drop=0, **flags))
    one, two, none = ([line["train_loss"] for line in log_lines(tmp_path / name)] for name in ("1", "2", "none"))
    assert two == pytest.approx(one, rel=1e-4)
    assert none[0] == one[0]  # of the head, fitted without
    assert abs(none[1] - one[1]) > 1e-3


@pytest.mark.parametrize("flags", [{}, {"model": "test_efficientnet", "input_size": SIZE, "finetune": "none",
                                       "folds": 0, "lr": 0.02}])  # fmt: skip
def test_the_whole_recipe_stopped_and_resumed_ends_as_if_unbroken(images, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(timing, "measured", lambda job: {"off": 1.0, "bf16": 2.0})
    flags = flags | {"epochs": 3, "restarts": 2, "amp": None, "auto_resume": True}
    main(few_shot(images, tmp_path / "whole", **flags))
    real = deit_epochs.one_epoch

    def warned(job, learner, data, epoch, tally):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(job, learner, data, epoch, tally)

    monkeypatch.setattr(deit_epochs, "one_epoch", warned)
    main(few_shot(images, tmp_path / "part", **flags))
    assert checkpoint(tmp_path / "part")["epoch"] == 1
    assert len(checkpoint(tmp_path / "part")["sofar"]["losses"]) == 1
    assert not (tmp_path / "part" / "result.json").exists()
    monkeypatch.setattr(deit_epochs, "one_epoch", real)
    main(few_shot(images, tmp_path / "part", **flags))

    assert log_lines(tmp_path / "part") == log_lines(tmp_path / "whole")
    assert [line["epoch"] for line in log_lines(tmp_path / "part")] == [0, 1, 2, 3, 4, 5, 6]
    one, two = (checkpoint(tmp_path / name) for name in ("whole", "part"))
    for key in ("model", "model_ema"):
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    states = [run["optimizer"]["state"] for run in (one, two)]
    for parameter, state in states[0].items():
        assert all(torch.equal(value, states[1][parameter][name]) for name, value in state.items())
    told = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "part")]
    for key in ("verdict", "last", "best", "ema", "mode", "recipe"):
        assert told[0][key] == told[1][key]
    assert (told[0]["recipe"], told[0]["mode"]) == ("few-shot", "lp-ft")
    assert flags.get("folds") == 0 or told[0]["verdict"]["kept"] == "finetuned"
