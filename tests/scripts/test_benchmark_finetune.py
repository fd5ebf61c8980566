"""The table of the ways to use labels: what is known is not measured again; a run tells what the trainer reached."""

import argparse
import json

import numpy as np
import pytest

from data_selection.common.errors import UserError
from data_selection.common.feature_table import save_features
from data_selection.common.subset_files import save_subset
from data_selection.images import pools
from scripts.benchmarks import finetune
from tests.support.pretend_cuda import pretended

COUNT = 60


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Features that tell the classes of 60 demo images apart, for training and for test images alike."""
    arrays = {key: value[:COUNT] for key, value in pools.load_demo().items()}
    monkeypatch.setattr(pools, "load_demo", lambda: arrays)
    for split in ("train", "test"):
        rows = np.eye(10, dtype=np.float32)[arrays[f"{split}_labels"]]
        save_features(tmp_path / f"{split}.npy", rows + 0.01 * np.random.default_rng(0).normal(size=rows.shape))
    words = ["--train", tmp_path / "train.npy", "--test", tmp_path / "test.npy", "--output_dir", tmp_path / "out"]
    return [*map(str, words), "--methods", "random", "--budgets", "40"]


def test_probes_are_measured_once_and_reported(flags, tmp_path, capsys, monkeypatch):
    finetune.main([*flags, "--seeds", "0", "1", "--ways", "plain probe", "smoothed probe"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [(line["way"], line["seed"]) for line in lines] == [
        (way, seed) for seed in (0, 1) for way in ("plain probe", "smoothed probe")
    ]
    assert all(line["last"] > 90 for line in lines)
    mean = np.mean([line["last"] for line in lines if line["way"] == "plain probe"])
    table = capsys.readouterr().out
    assert f"| random    | plain probe    | {mean:.2f} ± " in table
    assert "(2) |" in table
    monkeypatch.setattr(finetune, "probe", None)  # not asked again
    finetune.main([*flags, "--seeds", "0", "1", "--ways", "plain probe"])
    assert f"{mean:.2f} ± " in capsys.readouterr().out


def test_half_a_line_of_a_killed_one_is_left_out_and_cut_off(flags, tmp_path):
    words = [*flags, "--seeds", "0", "--ways", "plain probe"]
    finetune.main(words)
    scores = tmp_path / "out" / "scores.jsonl"
    first = scores.read_text()
    scores.write_text(first + '{"way":"a","meth')
    finetune.main(words)
    finetune.main([*words, "smoothed probe"])
    assert [json.loads(line)["way"] for line in scores.read_text().splitlines()] == ["plain probe", "smoothed probe"]


def test_scores_of_other_features_or_another_model_are_not_taken_for_these(flags, tmp_path):
    words = [*flags, "--seeds", "0", "--ways", "plain probe"]
    finetune.main(words)
    (tmp_path / "out" / "files.json").unlink()  # of a folder that was begun before
    finetune.main(words)
    with pytest.raises(
        UserError, match=r"out holds scores of another --model, --input_size: name another --output_dir"
    ):
        finetune.main([*words, "--model", "resnet18", "--input_size", "64"])
    save_features(tmp_path / "test.npy", np.eye(10, dtype=np.float32)[[0] * COUNT])
    with pytest.raises(UserError, match=r"out holds scores of another --test: name another --output_dir"):
        finetune.main(words)


def test_a_line_tells_the_flags_that_it_was_measured_with(flags, tmp_path, monkeypatch):
    """The words of a way change with the code: those of another version are no cells of this table."""
    asked, scores = [], tmp_path / "out" / "scores.jsonl"

    def run(args, subset, seed, words):
        asked.append(words)
        return {"last": 10.0 * len(asked), "minutes": 1}

    monkeypatch.setattr(finetune, "run", run)
    words = [*flags, "--seeds", "0", "--ways", "few-shot", "self-train"]
    finetune.main(words)
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [line["flags"] for line in lines] == [[], ["--mode", "self-train"]]
    assert {"commit", "torch"} <= lines[0]["versions"].keys()
    for line in lines:  # as before they told them
        del line["flags"], line["versions"]
    scores.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    finetune.main(words)
    assert len(asked) == 2
    monkeypatch.setitem(finetune.WAYS, "few-shot", ["--folds", "0"])
    lines[0]["flags"] = []
    scores.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    finetune.main(words)
    assert asked[2:] == [["--folds", "0"]]


def test_scores_of_other_images_or_another_device_are_not_taken_for_these(flags, tmp_path, monkeypatch):
    words = [*flags, "--seeds", "0", "--ways", "plain probe"]
    finetune.main(words)
    told = json.loads((tmp_path / "out" / "files.json").read_text())
    monkeypatch.setattr(finetune, "pick_amp", lambda *_: "another precision")
    with pytest.raises(UserError, match="out holds scores of another --device: name"):
        finetune.main(words)
    monkeypatch.undo()  # the whole demo pool, whose labels are others
    arrays = {key: value[COUNT : 2 * COUNT] for key, value in pools.load_demo().items()}
    monkeypatch.setattr(pools, "load_demo", lambda: arrays)
    with pytest.raises(UserError, match="out holds scores of another --images: name"):
        finetune.main(words)
    del told["images"], told["device"]  # as an earlier version left it
    (tmp_path / "out" / "files.json").write_text(json.dumps(told))
    finetune.main(words)


def test_factors_are_the_recipe_with_one_change(flags, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        finetune, "run", lambda args, subset, seed, words: asked.append(words) or {"last": 50.0, "minutes": 1}
    )
    finetune.main([*flags, "--seeds", "0", "--factors"])
    assert len(asked) == len(finetune.FACTORS)
    assert all(words[:6] == ["--folds", "0", "--epochs", "15", "--restarts", "1"] for words in asked)
    assert asked[0][6:] == []
    assert asked[1][6:] == ["--batch-norm", "train"]


def test_the_spread_of_the_training_is_told_apart_from_that_of_the_lists(flags, monkeypatch, capsys):
    """Two lists with means 52 and 62; within them the trainings are 2 sqrt(2) and 4 sqrt(2) apart in sd."""
    found = {(0, 7): 50.0, (0, 8): 54.0, (1, 7): 58.0, (1, 8): 66.0}

    def run(args, subset, training, words):
        return {"last": found[int(subset.stem[-1]), training], "minutes": 1}

    monkeypatch.setattr(finetune, "run", run)
    words = ["--seeds", "0", "1", "--ways", "few-shot", "plain probe", "--training_seeds", "7", "8"]
    finetune.main([*flags, *words])
    table = capsys.readouterr().out
    assert f"| 57.00 ± {50**0.5:.2f} (2), training ± {20**0.5:.2f} |" in table
    assert table.count("training ±") == 1  # a probe is fitted once
    monkeypatch.setattr(finetune, "run", lambda args, subset, training, words: {"last": 10.0 + training, "minutes": 1})
    finetune.main([*flags, "--seeds", "0", "1", "--ways", "few-shot"])  # one training, with the list's own seed
    assert "| 10.50 ± 0.71 (2) " in capsys.readouterr().out


def test_differences_are_those_of_lists_of_the_same_seed(flags, monkeypatch, capsys):
    """Of three lists the second way has 1, 2 and 6 points more than the first."""
    found = {"linear": [20.0, 30.0, 40.0], "smoothed": [21.0, 32.0, 46.0]}

    def run(args, subset, training, words):
        return {"last": found["smoothed" if "smoothed" in words else "linear"][training], "minutes": 1}

    monkeypatch.setattr(finetune, "run", run)
    finetune.main([*flags, "--seeds", "0", "1", "2", "--ways", "linear", "smoothed"])
    table = capsys.readouterr().out.split("difference to linear on random of the same seed")[1]
    assert "0.00 ± 0.00 (3)" in table
    assert f"+3.00 ± {7**0.5:.2f} (3)" in table  # the lists' own spread is 10 and more
    row = [{"seed": 1, "last": 5.0}, {"seed": 2, "last": 4.0}]
    assert finetune.difference(row, row[1:]) == "0.00 (1)"
    assert finetune.difference(row[:1], row[1:]) == ""


def test_the_device_is_that_of_the_choice_the_probes_and_the_trainer(flags, monkeypatch):
    asked = []
    monkeypatch.setattr(finetune, "train", lambda words, folder: asked.append(words) or {"last": 1.0, "minutes": 1})
    monkeypatch.setattr(finetune.shutil, "rmtree", lambda _: None)
    flags = [word if word != "random" else "fps" for word in flags]
    for ways in (["plain probe"], ["smoothed probe"], ["few-shot"]):  # the first one chooses the list, too
        with pretended() as card:
            finetune.main([*flags, "--seeds", "0", "--ways", *ways, "--device", "cuda"])
        assert card.faults == []
        assert bool(card.launches) == (ways != ["few-shot"])
    (words,) = asked
    assert words[words.index("--device") + 1] == "cuda"


def test_features_of_other_images_are_refused(flags, tmp_path):
    save_features(tmp_path / "test.npy", np.ones((3, 10), np.float32))
    with pytest.raises(UserError, match=r"test\.npy has 3 rows for 60 images: extract these images"):
        finetune.main([*flags, "--seeds", "0"])


def test_a_run_is_the_trainers(tmp_path):
    """In a process of its own, on the whole demo pool."""
    args = argparse.Namespace(output_dir=tmp_path, images=None, model=None, weights=None, input_size=None, device="cpu")
    subset = save_subset(tmp_path / "s.json", range(30))
    found = finetune.run(args, subset, 0, ["--mode", "linear"])
    assert 40 < found["last"] < 90
    assert found["last"] == found["best"]
    assert 0.1 < found["gib"] < 10
    assert found["minutes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    with pytest.raises(UserError, match=r"the trainer ended with 2, .*--bogus"):
        finetune.run(args, subset, 0, ["--bogus"])
