"""A user's own images: labels from a CSV, and the way from an unlabelled folder to a trained model."""

import csv
import json
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data_selection.commands.any_method import main_select
from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError
from data_selection.images import pools
from data_selection.images.label_files import open_folders
from deit.main import main
from deit.options import parse
from deit.samples.sources import say_of_absent, say_of_leaks
from tests.support.flag_runs import words
from tests.support.trainer_runs import DEMO, command, log_lines, make_images, write_images

CLASSES = ("ankle boot", "trousers")


@pytest.fixture
def folder(tmp_path):
    """train/ with four images in no particular folders, val/<class>/ with one of each class."""
    write_images(tmp_path, ["train/b.png", "train/a/1.png", "train/a/2.png", "train/c.png"])
    write_images(tmp_path, ["val/cat/1.png", "val/dog/1.png"])
    return tmp_path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("header", ["", "file,label\n"])
def test_a_csv_labels_images_by_name(folder, header):
    labels = write(folder / "l.csv", header + "c.png,dog\na/2.png,cat\nb.png,\n")
    train, test = open_folders(folder, labels)
    assert train.names == ("a/1.png", "a/2.png", "b.png", "c.png")
    assert train.labels == [-1, 0, -1, 1]
    assert (train.class_names, train.classes, test.labels) == (("cat", "dog"), 2, [0, 1])
    both = write(folder / "v.csv", "dog/1.png,dog\ncat/1.png,a zebra\n")
    train, test = open_folders(folder, write(folder / "l.csv", "c.png,dog\n"), both)
    assert (train.labels, test.labels, train.class_names) == ([-1, -1, -1, 0], [-1, 0], ("dog",))
    assert test.strange == {"a zebra": 1}  # an image to evaluate on adds no class


def test_a_list_of_paths_is_a_part(folder):
    (folder / "list.txt").write_text("val/dog/1.png\ntrain/c.png\n")
    labels = write(folder / "l.csv", "train/c.png,cat\n")
    train, _ = open_folders(folder, labels, train_path=folder / "list.txt")
    assert (train.names, train.labels) == (("val/dog/1.png", "train/c.png"), [-1, 0])
    (folder / "elsewhere").mkdir()
    moved = (folder / "list.txt").rename(folder / "elsewhere/list.txt")
    again, _ = open_folders(folder, labels, train_path=moved, base=folder)
    assert (again.names, again.paths) == (train.names, train.paths)
    moved.rename(folder / "list.txt")
    with pytest.raises(UserError, match=r"list\.txt is a list, and its labels are read from a CSV: give --labels FILE"):
        open_folders(folder, train_path=folder / "list.txt")


def test_class_folders_are_alike_however_their_accents_are_written(tmp_path):
    apart = unicodedata.normalize("NFD", "été")
    write_images(tmp_path, ["train/a/1.png", "train/été/1.png", "val/a/1.png", f"val/{apart}/1.png"])
    train, test = open_folders(tmp_path)
    assert (train.class_names, train.labels, test.labels) == (("a", "été"), [0, 1], [0, 1])


def test_a_part_that_lacks_a_class_counts_as_the_other_one(tmp_path):
    """Class folders a, b, c to train on; the CSV of the evaluation images knows b and c alone, which stay 1 and 2."""
    write_images(tmp_path, ["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/x.png", "val/y.png"])
    train, test = open_folders(tmp_path, None, write(tmp_path / "v.csv", "x.png,c\ny.png,b\n"))
    assert (train.labels, test.labels) == ([0, 1, 2], [2, 1])
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert test.classes == 3


def test_classes_are_known_without_evaluation_images(folder):
    labels = write(folder / "l.csv", "c.png,dog\na/2.png,dog\nb.png,cat\na/1.png,cat\n")
    train, none = open_folders(folder, labels, val_path="none")
    assert (len(none), none.classes, none.class_names) == (0, 2, train.class_names) == (0, 2, ("cat", "dog"))


def test_no_class_is_made_of_no_label(folder):
    train, _ = open_folders(folder, write(folder / "l.csv", "c.png,dog\na/2.png,-1\nb.png,cat\na/1.png,-1.0\n"))
    assert (train.labels, train.class_names) == ([-1, -1, 0, 1], ("cat", "dog"))
    with pytest.raises(UserError, match="holds no label"):
        open_folders(folder, write(folder / "l.csv", "c.png,-1\n"))


def test_class_folders_of_evaluation_may_be_fewer_and_are_numbered_alike(tmp_path):
    write_images(tmp_path, ["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/b/1.png", "val/c/1.png"])
    _, test = open_folders(tmp_path)
    assert (test.labels, test.class_names, test.classes) == ([1, 2], ("a", "b", "c"), 3)


