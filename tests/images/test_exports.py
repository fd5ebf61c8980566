"""Exports of annotation tools: images without a tag, several tasks, the pool's folders in class folders."""

import zipfile

import pytest

from data_selection.common.errors import UserError
from data_selection.images.answers import read_answers

POOL = ["cat/c0.jpg", "cat/c1.jpg", "dog/d0.jpg"]
ALIKE = ["a/x.jpg", "b/x.jpg", "a/y.jpg", "b/z.jpg"]  # two are called so


def zipped(path, *files, **contents):
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.writestr(file, b"")
        for file, text in contents.items():
            archive.writestr(file.replace("__", "/") + ".xml", text)
    return path


def tagged(**words):
    tags = "".join(f"<image name='{name}.jpg'><tag label='{word}'/></image>" for name, word in words.items())
    return f"<annotations>{tags}</annotations>"


@pytest.mark.parametrize("packed", [True, False])
def test_cvat_s_folder_of_images_without_a_tag_is_no_class(tmp_path, packed):
    files = ["no_label/cat/c1.jpg", "dog/cat/c0.jpg", "dog/dog/d0.jpg"]
    source = tmp_path / "x"
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).touch()
    found = read_answers([zipped(tmp_path / "x.zip", *files) if packed else source], POOL, POOL)
    assert (found.labels, found.faults) == ({"cat/c0.jpg": "dog", "dog/d0.jpg": "dog"}, [])
    assert found.unlabelled == ["cat/c1.jpg"]
    (told,) = found.understood
    assert told.endswith("3 images, of which the 1 in no_label/, CVAT's folder of images without a tag, have no label")


def test_images_without_a_tag_alone_have_no_label_and_a_class_that_is_known_is_one(tmp_path):
    nothing = zipped(tmp_path / "n.zip", "no_label/cat/c1.jpg", "no_label/dog/d0.jpg")
    assert read_answers([nothing], POOL).labels == {}
    known = read_answers([nothing], POOL, classes=["no_label", "cat"])
    assert known.labels == {"cat/c1.jpg": "no_label", "dog/d0.jpg": "no_label"}


@pytest.mark.parametrize("word", ["no_label", "No label", "unlabelled", "Unlabeled"])
def test_words_for_no_label_are_asked_about(tmp_path, word):
    (tmp_path / "a.csv").write_text(f"file,label\ncat/c0.jpg,cat\ncat/c1.jpg,{word}\ndog/d0.jpg,dog\n")
    assert read_answers([tmp_path / "a.csv"], POOL).faults[0].startswith(f"{word!r} (1 images) says that there is no")


def test_every_task_in_a_zip_is_read(tmp_path):
    both = {"1__annotations": tagged(c0="cat"), "2__annotations": tagged(d0="dog")}
    found = read_answers([zipped(tmp_path / "x.zip", **both)], POOL)
    assert (found.labels, found.faults) == ({"cat/c0.jpg": "cat", "dog/d0.jpg": "dog"}, [])
    assert found.understood[0].count("CVAT's XML, 1 images") == 2
    other = {"1__annotations": tagged(c0="cat"), "2__boxes": "<annotation><filename>d0.jpg</filename></annotation>"}
    with pytest.raises(UserError, match=r"x\.zip/2/boxes\.xml: no <image> of CVAT's export"):
        read_answers([zipped(tmp_path / "x.zip", **other)], POOL)


def test_images_that_are_called_alike_are_told_apart_by_their_folders(tmp_path):
    found = read_answers([zipped(tmp_path / "x.zip", "dog/a/x.jpg", "cat/b/x.jpg", "dog/a/y.jpg")], ALIKE)
    assert (found.labels, found.faults) == ({"a/x.jpg": "dog", "b/x.jpg": "cat", "a/y.jpg": "dog"}, [])


def test_one_class_of_the_pool_s_folders(tmp_path):
    source = zipped(tmp_path / "dog.zip", "dog/a/y.jpg", "dog/b/z.jpg")
    assert read_answers([source], ALIKE, classes=["cat", "dog"]).labels == {"a/y.jpg": "dog", "b/z.jpg": "dog"}
    free = read_answers([source], ALIKE)  # dog/ may as well be what the zip was made of
    assert free.labels == {"a/y.jpg": "a", "b/z.jpg": "b"}
    assert (
        "all of them in dog/, which is a class only where --classes of choose_images.py names it"
        in (free.understood[0])
    )
    plain = read_answers([zipped(tmp_path / "p.zip", "sorted/dog/y.jpg", "sorted/cat/z.jpg")], ALIKE)
    assert plain.labels == {"a/y.jpg": "dog", "b/z.jpg": "cat"}
    assert "which is a class only" not in plain.understood[0]
