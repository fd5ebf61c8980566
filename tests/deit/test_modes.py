"""Frozen backbone (linear, lp-ft) and held-out images: right head, right files, the same on any number of processes."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from data_selection.common.errors import UserError
from data_selection.embedding.backbones import build_model
from data_selection.images.pools import Pool
from deit.job import fingerprint
from deit.learner.linear import STRENGTH, logistic_regression
from deit.main import main
from deit.options import parse
from deit.runs.checkpoints import check_same_recipe
from deit.samples.sources import hold_out
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images, train_on


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def result(tmp_path):
    return lambda name: json.loads((tmp_path / name / "result.json").read_text())


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_is_scikit_learns_on_scaled_features(classes):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=draw) * 3 + 5
    labels = torch.arange(60) % classes
    features[:, 0] += 2.0 * labels
    weight, bias = logistic_regression(features, labels, classes)
    centre = features.double().mean(0)
    scaled = (features.double() - centre) / (features.double() - centre).norm(dim=1).mean()
    assert STRENGTH == 30  # set once, on labels that take part in no comparison
    oracle = LogisticRegression(C=30, max_iter=5000, tol=1e-8).fit(scaled.numpy(), labels.numpy())
    ours = (features.double() @ weight.T + bias).softmax(1).numpy()
    if classes > 2:  # with two, scikit-learn fits one vector of weights, under another penalty
        np.testing.assert_allclose(ours, oracle.predict_proba(scaled.numpy()), atol=1e-4)
    assert (ours.argmax(1) == oracle.predict(scaled.numpy())).mean() > 0.95


def test_blocks_of_rows_change_nothing(monkeypatch):
    features, labels = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 3
    whole = logistic_regression(features, labels, 3, 0.1)
    monkeypatch.setattr("data_selection.judging.logistic.BLOCK", 21)
    for one, other in zip(whole, logistic_regression(features, labels, 3, 0.1), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_fitted_head_is_scaled_before_each_training(images, tmp_path, result, restarts):
    """Without a rate a training leaves what it begins with."""
    still = {"lr": 0, "min_lr": 0, "warmup_lr": 0, "weight_decay": 0, "epochs": 2}
    main(command(images, tmp_path / "fitted", mode="linear", epochs=None, lr=None, warmup_epochs=None))
    main(command(images, tmp_path / "scaled", mode="lp-ft", head_scale=0.25, restarts=restarts, **still))
    fitted = checkpoint(tmp_path / "fitted")["model"]
    for key in ("model", "model_ema"):
        scaled = checkpoint(tmp_path / "scaled")[key]
        for name in ("head.weight", "head.bias"):
            torch.testing.assert_close(scaled[name], 0.25 * fitted[name], rtol=1e-5, atol=1e-7)
    probe, before, after = log_lines(tmp_path / "fitted")[0], *(log_lines(tmp_path / "scaled")[n] for n in (0, -1))
    assert probe["test_acc1"] == before["test_acc1"] == after["test_acc1"]
    assert probe["test_loss"] == before["test_loss"] != after["test_loss"]  # the probe is judged as it was fitted


def test_a_checkpoint_without_the_newer_flags_is_of_their_former_values():
    check_same_recipe({"lr": 0.1}, {"lr": 0.1, "head_scale": 1.0, "head_rate": 1.0}, "old.pth")
    with pytest.raises(UserError, match=r"old\.pth was made with another recipe: --head-scale 0\.1 \(was 1\.0\)\."):
        check_same_recipe({"lr": 0.1}, {"lr": 0.1, "head_scale": 0.1, "head_rate": 1.0}, "old.pth")


def test_linear_fits_the_head_and_nothing_else(images, tmp_path, result, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text("epochs: 5\nlr: 0.1\n")
    flags = {"mode": "linear", "epochs": None, "lr": None, "warmup_epochs": None, "config": config}
    main(command(images, tmp_path / "linear", **flags))
    said = capsys.readouterr().out
    line = log_lines(tmp_path / "linear")
    assert [(entry["epoch"], entry["train_lr"]) for entry in line] == [(0, 0.0)]
    assert list(line[0])[:5] == ["train_lr", "train_loss", "test_loss", "test_acc1", "test_acc5"]
    assert line[0]["train_loss"] < 0.6  # two classes, smoothed labels: chance is 0.69
    saved, weights = checkpoint(tmp_path / "linear"), torch.load(images / "weights.pth", weights_only=True)
    heads = {"head.weight", "head.bias"}
    assert all(torch.equal(saved["model"][key], weights[key]) for key in weights if key not in heads)
    assert all(torch.equal(saved["model"][key], saved["model_ema"][key]) for key in saved["model"])
    numbers = result("linear")
    assert numbers["mode"] == "linear"
    assert numbers["last"]["acc1"] == numbers["best"]["acc1"] == line[0]["test_acc1"]
    assert "top-1 of the head on the frozen backbone" in said

    path = tmp_path / "linear" / "checkpoint.pth"
    for word in ("resume", "finetune"):
        main(command(images, eval=True, **{"finetune": None, word: path}))
        assert f"test images: {line[0]['test_acc1']:.1f}%" in capsys.readouterr().out
    main(command(images, tmp_path / "linear", auto_resume=True, **flags))
    assert "the run is finished" in capsys.readouterr().out
    still = {"lr": 0, "min_lr": 0, "warmup_lr": 0, "weight_decay": 0, "epochs": 1}
    main(command(images, tmp_path / "full", **still | {"finetune": path}))
    assert log_lines(tmp_path / "full")[0]["test_acc1"] == line[0]["test_acc1"]


def test_lp_ft_goes_on_from_the_linear_head(images, tmp_path, monkeypatch):
    main(command(images, tmp_path / "linear", mode="linear", epochs=None, lr=None, warmup_epochs=None))
    main(command(images, tmp_path / "both", mode="lp-ft"))
    linear, both = log_lines(tmp_path / "linear"), log_lines(tmp_path / "both")
    assert both[0] == linear[0]
    assert [line["epoch"] for line in both] == [0, 1, 2]
    main(command(images, tmp_path / "apart", finetune=tmp_path / "linear" / "checkpoint.pth"))
    assert log_lines(tmp_path / "apart") == both[1:]

    from deit import epochs as deit_epochs

    monkeypatch.setattr(deit_epochs, "train_one_epoch", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command(images, tmp_path / "killed", mode="lp-ft"))
    monkeypatch.undo()
    monkeypatch.setattr(deit_epochs, "fit_head", None)  # the checkpoint has the head
    main(command(images, tmp_path / "killed", mode="lp-ft", auto_resume=True))
    assert log_lines(tmp_path / "killed") == both


def test_two_processes_give_the_same_linear_head(images, tmp_path):
    flags = {"mode": "linear", "epochs": None, "lr": None, "warmup_epochs": None}
    main(command(images, tmp_path / "one", **flags))
    train_on(2, command(images, tmp_path / "two", **flags | {"batch_size": 2}), tmp_path)
    one, two = (log_lines(tmp_path / name)[0] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "resnet18", "convnext_atto"])
def test_what_the_hook_sees_times_the_head_is_the_logits(name):
    from data_selection.common.distributed import World
    from deit.engine import Learner
    from deit.learner.building import autocast_type
    from deit.learner.linear import fit_head

    model = build_model(name, 3).eval()
    size = 224 if "deit" in name else 64
    batch = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    learner = Learner(model, None, None, False, None, None, None, None, None, autocast_type("off", "cpu"),
                      World(0, 1, torch.device("cpu")))  # fmt: skip

    class Data:
        def __len__(self):
            return 4

        def plain(self, indices, size):
            yield from ((batch[0][i : i + 1], batch[1][i : i + 1]) for i in indices)

    loss = fit_head(learner, Data(), 3, batch=1, smoothing=0.1)
    with torch.no_grad():
        logits = model.eval()(batch[0])
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, batch[1], label_smoothing=0.1).item(), loss,
                               rtol=1e-3, atol=1e-4)  # fmt: skip


def test_flags_without_effect_are_refused_in_linear_mode_only():
    with pytest.raises(UserError, match=r"--aa, --lr does nothing in --mode linear"):
        parse(["--mode", "linear", "--lr", "0.1", "--aa", "rand-m9"])
    parse(["--mode", "linear", "--smoothing", "0", "--batch-size", "8"])
    parse(["--mode", "lp-ft", "--lr", "0.1"])


@pytest.mark.parametrize("mode", ["full", "lp-ft", "three-phase", "linear"])
def test_rounds_of_the_pool_are_for_modes_that_train_on_it(tmp_path, mode):
    few_shot = ["--data-set", "FOLDER"]
    with pytest.raises(UserError, match=rf"--rounds does nothing in --mode {mode}, .*: leave it out, or use --mode "):
        parse([*few_shot, "--mode", mode, "--rounds", "3"])
    for teaching in ("self-train", "auto"):
        assert parse([*few_shot, "--mode", teaching, "--rounds", "3"]).rounds == 3
    (tmp_path / "mine.yaml").write_text("rounds: 3\n")  # a config serves every mode
    parse([*few_shot, "--mode", mode, "--config", str(tmp_path / "mine.yaml")])


def test_few_labels_are_warned_of_once(images, tmp_path, capsys):
    (tmp_path / "few.json").write_text(json.dumps(list(range(18))))
    main(command(images, epochs=1, subset_ids=tmp_path / "few.json"))
    assert capsys.readouterr().out.count("9 labels per class: below 10, a frozen backbone usually gives more") == 1
    main(command(images, epochs=1))
    main(command(images, mode="lp-ft", epochs=1, subset_ids=tmp_path / "few.json"))
    assert "labels per class" not in capsys.readouterr().out


def pool_of(labels):
    return Pool(arrays=np.zeros((len(labels), 2, 2), np.uint8), labels=labels, classes=max(labels) + 1)


def test_a_run_whose_labels_were_corrected_meanwhile_is_another():
    before, corrected = pool_of([0, 1, 0]), pool_of([0, 1, 1])
    assert fingerprint(before, [0, 1]) == fingerprint(corrected, [0, 1])
    assert fingerprint(before, [0, 2]) != fingerprint(corrected, [0, 2])
    assert fingerprint(before, [0, 1]) != fingerprint(before, [1, 0])


@pytest.mark.parametrize(("sizes", "fraction", "expected"), [
    ([10, 10], 0.2, [2, 2]), ([9, 1], 0.2, [2, 0]), ([6, 3, 1], 0.3, [2, 1, 0]), ([2, 2, 2], 0.5, [1, 1, 1]),
    ([5, 5], 0.01, [(0, 1), (0, 1)]), ([7, 7, 7], 0.25, [(1, 2)] * 3), ([1, 1, 10], 0.75, [0, 0, 9]),
])  # fmt: skip
def test_held_out_images_are_even_per_class(sizes, fraction, expected):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    ids = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    kept, held = hold_out(ids, pool_of(labels), fraction, 0)
    assert sorted(kept + held) == sorted(ids)
    assert len(held) == max(1, round(fraction * len(ids)))
    counts = [sum(labels[i] == label for i in held) for label in range(len(sizes))]
    allowed = [want if isinstance(want, tuple) else (want,) for want in expected]
    assert all(count in some for count, some in zip(counts, allowed, strict=True))
    assert hold_out(ids, pool_of(labels), fraction, 0) == (kept, held)
    assert [i for i in ids if i in held] == held


def test_other_seeds_hold_out_other_images():
    pool = pool_of([0, 1] * 20)
    assert len({tuple(hold_out(list(range(40)), pool, 0.25, seed)[1]) for seed in range(5)}) > 1
    with pytest.raises(UserError, match=r"--val-fraction 0\.9 of 4 images holds out 4, but each of the 2 classes"):
        hold_out([0, 1, 2, 3], pool, 0.9, 0)


def test_the_best_epoch_is_chosen_on_held_out_images_or_marked(images, tmp_path, result, capsys):
    main(command(images, tmp_path / "plain", epochs=3))
    assert result("plain")["best"]["note"] == "chosen on the evaluation set"
    assert "chosen on the evaluation set; " in capsys.readouterr().out.splitlines()[-1]
    main(command(images, tmp_path / "held", epochs=3, val_fraction=0.3))
    lines, best = log_lines(tmp_path / "held"), result("held")["best"]
    first = max(lines, key=lambda line: line["val_acc1"])  # the first of equals
    assert (best["epoch"], best["val_acc1"], best["acc1"]) == (first["epoch"], first["val_acc1"], first["test_acc1"])
    assert best["note"] == "chosen on 6 held-out images"
    said = capsys.readouterr().out
    assert "training on 14 of 24 images" in said
    assert "chosen on 6 held-out images; " in said.splitlines()[-1]
    assert checkpoint(tmp_path / "held", "best_checkpoint.pth")["epoch"] == best["epoch"]
    with pytest.raises(UserError, match="made with another recipe"):
        main(command(images, tmp_path / "held", epochs=3, val_fraction=0.2, auto_resume=True))


def test_without_evaluation_images_those_held_out_choose_the_best_epoch(images, tmp_path, result):
    main(command(images, tmp_path / "bare", epochs=3, val_fraction=0.3, val_path="none"))
    found, best = [line.get("val_acc1") for line in log_lines(tmp_path / "bare")], result("bare")["best"]
    assert None not in found
    assert (best["epoch"], best["val_acc1"]) == (1 + found.index(max(found)), max(found))
    assert best["note"] == "chosen on 6 held-out images"
