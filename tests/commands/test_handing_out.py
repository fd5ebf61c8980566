"""What stands beside a choice: addresses for tools, the labels and the classes so far."""

import json
import shutil
from urllib.parse import quote

import pytest

from data_selection.annotation.run_folder import chosen_names
from data_selection.images.answers import write_labels
from tests.support.pages import page_data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tools_find_images_that_stay_where_they_are(choose, folder, tmp_path):
    out = choose(tmp_path / "run", images="none", budget=3)
    names = chosen_names(out)
    tasks = json.loads((out / "label_studio_tasks.json").read_text())
    assert [task["data"] for task in tasks] == [
        {"image": f"/data/local-files/?d={quote(str(folder / name)[1:])}", "file": name} for name in names
    ]  # below the root, which is Label Studio's document root then
    _, _, *lines = map(json.loads, (out / "cvat_manifest.jsonl").read_text().splitlines())
    assert [line["name"] + line["extension"] for line in lines] == names


def test_labels_so_far_are_shown_whatever_the_files_are_called(choose, folder, tmp_path):
    names = ['"quotes".png', "plain.png", "two\nlines.png"]
    (tmp_path / "pool").mkdir()
    for i, name in enumerate(names):
        shutil.copyfile(folder / f"{i:03}.png", tmp_path / "pool" / name)
    out = choose(tmp_path / "run", source=tmp_path / "pool", budget=3)
    (out / "annotate.csv").write_text(write_labels(dict(zip(names, "abc", strict=True))))
    choose(out, source=tmp_path / "pool", budget=3)
    assert sorted(image["label"] for image in page_data(out / "annotate.html")["images"]) == ["a", "b", "c"]
    assert page_data(out / "annotate.html")["classes"] == ["a", "b", "c"]


def test_classes_of_earlier_rounds_can_be_chosen_at_once(choose, tmp_path):
    one = choose(tmp_path / "one", budget=4)
    labels = dict(zip(chosen_names(one), ["dogs", "cats", "dogs", "cats"], strict=True))
    (one / "annotate.csv").write_text(write_labels(labels))
    two = choose(tmp_path / "two", budget=4, labelled=[one], classes="owls")
    assert page_data(two / "annotate.html")["classes"] == ["owls", "cats", "dogs"]


def test_the_pages_of_two_cameras_that_number_their_images_alike_keep_their_answers_apart(choose, folder, tmp_path):
    for first, camera in ((0, "left"), (9, "right")):
        (tmp_path / camera).mkdir()
        for i in range(4):
            shutil.copyfile(folder / f"{first + i:03}.png", tmp_path / camera / f"{i}.png")
    runs = [choose(tmp_path / f"{name} run", source=tmp_path / name, budget=4) for name in ("left", "right", "left")]
    assert chosen_names(runs[0]) == chosen_names(runs[1])
    left, right, again = (page_data(run / "annotate.html")["id"] for run in runs)
    assert left == again != right
