"""Cross-validation on the labels: the parts, the rule, and runs in which finetuning wins, or is spoilt on purpose."""

import csv
import io
import json
import types

import numpy as np
import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.images.pools import Pool
from deit import crossval
from deit import epochs as deit_epochs
from deit.crossval import Asked, asked_table, compare, one_part, split, told
from deit.job import open_job
from deit.learner.building import build
from deit.learner.linear import logistic_regression
from deit.main import main
from deit.options import parse
from deit.runs.meters import RunLog
from tests.support.trainer_runs import checkpoint, few_shot, log_lines, make_colours, train_on

ALONE = World(0, 1, torch.device("cpu"))
SPOILT = {"lr": 100}  # of 512 images: 0.8 for AdamW, which leaves nothing of the backbone
STILL = {"lr": 0, "min_lr": 0, "warmup_lr": 0, "epochs": 1}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_colours(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def won(one_thread, images, tmp_path_factory):
    """The folder of a run in which finetuning wins: the backbone is blind to the colour that is asked for."""
    folder = tmp_path_factory.mktemp("won")
    main(few_shot(images, folder))
    return folder


def result(folder):
    return json.loads((folder / "result.json").read_text())


def same_weights(one, two):
    a, b = checkpoint(one), checkpoint(two)
    pairs = [(a[key][name], b[key][name]) for key in ("model", "model_ema") for name in a[key]]
    return all(torch.equal(x, y) for x, y in pairs)


def pool_of(labels):
    return Pool(arrays=np.zeros((len(labels), 2, 2), np.uint8), labels=labels, classes=max(labels) + 1)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("labels", [[0] * 9 + [1] * 4 + [2] * 7, [0, 1, 2, 3] * 5, [0, 1]])
def test_the_parts_are_a_partition_with_every_class_spread_evenly(labels, count):
    pool, ids = pool_of([9, 9, *labels]), list(range(2, 2 + len(labels)))
    parts = split(ids[::-1], pool, count, 0)
    assert len(parts) == min(count, len(labels))
    assert sorted(i for _, left in parts for i in left) == ids
    for train, left in parts:
        assert sorted(train + left) == ids
        assert train == sorted(train)
        assert left == sorted(left)
        for label in set(labels):
            held = sum(pool.label(i) == label for i in left)
            assert labels.count(label) // len(parts) <= held <= -(-labels.count(label) // len(parts))


def test_the_parts_are_drawn_by_the_seed_alone():
    pool = pool_of([0, 1] * 12)
    torch.manual_seed(1)
    first = split(range(24), pool, 2, 0)
    torch.manual_seed(2)
    assert split(range(24), pool, 2, 0) == first
    assert len({str(split(range(24), pool, 2, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(("gained", "lost", "kept"), [
    (0, 0, "finetuned"), (2, 3, "finetuned"), (9, 0, "finetuned"), (0, 1, "finetuned"), (0, 2, "probe"),
    (0, 9, "probe"), (3, 6, "finetuned"), (3, 7, "probe"),
])  # fmt: skip
def test_finetuning_must_lose_more_than_chance_to_be_left_out(monkeypatch, gained, lost, kept):
    probe = torch.tensor([False] * gained + [True] * lost + [True] * 3 + [False] * 2)
    after = torch.tensor([True] * gained + [False] * lost + [True] * 3 + [False] * 2)
    ids, pool = list(range(len(probe))), pool_of([0, 1] * 11)
    parts = split(ids, pool, 2, 3)
    labels = torch.tensor([i % 2 for _, left in parts for i in left])
    guesses = [
        torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).float() for right in (probe, after)
    ]
    guesses[1] = 0.5 * guesses[1] + 0.25
    sizes = [len(left) for _, left in parts]
    answers = list(zip(guesses[0].split(sizes), guesses[1].split(sizes), strict=True))
    asked, said = [], []

    def hand_made(job, source, train, left, desc, modes):
        assert modes == ["lp-ft"]  # what the pool has not taught yet
        asked.append((train, left))
        return dict(zip(("linear", *modes), answers[len(asked) - 1], strict=True))

    monkeypatch.setattr(crossval, "one_part", hand_made)
    job = types.SimpleNamespace(
        ids=ids, held=[], train_pool=pool, args=types.SimpleNamespace(folds=2, seed=3, mode="self-train"),
        log=types.SimpleNamespace(say=said.append),
    )  # fmt: skip
    verdict, told_of = compare(job, "none")
    assert asked == parts
    assert told_of.ids == [i for _, left in parts for i in left]
    rows = list(csv.reader(io.StringIO(asked_table(told_of, pool))))
    assert rows[0] == ["file", "label", "probe", "probe_confidence", "finetuned", "finetuned_confidence"]
    assert [row[0] for row in rows[1:]] == list(map(str, ids))  # a pool without names
    assert sum(row[1] == row[2] for row in rows[1:]) == lost + 3
    assert sum(row[1] == row[4] for row in rows[1:]) == gained + 3
    assert {(row[3], row[5]) for row in rows[1:]} == {("1.0000", "0.7500")}
    assert verdict == {
        "labels": gained + lost + 5, "probe_right": lost + 3, "finetuned_right": gained + 3, "only_probe": lost,
        "only_finetuned": gained, "kept": kept,
    }  # fmt: skip
    assert said == [
        f"cross-validation {part}/2: {len(train)} labels to train, {len(left)} to ask"
        for part, (train, left) in enumerate(parts, 1)
    ]
    words = "finetuning goes on" if kept == "finetuned" else "the head on the frozen backbone is kept"
    words += ", as the lead of the probe is within a standard error" * (kept == "finetuned" and lost > gained)
    assert told(verdict) == (
        f"cross-validation on {gained + lost + 5} labels: the probe has {lost + 3} right, the finetuned model "
        f"{gained + 3} ({gained} that only it has, {lost} that only the probe has): {words}"
    )


@pytest.fixture
def by_hand(images):
    """(job, probe's weights, its answers) on every second label, the others to train on."""

    def make(**flags):
        job = open_job(parse(few_shot(images, finetune=images / "sighted.pth", **flags)), ALONE)
        model = build(job.args, 2, RunLog("", False)).eval()
        weights = torch.load(images / "sighted.pth", weights_only=True)
        assert model.load_state_dict(weights, strict=False).missing_keys == ["head.weight", "head.bias"]
        pixels = torch.stack([torch.from_numpy(np.array(job.train_pool.image(i))) for i in job.ids]).permute(0, 3, 1, 2)
        labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
        with torch.no_grad():
            seen = model.forward_head(model.forward_features((pixels / 255 - 0.286) / 0.353), pre_logits=True)
        weight, bias = logistic_regression(seen[0::2], labels[0::2], 2, job.args.smoothing)
        return job, weight, (seen[1::2].double() @ weight.T + bias).softmax(1).float()

    return make


@pytest.mark.parametrize("mode", ["lp-ft", "full"])
def test_a_part_asks_the_probe_and_what_training_makes_of_it(images, by_hand, monkeypatch, mode):
    """Without a step forward the finetuned model is what it starts from: the probe, scaled; in mode full no answer."""
    job, weight, probe = by_hand(mode=mode, batch_size=1, smoothing=0.3, **STILL)  # 3 images at a time
    heads, real = [], crossval.fit_head

    def fit_head(learner, *args, **settings):
        real(learner, *args, **settings)
        heads.append(learner.model.head.weight.detach().clone())

    monkeypatch.setattr(crossval, "fit_head", fit_head)
    answers = one_part(job, str(images / "sighted.pth"), job.ids[0::2], job.ids[1::2], "", [mode])
    torch.testing.assert_close(heads, [weight.float()], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(answers["linear"], probe, rtol=1e-2, atol=1e-3)
    begun = (0.1 * probe.log()).softmax(1) if mode == "lp-ft" else torch.full_like(probe, 1 / probe.shape[1])
    torch.testing.assert_close(answers[mode], begun, rtol=1e-2, atol=1e-3)
    labels = torch.tensor([job.train_pool.label(i) for i in job.ids[1::2]])
    assert (probe.argmax(1) == labels).sum() > 8  # of 12
    assert (probe - begun).abs().max() > 0.1


def test_a_part_is_short(images, monkeypatch):
    """At most 200 steps, at least an epoch; no word but the bar's, nothing written."""
    lengths = []
    monkeypatch.setattr(crossval, "train_epoch", lambda job, learner, data, epoch, tally: lengths.append(epoch))
    for epochs, cap, expected in ((3, 200, 3), (1000, 12, 4), (1000, 1, 1)):
        monkeypatch.setattr(crossval, "STEPS", cap)
        job = open_job(parse(few_shot(images, epochs=epochs)), ALONE)  # 12 labels: 3 steps an epoch
        one_part(job, str(images / "blind.pth"), job.ids[:12], job.ids[12:], "", ["lp-ft"])
        assert lengths == list(range(1, expected + 1))
        assert (lengths.clear(), job.args.epochs) == (None, epochs)


@pytest.mark.parametrize("mode", ["lp-ft", "full"])
def test_where_finetuning_loses_the_run_is_that_of_mode_linear(images, tmp_path, capsys, mode):
    flags = {"finetune": images / "sighted.pth", "auto_resume": True}
    words = few_shot(images, tmp_path / "spoilt", mode=mode, **flags | SPOILT)
    main(words)
    verdict = result(tmp_path / "spoilt")["verdict"]
    assert verdict["kept"] == "probe"
    assert verdict["only_probe"] > 5
    rows = list(csv.DictReader((tmp_path / "spoilt" / "cross_validation.csv").open()))
    assert [row["file"].split("/")[0] == row["label"] for row in rows] == [True] * 24
    for name, key in (("probe", "probe_right"), ("finetuned", "finetuned_right")):
        assert sum(row["label"] == row[name] for row in rows) == verdict[key]
    assert told(verdict) in capsys.readouterr().out
    flags |= dict.fromkeys(("global_batch_size", "lr", "epochs", "restarts"))
    main(few_shot(images, tmp_path / "linear", mode="linear", **flags))
    assert log_lines(tmp_path / "spoilt") == log_lines(tmp_path / "linear")
    assert same_weights(tmp_path / "spoilt", tmp_path / "linear")
    one, two = (result(tmp_path / name) for name in ("spoilt", "linear"))
    for key in ("last", "best", "ema", "epochs_run"):
        assert one[key] == two[key]
    assert (one["mode"], two["mode"], two["verdict"]) == (mode, "linear", None)
    capsys.readouterr()
    main(words)  # what is kept is known: the run is finished, and nothing is asked again
    assert "0 epochs and 0 are asked for: the run is finished" in capsys.readouterr().out


def test_where_finetuning_wins_it_goes_on(won):
    told = result(won)
    assert told["verdict"]["kept"] == "finetuned"
    assert told["verdict"]["labels"] == 24
    assert told["verdict"]["only_finetuned"] > told["verdict"]["only_probe"] + 5
    lines = log_lines(won)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["test_acc1"] > lines[0]["test_acc1"]


def test_mode_full_starts_from_a_fresh_head_where_finetuning_wins(images, tmp_path, monkeypatch):
    kept = {"labels": 9, "probe_right": 0, "finetuned_right": 9, "only_probe": 0, "only_finetuned": 9}
    kept["kept"] = "finetuned"
    monkeypatch.setattr(crossval, "compare", lambda job, source: (kept, Asked([0, 1], torch.eye(2), torch.eye(2))))
    main(few_shot(images, tmp_path, mode="full", epochs=1))
    assert [line["epoch"] for line in log_lines(tmp_path)] == [1]
    assert result(tmp_path)["verdict"] == kept


def test_the_test_images_play_no_part(images, won, tmp_path):
    """Under other names the same files are of the other class: other accuracies, and nothing else."""
    (tmp_path / "val").mkdir()
    for name in ("train", "blind.pth"):
        (tmp_path / name).symlink_to(images / name)
    for name, other in (("red", "green"), ("green", "red")):
        (tmp_path / "val" / name).symlink_to(images / "val" / other)
    main(few_shot(tmp_path, tmp_path / "out"))
    mine, theirs = result(tmp_path / "out"), result(won)
    assert mine["verdict"] == theirs["verdict"]
    assert mine["last"]["acc1"] == 100 - theirs["last"]["acc1"]
    assert same_weights(tmp_path / "out", won)


def test_labels_held_out_are_the_one_part(images, tmp_path, monkeypatch):
    asked = []

    def hand_made(job, source, train, left, desc, modes):
        asked.append((train, left))
        labels = torch.tensor([i >= 12 for i in left]).long()  # twelve images in each class folder
        said = (torch.nn.functional.one_hot(some, 2).float() for some in (labels, 1 - labels))
        return dict(zip(("linear", *modes), said, strict=True))

    monkeypatch.setattr(crossval, "one_part", hand_made)
    words = few_shot(images, tmp_path, val_fraction=0.25, folds=3)
    main(words)
    job = open_job(parse(words), ALONE)
    assert asked == [(job.ids, job.held)]
    assert (len(job.ids), len(job.held)) == (18, 6)
    assert not set(job.ids) & set(job.held)
    assert result(tmp_path)["verdict"]["labels"] == result(tmp_path)["verdict"]["only_probe"] == 6
    assert result(tmp_path)["best"]["note"] == "chosen on 6 held-out images"


def test_the_verdict_survives_a_kill(images, won, tmp_path, monkeypatch):
    words = few_shot(images, tmp_path, save_interval=1, auto_resume=True)
    real = deit_epochs.one_epoch
    monkeypatch.setattr(deit_epochs, "one_epoch", lambda *args: real(*args) if args[3] < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(words)
    assert checkpoint(tmp_path)["epoch"] == 1
    monkeypatch.setattr(deit_epochs, "one_epoch", real)
    monkeypatch.setattr(crossval, "compare", None)  # not asked again
    main(words)
    assert result(tmp_path)["verdict"] == result(won)["verdict"]
    assert log_lines(tmp_path) == log_lines(won)
    assert same_weights(tmp_path, won)


def test_nothing_is_asked_without_folds(images, tmp_path, monkeypatch):
    monkeypatch.setattr(crossval, "compare", None)
    main(few_shot(images, tmp_path, folds=0, epochs=1))
    assert result(tmp_path)["verdict"] is None
    assert [line["epoch"] for line in log_lines(tmp_path)] == [0, 1]
    for folds in (1, -1, -2):
        with pytest.raises(UserError, match=rf"--folds {folds}: 2 or more parts can be left out in turn"):
            parse(few_shot(images, folds=folds))


def test_two_processes_come_to_the_verdict_of_one(images, won, tmp_path):
    train_on(2, few_shot(images, tmp_path / "two", batch_size=2, folds=2), tmp_path)
    assert result(tmp_path / "two")["verdict"] == result(won)["verdict"]
    one, two = (log_lines(folder) for folder in (won, tmp_path / "two"))
    assert [line["train_loss"] for line in two] == pytest.approx([line["train_loss"] for line in one], rel=1e-3)
