"""An experiment by its command: killed, shared, changed, run again; the numbers are those of the evaluations alone."""

import json
import multiprocessing
import os
import random
import time
from collections import Counter

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.common.subset_files import load_subset
from data_selection.judging.evaluation import knn_accuracy
from data_selection.judging.experiments import curves, evaluations, work
from data_selection.judging.quality import quality
from data_selection.judging.smoothed import SMOOTH_C, fit_smoothed, smoothing_of
from data_selection.methods.table import METHODS
from scripts.experiments import command, trainer
from tests.support.experiments import EVALUATIONS, make_config, without_times

SCORES = ("last", "best")
FORK = multiprocessing.get_context("fork")
SMALL = {"methods": {"random": None, "kmeans": {"max_iter": 5}}, "budgets": [8, "10%"]}


def start(config, out, *flags):
    """The command in a process of its own, which has every library already."""
    child = FORK.Process(target=command.main, args=([str(config), "--output_dir", str(out), *flags],))
    child.start()
    return child


@pytest.fixture
def experiment(tmp_path, capsys, monkeypatch):
    """Runs the command here, without drawing. Returns (what it printed, the records)."""
    monkeypatch.setattr(curves, "draw_curves", lambda entries, baseline: {"png": b"", "svg": b""})

    def run(*flags, **changes):
        config = make_config(tmp_path, **(SMALL | changes))
        command.main([str(config), "--output_dir", str(tmp_path / "out"), *map(str, flags)])
        return capsys.readouterr().out, without_times(tmp_path / "out" / "results.jsonl")

    return run


