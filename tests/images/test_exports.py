"""Exports of annotation tools: images without a tag, several tasks, the pool's folders in class folders."""

import json
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


def task(file, *values):
    results = [{"type": kind, "value": {key: words}} for kind, key, words in values]
    return {"data": {"image": file}, "annotations": [{"result": results}]}


def chosen(word):
    return "choices", "choices", [word]


COMMENT, BOX = ("textarea", "text", ["looks odd"]), ("rectanglelabels", "rectanglelabels", ["cat"])


def studio(tmp_path, *tasks):
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    return read_answers([tmp_path / "a.json"], POOL)


def test_a_comment_beside_choices_is_no_label(tmp_path):
    found = studio(tmp_path, task("c0.jpg", chosen("cat"), COMMENT), task("c1.jpg", COMMENT), task("d0.jpg", BOX))
    assert (found.labels, found.faults) == ({"cat/c0.jpg": "cat"}, [])
    assert found.understood[0].endswith("3 tasks; passed over: 1 rectanglelabels, 2 textarea")
    typed = studio(tmp_path, task("c0.jpg", ("textarea", "text", ["cat"])))
    assert typed.labels == {"cat/c0.jpg": "cat"}
    assert "passed over" not in typed.understood[0]


@pytest.mark.parametrize(("tasks", "told"), [
    ([task("c0.jpg", BOX), task("c1.jpg", BOX)], "but 2 rectanglelabels: ask for the labels by Choices"),
    ([task("c0.jpg", ("taxonomy", "taxonomy", [["animal", "cat"]]))], "but 1 taxonomy"),
    ([{"image": "c0.jpg", "id": 1, "animal": "cat", "annotator": 1, "updated_at": "2024"}], "but 1 animal"),
])  # fmt: skip
def test_what_is_passed_over_where_no_task_has_a_label_is_named(tmp_path, tasks, told):
    with pytest.raises(UserError, match=f"a.json holds no choice, nor a key that is called label .*{told}"):
        studio(tmp_path, *tasks)


def test_tasks_that_nobody_has_answered_are_no_error(tmp_path):
    asked = {"data": {"image": "c0.jpg", "text": "which?"}}
    skipped = {"data": {"image": "c1.jpg"}, "annotations": [{"was_cancelled": True, "result": [{"type": "rating"}]}]}
    predicted = {"data": {"image": "d0.jpg"}, "annotations": [], "predictions": [{"result": [1]}]}
    bare = {"image": "c0.jpg", "id": 1, "annotator": 1}
    assert studio(tmp_path, asked, skipped, predicted, bare).labels == {}
