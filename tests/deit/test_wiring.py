"""What train_on_labels hands on to the trainer, and which labels it takes."""

import json
import shutil

import pytest

from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from deit.labelled import training
from tests.support.labelled_runs import rows, train, values_of, word
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")


@pytest.fixture
def begun(monkeypatch):
    """The words that the trainer is called with; it does nothing."""
    seen = []
    monkeypatch.setattr(training, "train", seen.append)
    return seen


def test_labels_in_files_of_their_own_stand_beside_those_of_earlier_rounds(folder, tmp_path):
    words = {"method": "random", "model": "demo_vit", "device": "cpu", "num_workers": 0}
    one, two = tmp_path / "one", tmp_path / "two"
    first = choose_images(folder, 12, one, **words)
    write_answers(one / "annotate.csv", {name: word(name) for name in first.files})
    second = choose_images(folder, 12, two, labelled=[one], strategy="label-free", **words)
    write_answers(tmp_path / "back.csv", {name: word(name) for name in second.files})
    train(two, labels=[tmp_path / "back.csv"])
    assert {row[0] for row in rows(two / "labels.csv")} == {*first.files, *second.files}


def test_flags_reach_the_trainer(folder, tmp_path, begun):
    done = choose_images(folder, 12, tmp_path / "run", method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(tmp_path / "run" / "annotate.csv", {name: word(name) for name in done.files})
    write_answers(tmp_path / "test.csv", {path.name: word(path.name) for path in folder.iterdir()})
    for flags in (
        {"mode": "auto"},
        {"mode": "lp-ft"},
        {"mode": "lp-ft", "minutes": 7, "seed": 4, "test": folder, "test_labels": tmp_path / "test.csv"},
    ):
        with pytest.raises(UserError, match="training was stopped"):
            train(tmp_path / "run", **flags)
    auto, plain, other = begun
    assert (auto.minutes, plain.minutes, other.minutes) == (training.MINUTES, None, 7)
    assert (plain.seed, other.seed) == (0, 4)
    assert (plain.val_path, other.val_path, other.val_labels) == ("none", "none", None)  # they are asked afterwards


def test_patches_that_the_trainer_has_not(folder, tmp_path):
    done = choose_images(folder, 12, tmp_path / "run", method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(tmp_path / "run" / "annotate.csv", {name: word(name) for name in done.files})
    beside = (tmp_path / "run" / values_of(tmp_path / "run")["features"]).with_suffix(".provenance.json")
    told = json.loads(beside.read_text())
    told["backbone"] |= {"arch": "vit_small", "patch_size": 8}
    beside.write_text(json.dumps(told))
    with pytest.raises(UserError, match="of vit_small with patches of 8 pixels, and the trainer has 16"):
        train(tmp_path / "run")


def test_a_labelled_image_under_another_name_is_told(folder, tmp_path):
    pool = shutil.copytree(folder, tmp_path / "pool")
    done = choose_images(pool, 12, tmp_path / "run", method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(tmp_path / "run" / "annotate.csv", {name: word(name) for name in done.files})
    (pool / done.files[0]).rename(pool / "new.png")
    with pytest.raises(UserError, match=rf"1 of the 12 labelled .*'{done.files[0]}' is now 'new\.png'; give them back"):
        train(tmp_path / "run")


@pytest.mark.parametrize("partial", [False, True])
def test_no_label_at_all_is_said(folder, tmp_path, partial):
    choose_images(folder, 12, tmp_path / "run", method="random", model="demo_vit", device="cpu", num_workers=0)
    (tmp_path / "run" / "annotate.csv").unlink()
    with pytest.raises(UserError, match=r"no image has a label: fill in .*annotate\.csv, or name the files .*--labels"):
        train(tmp_path / "run", partial=partial)
    assert not (tmp_path / "run" / "labels.csv").exists()