def test_killed_at_five_random_moments_it_ends_as_an_unbroken_one(tmp_path):
    config = make_config(tmp_path, **SMALL)
    began = time.monotonic()
    start(config, tmp_path / "whole").join()
    seconds = time.monotonic() - began
    for _ in range(5):
        child = start(config, tmp_path / "killed")
        child.join(random.uniform(0, seconds / 2))
        child.kill()
        child.join()
    killed = len((tmp_path / "killed" / "results.jsonl").read_bytes().splitlines())
    child = start(config, tmp_path / "killed")
    child.join()
    assert child.exitcode == 0
    whole = without_times(tmp_path / "whole" / "results.jsonl")
    assert killed <= len(whole) == 24
    assert without_times(tmp_path / "killed" / "results.jsonl") == whole
    for name in ("table.md", "table.csv", "table.tex", "curves.svg"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_commands_share_the_cells_and_none_is_computed_twice(tmp_path, monkeypatch):
    """Every list and every evaluation tells of itself when it begins."""
    tales = os.open(tmp_path / "tales", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    real_choose, real_append = work.choose, work.Store.append

    def choose(cell, pool, path, device):
        os.write(tales, f"list {path.name}\n".encode())
        return real_choose(cell, pool, path, device)

    def append(store, record):
        os.write(tales, f"{os.getpid()} {record['digest']}\n".encode())
        real_append(store, record)

    monkeypatch.setattr(work, "choose", choose)
    monkeypatch.setattr(work.Store, "append", append)
    config = make_config(tmp_path, **SMALL)
    children = [start(config, tmp_path / "out") for _ in range(2)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    lines = [line.split() for line in (tmp_path / "tales").read_text().splitlines()]
    assert max(Counter(word for _, word in lines).values()) == 1
    assert len({owner for owner, _ in lines if owner != "list"}) == 2  # both had a part
    assert len(without_times(tmp_path / "out" / "results.jsonl")) == 24


def test_jobs_and_shards_give_the_cells_of_one_process(experiment, tmp_path, capsys):
    _, whole = experiment()
    config = str(tmp_path / "grid.yaml")
    command.main([config, "--output_dir", str(tmp_path / "jobs"), "--jobs", "2"])
    assert without_times(tmp_path / "jobs" / "results.jsonl") == whole
    command.main([config, "--output_dir", str(tmp_path / "parts"), "--shard", "0/2"])
    assert "this part is done" in capsys.readouterr().out
    half = without_times(tmp_path / "parts" / "results.jsonl")
    assert len(half) == 12
    command.main([config, "--output_dir", str(tmp_path / "parts"), "--shard", "1/2"])
    assert "one, 5-NN: accuracy in %" in capsys.readouterr().out
    assert without_times(tmp_path / "parts" / "results.jsonl") == whole


def test_a_finished_one_is_told_again_without_any_work(experiment, monkeypatch, tmp_path):
    first, records = experiment()
    monkeypatch.setattr(work, "compute_one", None)
    pictures = (tmp_path / "out" / "page.html").stat().st_mtime_ns
    again, same = experiment()
    assert again.split("to compute")[1] == first.split("to compute")[1]
    assert "32 cells, 0 of them to compute" not in first
    assert same == records
    assert (tmp_path / "out" / "page.html").stat().st_mtime_ns == pictures


def test_a_changed_config_recomputes_what_changed_alone(experiment, tmp_path):
    _, before = experiment()
    lists = set((tmp_path / "out" / "lists").iterdir())
    changed = EVALUATIONS | {"5-NN": {"kind": "knn", "k": 3}, "renamed": EVALUATIONS["probe"]}
    _, after = experiment(evaluations=changed)
    assert len(after) - len(before) == 8  # k-NN with another k, on the same lists
    assert set((tmp_path / "out" / "lists").iterdir()) == lists
    said, more = experiment(methods={"random": None, "kmeans": {"max_iter": 6}})
    assert {record["method"] for digest, record in more.items() if digest not in after} == {"kmeans"}
    assert len(more) - len(after) == 12
    assert "| kmeans " in said


def test_the_numbers_are_those_of_the_evaluations_alone(experiment, tmp_path):
    said, records = experiment()
    train, test = (load_features(tmp_path / f"one_{part}.npy") for part in ("train", "test"))
    labels, test_labels = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    config = METHODS["kmeans"].config(max_iter=5)
    ids = METHODS["kmeans"].select(train.features, 12, config=config, seed=1).sort().values
    found = {
        record["judged"]["kind"]: record for record in records.values()
        if (record["method"], record["budget"], record["seed"]) == ("kmeans", 12, 1)
    }  # fmt: skip
    assert set(found) == {"knn", "probe", "smoothed"}
    path = tmp_path / "out" / "lists" / found["knn"]["list"]
    assert load_subset(path, 120).sort().values.equal(ids)
    assert found["knn"]["quality"] == pytest.approx(quality(train.features, ids)._asdict(), rel=1e-4)
    assert "Rank correlation of each label-free quality" in said
    expected = knn_accuracy(train.tensor()[ids], labels[ids], test.tensor(), test_labels, k=5)
    assert found["knn"]["scores"]["accuracy"] == expected
    probe = fit_smoothed(train.tensor(), labels[ids], ids, classes=4)
    for name, corrected in (("csZ", True), ("lrZ", False)):
        hits = probe.predict(test.tensor(), corrected=corrected).argmax(1) == test_labels
        assert found["smoothed"]["scores"][name] == pytest.approx(100 * hits.double().mean().item())
    assert evaluations.SMOOTH_C == SMOOTH_C
    pools = command.load(
        command.build_parser().parse_args([str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out")])
    )[2]
    for k, steps in ((5, 1), (10, 0)):
        base = smoothing_of(train.tensor(), k=k, steps=steps)
        torch.testing.assert_close(pools["one"].smoothed(k, steps)[0].smoothed, base.smoothed)


def test_a_long_tailed_cut_is_chosen_from_and_listed_in_the_files_rows(experiment, tmp_path):
    pool = {"train": f"{tmp_path}/one_train.npy", "test": f"{tmp_path}/one_test.npy", "imbalance": 8}
    _, records = experiment(pools={"cut": pool}, budgets=["50%"])
    labels = load_features(tmp_path / "one_train.npy").labels
    largest = np.bincount(labels).max()
    sizes = [int(largest * (1 / 8) ** (label / 3)) for label in range(4)]
    allowed = {row for label in range(4) for row in np.flatnonzero(labels == label)[: sizes[label]].tolist()}
    for record in records.values():
        ids = json.loads((tmp_path / "out" / "lists" / record["list"]).read_text())
        assert len(ids) == record["budget"] == len(allowed) // 2
        assert set(ids) <= allowed


def test_a_dry_run_computes_nothing_and_estimates_by_what_is_done(experiment, tmp_path, capsys):
    config = str(make_config(tmp_path, **SMALL))
    command.main([config, "--output_dir", str(tmp_path / "out"), "--dry-run"])
    said = capsys.readouterr().out
    assert "one, 5-NN, random, 10% (12), seed 0  to do" in said
    assert "32 cells, 24 to do" in said
    assert "of which none is finished yet" in said
    assert not (tmp_path / "out" / "results.jsonl").exists()
    experiment(seeds=1)
    make_config(tmp_path, **SMALL)
    command.main([config, "--output_dir", str(tmp_path / "out"), "--dry-run"])
    said = capsys.readouterr().out
    assert "32 cells, 12 to do" in said
    assert "of which none is finished yet" not in said


@pytest.mark.parametrize(
    ("flags", "changes", "told"),
    [
        ((), {"evaluations": {"knn": {"q": 5}}}, r"evaluation 'knn': unknown key 'q'"),
        ((), {"evaluations": {"prob": {}}}, r"kind 'prob' is none of .*\(did you mean probe\?\)"),
        ((), {"evaluations": {"probe": {"c": "no"}}}, r"c 'no' must be a number above 0, or auto"),
        ((), {"evaluations": {"smoothed": {"score": "lr"}}}, r"score 'lr' is none of csZ, lrZ \(did you mean lrZ\?\)"),
        ((), {"budgets": [121]}, r"budget 121 exceeds the 120 images of pool one"),
        ((), {"evaluations": {"trainer": {"moed": "linear"}}}, r"unknown key 'moed' \(did you mean mode\?\)"),
        ((), {"evaluations": {"trainer": {"mode": "linear"}}}, r"pool 'one' needs trainer: \{data-set: "),
        ((), {"evaluations": {"trainer": {"seed": 3}}}, r"unknown key 'seed'"),
        ((), {"evaluations": {"trainer": {"data-set": "FOLDERSUBSET", "data-path": "no"}}}, r"no is no folder"),
        (("--jobs", 0), {}, r"--jobs 0 must be at least 1"),
    ],
)  # fmt: skip
def test_mistakes_end_before_any_work(experiment, flags, changes, told, tmp_path):
    with pytest.raises(UserError, match=told):
        experiment(*flags, **changes)
    assert not (tmp_path / "out" / "lists").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_files_without_labels_are_named_before_any_work(experiment, tmp_path, part):
    make_config(tmp_path, **SMALL)
    table = np.load(tmp_path / f"one_{part}.npy")
    table[:, -1] = -1
    np.save(tmp_path / f"one_{part}.npy", table)
    with pytest.raises(UserError, match=rf"one_{part}\.npy has no labels.* extract again with --labels folders"):
        experiment()
    assert not (tmp_path / "out" / "lists").exists()


def test_a_pool_is_not_judged_by_its_own_images(experiment, tmp_path):
    file = str(tmp_path / "one_train.npy")
    with pytest.raises(UserError, match="train and test of pool 'one' are one file: test needs other images"):
        experiment(pools={"one": {"train": file, "test": file}})


def test_a_cell_that_fails_is_named(experiment, tmp_path):
    make_config(tmp_path, **SMALL)
    table = np.load(tmp_path / "one_train.npy")
    table[5, 0] = np.nan
    np.save(tmp_path / "one_train.npy", table)
    with pytest.raises(UserError, match=r"one, random, 8 labels, seed 0, 5-NN: features hold NaN .* row 5: "):
        experiment()


def test_the_trainer_is_an_evaluation(experiment, tmp_path, monkeypatch):
    """One run gives two scores; what is in its files counts, and where they are does not."""
    asked = []

    def train(words, folder, processes):
        asked.append((list(map(str, words)), folder, processes))
        folder.mkdir(parents=True)
        return {"last": 71.0, "best": 72.0, "ema": None, "graph": None}

    monkeypatch.setattr(trainer, "train", train)
    evaluations = {name: {"kind": "trainer", "mode": "linear", "score": name, "processes": 2} for name in SCORES}
    results = []
    for name in ("here", "there"):
        weights = tmp_path / f"{name}.safetensors"
        weights.write_text("weights")
        flags = {"data-set": "DEMOSUBSET", "device": "cpu", "finetune": str(weights)}
        pool = {"train": f"{tmp_path}/one_train.npy", "trainer": flags}
        results.append(
            experiment(pools={"demo": pool}, methods={"random": None}, budgets=[30], evaluations=evaluations)
        )
    (said, records), again = results
    assert again[1] == records
    assert len(asked) == len(records) == 2  # seeds
    words, folder, processes = asked[0]
    assert words[:3] == ["--data-set=DEMOSUBSET", "--device=cpu", f"--finetune={tmp_path}/here.safetensors"]
    assert words[3:5] == ["--mode=linear", "--subset_ids"]
    assert words[6:] == ["--seed", "0", "--auto-resume"]
    assert processes == 2
    assert not folder.exists()  # of a finished run
    assert "| random    | 71.00 ± 0.00 |" in said
    assert "| random    | 72.00 ± 0.00 |" in said
    flags = next(iter(records.values()))["judged"]["flags"]
    assert len(flags["recipe"]) == len(flags["finetune"]) == 64
    assert "device" not in flags


def test_a_trainers_run_that_is_killed_goes_on_where_it_was(experiment, tmp_path, monkeypatch):
    found = []

    def train(words, folder, processes):
        found.append((folder, (folder / "checkpoint.pth").exists(), "--auto-resume" in words))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint.pth").touch()
        if len(found) == 1:
            raise KeyboardInterrupt
        return {"last": 71.0}

    monkeypatch.setattr(trainer, "train", train)
    pool = {"train": f"{tmp_path}/one_train.npy", "trainer": {"data-set": "DEMOSUBSET", "device": "cpu"}}
    changes = {
        "pools": {"demo": pool}, "methods": {"random": None}, "budgets": [30], "seeds": 1,
        "evaluations": {"linear": {"kind": "trainer", "mode": "linear", "score": "last"}},
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        experiment(**changes)
    _, records = experiment(**changes)
    (folder, before, _), again = found
    assert not before
    assert again == (folder, True, True)
    assert len(records) == 1