def test_the_folders_that_were_looked_at_are_named(tmp_path):
    write_images(tmp_path, ["mine/a/1.png", "mine/b/1.png", "yours/a/1.png", "yours/c/1.png"])
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    with pytest.raises(UserError, match=f"^{yours} has the label 'c', no class of {mine} \\(a, b\\)"):
        open_folders(tmp_path, train_path=mine, val_path=yours)
    labels = write(tmp_path / "l.csv", "a/1.png,a\nc/1.png,c\n")
    with pytest.raises(UserError, match=f"has the label 'c', no class of {mine} \\(a, b\\)"):
        open_folders(tmp_path, None, labels, train_path=mine, val_path=yours)
    labels = write(tmp_path / "l.csv", "a/1.png,d\nb/1.png,b\n")
    with pytest.raises(UserError, match=f"has the label 'b', no class of {yours} \\(a, c\\)"):
        open_folders(tmp_path, labels, train_path=mine, val_path=yours)


def test_evaluation_images_may_lack_a_class_that_labels_have(tmp_path):
    """Unless they have it in another spelling."""
    write_images(tmp_path, ["train/1.png", "train/2.png", "train/3.png", "val/robin/1.png", "val/wren/1.png"])
    labels, said = tmp_path / "l.csv", []
    _, test = open_folders(tmp_path, write(labels, "1.png,robin\n2.png,hawk\n3.png,wren\n"))
    assert (test.class_names, test.labels, test.strange) == (("hawk", "robin", "wren"), [1, 2], {})
    say_of_absent(test, said.append)
    assert said == ["warning: 1 of 3 classes without an evaluation image, of which the accuracy says nothing: hawk"]
    say_of_absent(open_folders(tmp_path, write(labels, "1.png,robin\n2.png,robin\n3.png,wren\n"))[1], said.append)
    assert len(said) == 1
    for word in ("Wren", "WREN", "wrens"):
        with pytest.raises(UserError, match=rf"the label '{word}' \(did you mean wren\?\), no class of .*val"):
            open_folders(tmp_path, write(labels, f"1.png,robin\n2.png,hawk\n3.png,{word}\n"))


