"""Task files of annotation programs: Label Studio accepts ours, CVAT's manifest tells each image."""

import json
from xml.etree import ElementTree

import pytest
from PIL import Image

from data_selection.annotation.formats import label_studio_config, write_cvat, write_label_studio
from data_selection.annotation.originals import Shown
from data_selection.annotation.pages import render
from data_selection.common.files import file_digest
from data_selection.images.answers import read_answers

CLASSES = ["cat", 'a "b" <c>', *map(str, range(10))]


def test_label_studios_configuration_holds_any_class():
    view = ElementTree.fromstring(label_studio_config(CLASSES))
    choices = view.findall("Choices/Choice")
    assert [choice.get("value") for choice in choices] == CLASSES
    assert [choice.get("hotkey") for choice in choices] == [*"123456789", None, None, None]
    assert ElementTree.fromstring(label_studio_config([])).find("TextArea").get("name") == "label"


def test_a_class_that_xml_has_no_signs_for_comes_back_from_label_studio(tmp_path):
    words = ["a\x01b", '"foo"', '"7" inch', "two\nlines"]
    names = [f"{i}.png" for i in range(4)]
    write_label_studio(tmp_path, names, names, words, [(word, 0.5) for word in words])
    view = ElementTree.parse(tmp_path / "label_studio_config.xml")
    values = [choice.get("value") for choice in view.findall("Choices/Choice")]
    tasks = json.loads((tmp_path / "label_studio_tasks.json").read_text())
    assert [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks] == [[value] for value in values]
    done = [{"data": {"image": name}, "annotations": [{"result": [{
        "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [value]},
    }]}]} for name, value in zip(names, values, strict=True)]  # fmt: skip
    (tmp_path / "done.json").write_text(json.dumps(done))
    assert read_answers([tmp_path / "done.json"], names).labels == dict(zip(names, words, strict=True))


@pytest.mark.parametrize("classes", [CLASSES, []])
def test_label_studio_accepts_the_tasks(tmp_path, classes):
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="requirements-pages.txt has Label Studio's"
    )
    beliefs = [("cat", 0.91234), (CLASSES[1], 0.5)] if classes else None
    write_label_studio(tmp_path, ["a/x y.png", "b.png"], ["images/a/x y.png", "images/b.png"], classes, beliefs)
    known = interface.LabelInterface((tmp_path / "label_studio_config.xml").read_text())
    known.validate()
    for task in json.loads((tmp_path / "label_studio_tasks.json").read_text()):
        predictions = task.pop("predictions", [])  # which the package's validate_task cannot do
        assert known.validate_task(task)
        assert all(known.validate_prediction(one) for one in predictions)
        assert len(predictions) == len(classes[:1])


def test_tasks_name_file_address_and_belief(tmp_path):
    write_label_studio(tmp_path, ["a/x y.png"], ["images/a/x y.png"], CLASSES, [("cat", 0.91234)])
    (task,) = json.loads((tmp_path / "label_studio_tasks.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=images/a/x%20y.png", "file": "a/x y.png"}
    assert task["predictions"][0]["score"] == 0.9123
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["cat"]}


def test_cvats_manifest_tells_each_image(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "x.y.png")
    write_cvat(tmp_path / "m.jsonl", ["a/x.y.png"], [str(tmp_path / "x.y.png")], [Shown(30, 20, "", "")])
    head, kind, image = map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())
    assert (head, kind) == ({"version": "1.1"}, {"type": "images"})
    assert image["name"] + image["extension"] == "a/x.y.png"
    assert (image["extension"], image["width"], image["height"]) == (".png", 30, 20)
    assert image["checksum"] == file_digest(tmp_path / "x.y.png", "md5")


def test_a_page_escapes_what_it_is_given():
    text = render(
        "annotate.html", (), (), title="<script>alert(1)</script>", why="<b>", count=1, believed=False,
        data={"classes": ["</script><script>alert(1)</script>"]},
    )  # fmt: skip
    assert "<script>alert" not in text
    assert "<b>" not in text
