"""File names are bytes: names that no text holds go through extraction, lists, tables and training unchanged."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.commands.any_method import main_select
from data_selection.commands.extract import main_extract
from data_selection.common.errors import run
from data_selection.common.listed_names import quoted
from data_selection.images.answers import read_answers, write_labels
from data_selection.images.pools import Pool
from deit.main import main as main_deit
from deit.predicting import Predictions
from deit.runs.predictions import OF_POOL, of_pool
from tests.support.trainer_runs import checkpoint

NAMES = [
    os.fsdecode(b"caf\xe9.png"), " before.png", "after.png ", "a, b;\tc.png", "new\nline.png", "\"q\" 'uote'.png",
    "back\\slash.png", "plain.png",
]  # fmt: skip


def ending(name):
    """The file ends in .png whatever else it ends in."""
    return name if name.strip().endswith(".png") and name == name.rstrip() else f"{name}x.png"


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        folder = tmp_path / "pets" / part / os.fsdecode(b" \xe9t\xe9 ")
        folder.mkdir(parents=True)
        for i, name in enumerate(NAMES):
            shade = draw.integers(0, 60, (28, 28, 3)) + 180 * (i % 2)
            Image.fromarray(shade.astype(np.uint8)).save(folder / ending(name))
    return tmp_path / "pets"


def labels_file(path, names, values):
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([(quoted(name), value) for name, value in zip(names, values, strict=True)])
    return path


def test_every_name_goes_the_whole_way(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(main_extract, ["--dataset", str(images / "train"), "--arch", "demo_vit", "--output_dir", str(out),
                              "--num_workers", "0", "--device", "cpu", "--amp", "off"]) == 0  # fmt: skip
    features = out / "pets_train.npy"
    names = json.loads((out / "pets_train.names.json").read_text())
    assert {os.fsencode(images / "train" / name) for name in names} == {
        os.fsencode(path) for path in (images / "train").rglob("*.png")
    }
    select = ["--features", str(features), "--method", "random", "--output_dir", str(out), "--device", "cpu"]
    assert run(main_select, [*select, "--budget", "5", "--filename", "one.json"]) == 0
    first = json.loads((out / "one.json").read_text())
    assert json.loads((out / "one.provenance.json").read_text())["images"]["name"] == [names[i] for i in first]
    rest = [i for i in range(len(NAMES)) if i not in first]
    for taken in ("one.txt", "one.json"):  # the names file, and the list
        flags = ["--labelled", str(out / taken), "--budget", "3", "--filename", f"after_{taken[4:]}.json"]
        assert run(main_select, [*select, *flags]) == 0
        assert json.loads((out / f"after_{taken[4:]}.json").read_text()) == rest

    values = {name: ("dark", "light")[i % 2] for i, name in enumerate(map(ending, NAMES))}
    words = {name: values[name.split("/")[1]] for name in names}
    given = labels_file(tmp_path / "labels.csv", [names[i] for i in first], [words[names[i]] for i in first])
    held = labels_file(tmp_path / "val.csv", names, [words[name] for name in names])
    capsys.readouterr()
    lists = ["--subset_ids", str(out / "one.txt"), "--labels", str(given), "--val-labels", str(held)]
    words = [
        "--data-set",
        "FOLDERSUBSET",
        "--data-path",
        str(images),
        *lists,
        "--mode",
        "linear",
        "--model",
        "demo_vit",
    ]
    words += ["--model", "demo_vit", "--finetune", "none", "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    assert run(main_deit, words) == 0, capsys.readouterr().err
    args = checkpoint(tmp_path / "run")["args"]
    assert args["train_names"] == [names[i] for i in first]
    assert args["class_names"] == ["dark", "light"]


def test_a_name_that_no_terminal_shows_is_said_all_the_same(images, tmp_path, capsys):
    """Damaged, so that the command has to name it."""
    bad = next(path for path in (images / "train").rglob("*caf*"))
    bad.write_bytes(b"none")
    words = [
        "--dataset",
        str(images / "train"),
        "--arch",
        "demo_vit",
        "--output_dir",
        str(tmp_path),
        "--on_error",
        "skip",
    ]
    assert run(main_extract, [*words, "--num_workers", "0", "--device", "cpu"]) == 0
    assert "\\udce9" in capsys.readouterr().out
    assert (
        quoted(bad.relative_to(images / "train").as_posix()) == (tmp_path / "pets_train.skipped.txt").read_text()[:-1]
    )


@pytest.mark.parametrize("kind", ["answers", "self-training", "predictions"])
def test_tables_that_are_written_are_read_again(tmp_path, kind):
    names, probabilities = sorted(NAMES), torch.tensor([[0.2, 0.8]] * len(NAMES))
    words = (os.fsdecode(b"\xe9t\xe9"), "two\nlines")
    if kind == "answers":
        text = write_labels(dict.fromkeys(names, words[1]))
    elif kind == "predictions":
        text = Predictions(tuple(names), probabilities, words).table()
    else:
        pool = Pool(paths=names, names=names, class_names=words)
        of_pool(pool, probabilities).write(tmp_path / OF_POOL)
        text = (tmp_path / "pool_predictions.csv").read_text(encoding="utf-8")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    assert read_answers([tmp_path / "labels.csv"], names).labels == dict.fromkeys(names, words[1])