WRONG = [
    ("file,label\nc.jpg,dog\n", r"1 of 1 files are not in .*train, first 'c\.jpg'; names .* such as 'c\.png'"),
    ("c.png,dog\nb.png,cat\nc.png,dog\n", r"names 'c\.png' more than once"),
    ("c.png,dgo\n", r"l\.csv has the label 'dgo' \(did you mean dog\?\), no class of .*val \(cat, dog\)"),
    ("c.png,\n", "holds no label"),
    ("", "holds no label"),
    ("c.png,dog,1\n", "3 columns"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_csv_is_named(folder, text, message):
    with pytest.raises(UserError, match=message):
        open_folders(folder, write(folder / "l.csv", text))


def test_labels_that_miss_are_told_before_training(folder):
    labels = write(folder / "l.csv", "c.png,dog\na/1.png,cat\n")
    (folder / "subset.json").write_text("[0, 2, 3]")
    words = command(folder, labels=labels, finetune="none")
    with pytest.raises(UserError, match=r"1 of the 3 images to use have no label in .*l\.csv, first 'b\.png'"):
        main(words)
    with pytest.raises(UserError, match=r"2 of the 4 images .*first 'a/2\.png'.*--subset_ids"):
        main(command(folder, labels=labels, finetune="none", data_set="FOLDER", subset_ids=None))
    with pytest.raises(UserError, match=r"1 of the 2 images .*v\.csv, first 'dog/1\.png'"):
        open_folders(folder, labels, write(folder / "v.csv", "cat/1.png,cat\n"))
    with pytest.raises(UserError, match=r"must be an existing \.csv"):
        open_folders(folder, str(folder / "none.csv"))
    with pytest.raises(UserError, match=r"train/b\.png lies in no class folder.*or give the labels in a CSV"):
        open_folders(folder)
    with pytest.raises(UserError, match="--labels is for FOLDER and FOLDERSUBSET, not --data-set DEMO"):
        parse(["--data-set", "DEMO", "--labels", "l.csv"])


def test_from_an_unlabelled_folder_to_a_trained_model(tmp_path, capsys):
    arrays = pools.load_demo()
    truth = {}
    for split, source, count in (("train", "train", 60), ("val", "test", 20)):
        rows = [i for i, label in enumerate(arrays[f"{source}_labels"]) if label in (9, 1)][:count]
        for k, i in enumerate(rows):
            label = CLASSES[int(arrays[f"{source}_labels"][i] == 1)]
            name = ("b/", "", "a-b/", "a/")[k % 4] + f"{97 * k % 61}.png"  # neither sorted nor in class folders
            path = tmp_path / "images" / split / (name if split == "train" else f"{label}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"{source}_images"][i]).save(path)
            truth[name] = label if split == "train" else truth.get(name)

    images = tmp_path / "images"
    device = ["--device", "cpu"]
    main_extract(["--dataset", str(images / "train"), "--arch", "demo_vit", "--output_dir", str(tmp_path), *device])
    features = tmp_path / "images_train.npy"
    main_select(["--features", str(features), "--budget", "20", "--output_dir", str(tmp_path),
                 "--filename", "chosen.json", *device])  # fmt: skip
    asked = (tmp_path / "chosen.txt").read_text().splitlines()  # what the annotators get
    with (tmp_path / "labels.csv").open("w", newline="") as handle:
        rows = [(name, truth[name]) for name in reversed(asked)]
        csv.writer(handle).writerows([("file", "label"), *rows])

    flags = {
        "data_path": images, "subset_ids": tmp_path / "chosen.json", "labels": tmp_path / "labels.csv",
        "finetune": pools.DEMO_FILE.parent / "demo_vit.safetensors", **DEMO,
    }  # fmt: skip
    linear = flags | {"mode": "linear", "epochs": None, "lr": None, "warmup_epochs": None}
    main(command(images, tmp_path / "out", **linear))
    assert log_lines(tmp_path / "out")[0]["test_acc1"] == 100  # boots and trousers: only wrong labels would miss

    train, _ = open_folders(images, str(tmp_path / "labels.csv"))
    ids = json.loads((tmp_path / "chosen.json").read_text())
    assert [train.names[i] for i in ids] == asked
    assert [train.class_names[train.labels[i]] for i in ids] == [truth[name] for name in asked]
    assert [np.asarray(train.image(i)).tolist() for i in ids[:3]] == [
        np.asarray(Image.open(images / "train" / name).convert("RGB")).tolist() for name in asked[:3]
    ]

    before = log_lines(tmp_path / "out")[0]
    other = next(name for name in train.names if name not in asked)
    (images / "train" / other).rename(images / "train" / "0.png.png")  # as many images as before, in another order
    main(command(images, tmp_path / "out", **linear))
    assert log_lines(tmp_path / "out")[0] == pytest.approx(before, rel=1e-3)  # the same images, at other places
    (images / "train" / asked[3]).unlink()
    with pytest.raises(UserError, match=rf"1 of 20 files are not in .*first '{asked[3]}'"):
        main(command(images, tmp_path / "out", **linear))


def test_evaluation_images_that_were_trained_on_and_classes_without_any_are_told(tmp_path, capsys):
    images = make_images(tmp_path / "images")
    flags = {
        "data_set": "FOLDERSUBSET", "data_path": images, "subset_ids": images / "subset.json", "mode": "linear",
        "finetune": "none", "model": "test_vit", "input_size": 32, "device": "cpu",
    }  # fmt: skip
    names = pools.open_pool(str(images / "train")).names
    learned, spared = (images / "train" / names[i] for i in (2, 0))  # the list's first, and one that it leaves out
    shutil.copy(spared, images / "val/class1/spared.png")
    main(words(flags))
    said = capsys.readouterr().out
    assert ("copies of images" in said, "without an evaluation image" in said) == (False, False)
    shutil.copy(learned, images / "val/class1/copied.png")
    main(words(flags))
    assert (
        "\nwarning: 1 of 12 evaluation images are copies of images to train on, and make the accuracy look better than "
        f"it is: {images / 'val/class1/copied.png'}\n"
    ) in capsys.readouterr().out
    shutil.rmtree(images / "val/class0")
    labels = "".join(f"{name},{name.split('/')[0]}\n" for name in names)
    main(words(flags | {"labels": write(images / "l.csv", labels)}))
    assert "1 of 2 classes without an evaluation image, of which the accuracy says nothing: class0" in (
        capsys.readouterr().out
    )


def test_files_that_are_gone_and_pools_in_memory_are_not_looked_at(tmp_path):
    write_images(tmp_path, ["a.png"])
    here, gone = str(tmp_path / "a.png"), str(tmp_path / "gone.png")
    train, test, said = pools.Pool(paths=[here, gone]), pools.Pool(paths=[gone, here]), []
    say_of_leaks(train, [0, 1], test, said.append)
    assert len(said) == 1
    assert said[0].startswith("warning: 1 of 2 evaluation images")
    say_of_leaks(train, [1], test, said.append)
    say_of_leaks(train, [0, 1], pools.Pool(arrays=np.zeros((2, 4, 4), np.uint8)), said.append)
    assert len(said) == 1
