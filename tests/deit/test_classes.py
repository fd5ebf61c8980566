"""A checkpoint's outputs mean the classes that it was trained for: by name, not by number."""

import json

import pytest

from data_selection.common.errors import UserError
from data_selection.images.label_files import open_folders
from deit.main import main
from deit.runs.classes import difference
from deit.samples.sources import open_images
from tests.support.trainer_runs import checkpoint, command, make_images, write_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(images, output folder) of a run of one epoch on class0 and class1."""
    images, out = make_images(tmp_path_factory.mktemp("images")), tmp_path_factory.mktemp("run")
    main(command(images, out, epochs=1))
    return images, out


@pytest.fixture
def renamed(trained, tmp_path):
    """The same images, the classes called so that their numbers turn round."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for old, new in (("class0", "zebra"), ("class1", "class1")):
            (tmp_path / split / new).symlink_to(trained[0] / split / old)
    (tmp_path / "subset.json").symlink_to(trained[0] / "subset.json")
    return tmp_path


def test_runs_keep_the_names(trained):
    _, out = trained
    assert json.loads((out / "result.json").read_text())["class_names"] == ["class0", "class1"]
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        assert checkpoint(out, name)["args"]["class_names"] == ["class0", "class1"]


def test_another_class_set_is_neither_judged_nor_continued(trained, renamed):
    images, out = trained
    saved = out / "checkpoint.pth"
    message = r"checkpoint\.pth was trained for other classes \(only it has 'class0'; it lacks 'zebra'\)"
    judge = {"eval": True, "resume": saved, "finetune": None, "data_set": "FOLDER", "subset_ids": None}
    with pytest.raises(UserError, match=message):
        main(command(renamed, **judge))
    main(command(images, **judge))
    main(command(renamed, **judge | {"resume": None, "finetune": images / "weights.pth", "mode": None, "eval": None}))


def test_a_run_of_renamed_classes_is_not_continued(trained, renamed):
    """Of the same numbers: nothing else tells them apart."""
    for split in ("train", "val"):
        (renamed / split / "zebra").rename(renamed / split / "ant")
    with pytest.raises(UserError, match=r"was trained for other classes .*it lacks 'ant'"):
        main(command(renamed, resume=trained[1] / "checkpoint.pth", finetune=None, epochs=1))


def test_a_start_from_other_classes_is_said(trained, renamed, capsys):
    main(command(renamed, finetune=trained[1] / "checkpoint.pth", epochs=1))
    assert "checkpoint.pth was trained for other classes (only it has 'class0'" in capsys.readouterr().out
    main(command(trained[0], finetune=trained[1] / "checkpoint.pth", epochs=1))
    assert "other classes" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [(["a"], None, ""), (None, ["a"], ""), (["a", "b"], ("a", "b"), ""), (["b", "a"], ("a", "b"), "another order"),
     (list("abcdef"), ("a",), "only it has 'b', 'c', 'd', 'e' and 1 more"),
     (list("abcde"), ("a", "x", "y", "z"), "only it has 'b', 'c', 'd', 'e'; it lacks 'x', 'y', 'z'")],
)  # fmt: skip
def test_difference(before, now, told):
    found = difference({"class_names": before}, now)
    assert found == told or (told and found.endswith(told))


def test_images_one_level_too_deep_are_of_the_classes_they_lie_in(tmp_path):
    """The first folder would give one class, a loss of 0 and 100 %."""
    write_images(tmp_path, ["train/train/cat/1.png", "train/train/dog/1.png", "val/cat/1.png", "val/dog/sub/1.png"])
    assert [pool.class_names for pool in open_folders(tmp_path)] == [("cat", "dog")] * 2


def test_one_class_alone_is_refused(tmp_path):
    write_images(tmp_path, ["train/cat/1.png", "train/cat/2.png", "val/cat/1.png"])
    assert open_folders(tmp_path)[0].classes == 1
    with pytest.raises(UserError, match=r"are of one class, 'cat': two are needed\. Class folders lie right in"):
        open_images("FOLDER", tmp_path)


def test_tables_of_labels_from_spreadsheets(tmp_path):
    write_images(tmp_path, ["train/ä.png", "train/b.png", "val/Hündin/1.png", "val/cat/1.png"])
    for name, encoding in (("l.csv", "cp1252"), ("l.csv", "utf-16"), ("l.tsv", "utf-8-sig")):
        separator = "\t" if name == "l.tsv" else ";"
        (tmp_path / name).write_bytes(f"file{separator}label\nä.png{separator}Hündin\n".encode(encoding))
        train, _ = open_folders(tmp_path, str(tmp_path / name))
        assert (train.labels, train.class_names) == ([-1, 0], ("Hündin",))
