"""Self-training: soft labels from the pool's graph, epochs on the whole pool, and continuing them."""

import csv
import json

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.judging import smoothed
from deit import crossval, selftrain
from deit import epochs as deit_epochs
from deit.losses import Criterion
from deit.main import main
from deit.samplers import plan_epoch
from deit.selftrain import round_order
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images, train_on

FLAGS = {
    "recipe": "few-shot", "mode": "self-train", "rounds": 2, "folds": 0, "epochs": 2, "global_batch_size": 8,
    "restarts": 1, "batch_size": 8, "lr": 0.01, "amp": "off", "num_workers": 0, "warmup_epochs": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(selftrain, "CHUNK", 2)


def train(images, output, **changes):
    main(command(images, output, **FLAGS | changes))


def test_targets_weigh_what_is_certain():
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
    targets = selftrain.soft_targets(probabilities, [3], torch.tensor([0]))
    assert targets[3].tolist() == [selftrain.OWN_WEIGHT, 0, 0]
    assert targets[1].sum() == pytest.approx(0, abs=1e-6)
    sharp = np.array([0.9, 0.1]) ** selftrain.SHARPEN
    assert targets[0, 0] / targets[0].sum() == pytest.approx(sharp[0] / sharp.sum(), rel=1e-5)

    def certainty(row):
        sharp = np.asarray(row) ** selftrain.SHARPEN
        sharp = sharp[sharp > 0] / sharp.sum()
        return 1 + (sharp * np.log(sharp)).sum() / np.log(3)

    weights = [certainty(row) for row in probabilities.tolist()]
    assert targets[:3].sum(1).tolist() == pytest.approx([w / np.mean(weights) for w in weights[:3]], abs=1e-5)


def test_every_image_is_taught_its_own_target():
    class Data:
        def augmented(self, parts, epoch):
            return ((part.indices, part.rows) for part in parts)

    parts = [part for step in plan_epoch(torch.randperm(24), 8, 4) for part in step.parts]
    taught = list(selftrain.SoftImages(Data(), 2 * torch.arange(24)).augmented(parts, 1))
    assert all(targets.equal(2 * images) for images, targets in taught)
    assert sorted(torch.cat([images for images, _ in taught]).tolist()) == list(range(24))


def test_every_round_sees_the_whole_pool_and_a_label_in_each_step(images, tmp_path, monkeypatch):
    seen = []
    real = selftrain.plan_epoch

    def noted(order, *args):
        seen.append(order)
        return real(order, *args)

    monkeypatch.setattr(selftrain, "plan_epoch", noted)
    train(images, tmp_path)
    lines = log_lines(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(3 + len(seen)))
    chunks = len(seen) // 2
    labelled = set(json.loads((images / "subset.json").read_text()))
    for part in (seen[:chunks], seen[chunks:]):
        order = torch.cat(part).tolist()
        steps = [order[i : i + 8] for i in range(0, len(order), 8)]
        assert {i for step in steps for i in step[:-1]} == set(range(24))
        assert all(step[-1] in labelled for step in steps)
    assert seen[0].tolist() != seen[chunks].tolist()


def test_what_a_run_leaves(images, tmp_path):
    train(images, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["mode"] == "self-train"
    assert 0 <= result["graph"]["acc1"] <= 100
    with (tmp_path / "pool_predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert len(rows) == 24
    assert {row["label"] for row in rows} <= {"class0", "class1"}
    known = json.loads((images / "subset.json").read_text())
    assert all(rows[i]["label"] == rows[i]["file"].split("/")[0] and rows[i]["confidence"] == "1.0000" for i in known)


def test_what_is_said_of_the_pool_is_calibrated_and_what_teaches_it_asks_no_temperature(images, tmp_path, monkeypatch):
    asked, real = [], smoothed.fit_smoothed

    def noted(*parts, **words):
        asked.append((words["calibrate"], real(*parts, **words)))
        return asked[-1][1]

    monkeypatch.setattr(smoothed, "fit_smoothed", noted)
    monkeypatch.setattr(smoothed, "temperature", lambda *_: 3.0)
    train(images, tmp_path)
    assert [calibrate for calibrate, _ in asked] == [False, False, True]
    with (tmp_path / "pool_predictions.csv").open(newline="") as handle:
        said = [float(row["confidence"]) for row in csv.DictReader(handle)]
    probabilities = smoothed.at_temperature(asked[-1][1].corrected, 3.0)
    assert said == pytest.approx(probabilities.amax(1).tolist(), abs=1e-4)
    assert (probabilities.amax(1) - asked[-1][1].corrected.amax(1)).abs().max() > 0.01


@pytest.mark.parametrize("opt", ["adamw", "lookahead_adamw", "lamb"])
def test_an_optimiser_knows_nothing_of_the_rounds_before(images, tmp_path, monkeypatch, opt):
    """Lookahead keeps its weights in an inner optimiser, lamb counts its steps beside the rates."""
    seen, real = [], selftrain.begin_round

    def noted(job, learner, data, number):
        before = learner.optimizer.state_dict()
        targets = real(job, learner, data, number)
        after = learner.optimizer.state_dict()
        steps = [[group.get("step", 0) for group in state["param_groups"]] for state in (before, after)]
        seen.append((len(before["state"]), len(after["state"]), *(sum(some) for some in steps)))
        return targets

    monkeypatch.setattr(selftrain, "begin_round", noted)
    train(images, tmp_path, opt=opt)
    assert len(seen) == 2
    for had, has, counted, counts in seen:
        assert had > 0 == has
        assert counts == 0
        assert counted > 0 or opt != "lamb"


def test_no_model_that_was_asked_says_how_sure_the_taught_one_may_be(images, tmp_path, monkeypatch):
    for mode, found in (("self-train", None), ("lp-ft", 0.5)):
        monkeypatch.setattr(crossval, "temperature", lambda *_: 0.5)
        train(images, tmp_path / mode, mode=mode, rounds=1 if mode == "self-train" else None, folds=2)
        assert json.loads((tmp_path / mode / "result.json").read_text())["temperature"] == found


def test_a_loss_that_is_not_finite_names_the_batch_of_the_pool(images, tmp_path, monkeypatch):
    class Broken(Criterion):
        def __call__(self, *batch):
            return super().__call__(*batch) * float("nan")

    seen = []
    monkeypatch.setattr(selftrain, "Criterion", Broken)
    monkeypatch.setattr(selftrain, "round_order", lambda *args: seen.append(round_order(*args)) or seen[0])
    with pytest.raises(UserError, match=r"nan at epoch 3, step 1 of 2: .*ids of its batch are in \S+nonfinite_batch"):
        train(images, tmp_path)
    told = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    assert told == {"epoch": 3, "step": 1, "ids": seen[0][:8].tolist()}


def test_targets_of_another_run_are_refused(images, tmp_path, monkeypatch):
    real = deit_epochs.one_epoch

    def broken(job, learner, data, epoch, tally):
        if epoch == 4:
            raise KeyboardInterrupt
        return real(job, learner, data, epoch, tally)

    monkeypatch.setattr(deit_epochs, "one_epoch", broken)
    with pytest.raises(KeyboardInterrupt):
        train(images, tmp_path)
    monkeypatch.setattr(deit_epochs, "one_epoch", real)
    path = tmp_path / "soft_targets_1.npy"
    np.save(path, np.load(path) * 2)
    with pytest.raises(UserError, match=r"soft_targets_1\.npy is not of the run to continue"):
        train(images, tmp_path, auto_resume=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"soft_targets_1\.npy of the run to continue cannot be read"):
        train(images, tmp_path, auto_resume=True)


def test_two_processes_do_what_one_does(images, tmp_path):
    for count in (1, 2):
        train_on(count, command(images, tmp_path / str(count), **FLAGS | {"rounds": 1}), tmp_path)
    one, two = ([line["train_loss"] for line in log_lines(tmp_path / name)] for name in ("1", "2"))
    assert one == pytest.approx(two, rel=1e-3)
    predictions = [(tmp_path / name / "pool_predictions.csv").read_text().splitlines() for name in ("1", "2")]
    assert [row.split(",")[:2] for row in predictions[0]] == [row.split(",")[:2] for row in predictions[1]]


def test_no_label_that_is_held_out_teaches(images, tmp_path, monkeypatch):
    told, real = [], smoothed.fit_smoothed
    monkeypatch.setattr(
        smoothed, "fit_smoothed", lambda rows, labels, ids, **rest: told.append(ids) or real(rows, labels, ids, **rest)
    )
    train(images, tmp_path, val_fraction=0.25)
    names = checkpoint(tmp_path)["args"]["train_names"]
    with (tmp_path / "pool_predictions.csv").open(newline="") as handle:
        known = [i for i, row in enumerate(csv.DictReader(handle)) if row["file"] in names]
    assert len(known) == 15
    assert [sorted(ids.tolist()) for ids in told] == [known] * 3  # two rounds and the last word


def test_no_test_image_teaches(images, tmp_path):
    train(images, tmp_path / "all")
    other = make_images(tmp_path / "images")
    for path in sorted(other.glob("val/*/*.png"))[::2]:
        path.unlink()
    train(other, tmp_path / "half")
    whole, half = checkpoint(tmp_path / "all"), checkpoint(tmp_path / "half")
    assert all(torch.equal(whole["model"][key], half["model"][key]) for key in whole["model"])


@pytest.fixture
def begun(monkeypatch):
    """[(chunk's `done`, whether the optimizer is new, whether the average is the model, the rates of its steps)]."""
    real, seen = selftrain.train_one_epoch, []

    def noted(learner, data, steps, epoch, *, done, on_step, **rest):
        rates = []
        pairs = zip(learner.ema.module.parameters(), learner.model.parameters(), strict=True)
        seen.append((done, not learner.optimizer.state, all(a.equal(b) for a, b in pairs), rates))

        def step(*told):
            rates.append(learner.optimizer.param_groups[0]["lr"])
            on_step(*told)

        return real(learner, data, steps, epoch, done=done, on_step=step, **rest)

    monkeypatch.setattr(selftrain, "train_one_epoch", noted)
    return seen


def test_every_round_begins_anew_and_its_chunks_are_one_schedule(images, tmp_path, begun, monkeypatch):
    train(images, tmp_path / "parts", model_ema=True)
    parts = begun.copy()
    assert [chunk[:3] for chunk in parts] == 2 * [(0, True, True), (2, False, False)]
    begun.clear()
    monkeypatch.setattr(selftrain, "CHUNK", 100)
    train(images, tmp_path / "whole", model_ema=True)
    for whole, (first, second) in zip(begun, zip(parts[::2], parts[1::2], strict=True), strict=True):
        assert first[3] + second[3] == whole[3]
        assert len(set(whole[3])) == 4


def test_steps_left_out_of_the_pool_are_counted(images, tmp_path, monkeypatch):
    class Broken(Criterion):
        calls = 0

        def __call__(self, *batch):
            Broken.calls += 1
            return super().__call__(*batch) * (float("nan") if Broken.calls in (2, 3, 6) else 1)

    monkeypatch.setattr(selftrain, "Criterion", Broken)
    train(images, tmp_path, skip_nonfinite=True)
    assert json.loads((tmp_path / "result.json").read_text())["skipped_steps"] == 3
    assert [line.get("skipped_steps", 0) for line in log_lines(tmp_path)][-4:] == [1, 2, 3, 3]


def test_the_graph_spreads_the_labels_over_the_test_images_too(images, tmp_path, monkeypatch):
    class Probe:
        corrected_temperature = 1.0

        def predict(self, features, *, corrected=False):
            right = [0] * (len(features) // 2) + [1] * (len(features) - len(features) // 2)
            return torch.eye(2)[right if corrected else [1 - label for label in right]]

    real = selftrain.smoothed_probe
    monkeypatch.setattr(selftrain, "smoothed_probe", lambda *asked, **words: (Probe(), real(*asked, **words)[1]))
    train(images, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["graph"]["acc1"] == 100
