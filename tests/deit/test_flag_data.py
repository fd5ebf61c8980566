"""Flags that say which images are trained on and evaluated."""

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from deit.options import parse
from deit.samples import sources
from tests.support.flag_runs import ROWS, Runs, row, words

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = {"lr": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("data"))


@row("data_set", "FOLDERSUBSET", "FOLDER")
def test_a_subset_or_all_of_it(runs, one, other):
    assert len(runs(data_set=one, epochs=1).seen) == 2
    assert len(runs(data_set=other, epochs=1, subset_ids=None).seen) == 6  # 24 images, four to a step


@row("data_path", "images", "other")
def test_images_come_from_the_folder(runs, tmp_path, one, other):
    from tests.support.trainer_runs import write_images

    for split in ("train", "val"):
        write_images(tmp_path / split, ["a/1.png", "b/22.png"])
    run = runs(data_path=tmp_path, data_set="FOLDER", subset_ids=None, epochs=1)
    assert [len(part.images) for part in run.seen] == [2]
    assert (run.seen[0].images.std((2, 3)) < 2).all()
    assert len(runs(data_set="FOLDER", epochs=1, subset_ids=None).seen) == 6


@pytest.mark.parametrize("flag", ["labels", "val_labels"])
def test_labels_come_from_the_csv(runs, tmp_path, flag):
    """The classes' names are swapped in the CSV of one part: its numbers are the other ones."""
    split = "train" if flag == "labels" else "val"
    names = [path.relative_to(runs.images / split).as_posix() for path in (runs.images / split).rglob("*.png")]
    other = {"class0": "class1", "class1": "class0"}
    (tmp_path / "l.csv").write_text("".join(f"{name},{other[name.split('/')[0]]}\n" for name in names))
    flags = {"epochs": 1, **STILL}
    plain, swapped = runs(**flags), runs(**flags, **{flag: tmp_path / "l.csv"})
    targets = [torch.cat([part.targets for part in run.seen]) for run in (plain, swapped)]
    assert torch.equal(targets[0], 1 - targets[1] if flag == "labels" else targets[1])
    if flag == "val_labels":
        assert plain.result["last"]["acc1"] + swapped.result["last"]["acc1"] == pytest.approx(100)


ROWS |= dict.fromkeys(("labels", "val_labels"), test_labels_come_from_the_csv)


@row("train_path", "images", "other")
def test_images_to_train_on_lie_elsewhere(runs, tmp_path, one, other):
    from tests.support.trainer_runs import write_images

    write_images(tmp_path / other, ["class0/1.png", "class1/22.png"])
    run = runs(train_path=tmp_path / other, data_set="FOLDER", subset_ids=None, epochs=1)
    assert [len(part.images) for part in run.seen] == [2]
    assert run.result["last"] != runs(data_set="FOLDER", subset_ids=None, epochs=1).result["last"]
    with pytest.raises(UserError, match="--train-path is for FOLDER"):
        parse(words({"data_set": "DEMO", "train_path": tmp_path}))


@row("val_path", "images", "none")
def test_evaluation_images_lie_elsewhere_or_nowhere(runs, capsys, one, other):
    plain, swapped = runs(epochs=2), runs(epochs=2, val_path=runs.images / "train")
    assert plain.result["last"] != swapped.result["last"]
    capsys.readouterr()
    without = runs(epochs=2, val_path=other)
    said = capsys.readouterr().out
    assert "evaluating on none" in said
    assert "trained after the last epoch (2), not evaluated: there are no evaluation images; wrote" in said
    assert without.result["last"] == {"epoch": 2}
    assert without.result["best"]["epoch"] == 2
    for name, weight in plain.state["model"].items():
        assert torch.equal(weight, without.state["model"][name])
    with pytest.raises(UserError, match="--val-path none leaves no image"):
        parse(words({"data_set": "FOLDER", "val_path": "none", "eval": True, "resume": "x"}))


@row("inat_category", "name", "order")
def test_the_rank_reaches_the_reader(runs, monkeypatch, tmp_path, one, other):
    ranks = []

    def read(root, train, year, category):
        ranks.append(category)
        return {"arrays": np.zeros((4, 8, 8, 3), np.uint8), "labels": [0, 1, 0, 1], "classes": 2}

    monkeypatch.setattr(sources, "read_inaturalist", read)
    common = {"data_set": "INAT", "subset_ids": None, "data_path": tmp_path, "epochs": 1}
    runs(**common, inat_category=one)
    runs(**common, inat_category=other)
    assert ranks == [one, one, other, other]
