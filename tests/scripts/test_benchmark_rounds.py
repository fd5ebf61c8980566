"""The table of rounds: each method's rounds go on from the same start, and what is known is not measured again."""

import json

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.images.dataset_files import imbalanced_rows
from data_selection.judging.experiments.evaluations import accuracy
from data_selection.judging.rounds import choose_next
from data_selection.judging.smoothed import choose_c, fit_probe, fit_smoothed
from data_selection.methods.design.facility import select_facility
from data_selection.methods.random_choice import select_random
from data_selection.nearest.similarity import normalise
from scripts.benchmarks import rounds
from tests.support.experiments import blobs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def flags(tmp_path):
    """Two seeds of three rounds by three methods, of 150 rows of four classes."""
    blobs(tmp_path / "a_train.npy", 150, 0)
    blobs(tmp_path / "a_test.npy", 60, 1)
    words = ["--train", tmp_path / "a_train.npy", "--test", tmp_path / "a_test.npy", "--output_dir", tmp_path / "out"]
    return [*map(str, words), "--methods", "random", "margin", "auto", "--sizes", "8", "14", "20", "--seeds", "0", "1"]


def read(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text().splitlines()]


def test_rounds_are_what_the_functions_give(flags, tmp_path, capsys):
    rounds.main(flags)
    lines = read(tmp_path)
    assert [(line["method"], line["labels"]) for line in lines if line["seed"] == 1] == [
        ("random", 8), ("random", 14), ("random", 20), ("facility", 8), ("margin", 14), ("margin", 20), ("auto", 14),
        ("auto", 20),
    ]  # fmt: skip
    train, test = (load_features(tmp_path / f"a_{part}.npy") for part in ("train", "test"))
    labels, test_labels = (torch.from_numpy(table.labels) for table in (train, test))
    found = {(line["method"], line["labels"], line["seed"]): line for line in lines}
    start = select_facility(train.features, 8, seed=1)
    assert found["facility", 8, 1]["ids"] == start.tolist()
    ids = start
    for size in (14, 20):
        new = choose_next(train.features, labels[ids], ids, 6, method="margin", classes=4, seed=1).ids
        ids = torch.cat([ids, new])
        assert found["margin", size, 1]["ids"] == ids.tolist()
    assert found["auto", 14, 1]["chosen_by"] == "wvoptimal"
    first = select_random(train.features, 8, seed=1)
    more = select_random(train.features, 6, labelled=first, seed=1)
    assert found["random", 14, 1]["ids"] == [*first.tolist(), *more.tolist()]
    scores = found["margin", 20, 1]["scores"]
    rows = normalise(train.tensor()[ids])
    plain = fit_probe(rows, labels[ids], 4, choose_c(rows, labels[ids])).predict(normalise(test.tensor()))
    assert scores["plain"] == pytest.approx(accuracy(plain, test_labels))
    model = fit_smoothed(train.features, labels[ids], ids, classes=4)
    assert scores["lrZ"] == pytest.approx(accuracy(model.predict(test.features, corrected=False), test_labels))
    assert scores["csZ"] == pytest.approx(accuracy(model.predict(test.features, corrected=True), test_labels))
    mean = sum(found["margin", 20, seed]["scores"]["lrZ"] for seed in (0, 1)) / 2
    told = capsys.readouterr().out
    (row,) = [line for line in told.splitlines() if line.startswith("| margin, lrZ") and "±" in line]
    assert row.split("|")[-2].split()[0] == f"{mean:.2f}"
    assert "minus random, plain, seed by seed" in told


def test_what_is_known_is_not_measured_again(flags, tmp_path, capsys, monkeypatch):
    rounds.main(flags)
    printed, path = capsys.readouterr().out, tmp_path / "out" / "results.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])  # killed while it wrote
    rounds.main(flags)
    assert capsys.readouterr().out == printed
    for once, again in zip(map(json.loads, lines), read(tmp_path), strict=True):
        assert once | {"seconds": 0} == again | {"seconds": 0}
    monkeypatch.setattr(rounds, "measure", None)  # not asked again
    rounds.main(flags)
    assert capsys.readouterr().out == printed
    with pytest.raises(TypeError):  # other rounds are other results
        rounds.main([*flags, "--sizes", "8", "20"])


def test_a_long_tail_is_cut_from_the_pool(flags, tmp_path):
    rounds.main([*flags, "--methods", "margin", "--seeds", "0"])
    rounds.main([*flags, "--methods", "margin", "--seeds", "0", "--imbalance", "5"])  # other results
    lines = read(tmp_path)
    assert [line["labels"] for line in lines] == [8, 14, 20] * 2
    cut = rows_of_cut(load_features(tmp_path / "a_train.npy").labels)
    assert max(lines[-1]["ids"]) < len(cut)
    with pytest.raises(UserError, match=rf"--sizes 149 exceeds the {len(cut)} images"):
        rounds.main([*flags, "--imbalance", "5", "--sizes", "8", "149"])


def rows_of_cut(labels):
    """Rows of the long tail of imbalance 5 that keeps the largest class whole."""
    sizes = np.bincount(labels)
    return np.sort(imbalanced_rows(labels.tolist(), 5, len(sizes), int(sizes.max())))


@pytest.mark.parametrize("sizes", [["20", "8"], ["8", "8"], ["0", "8"]])
def test_sizes_must_grow(flags, sizes):
    with pytest.raises(UserError, match="labels after each round, ascending, are needed"):
        rounds.main([*flags, "--sizes", *sizes])
