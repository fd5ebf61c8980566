"""What stands beside a choice: addresses for tools, the labels and the classes so far."""

import json
import os
import shutil
from urllib.parse import quote

import pytest

from data_selection.annotation.run_folder import chosen_names
from data_selection.commands import selection
from data_selection.common.errors import UserError
from data_selection.images.answers import write_labels
from deit.labelled.runs import open_run
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


def test_what_training_would_ask_about_is_told_and_stands_on_the_page_without_a_label(choose, tmp_path, capsys):
    out = choose(tmp_path / "run", budget=6)
    names = chosen_names(out)
    rows = [*zip(names, ["a", "b", "n/a", "unsure", "a", "?"], strict=True), (names[4], "b"), ("no.png", "a")]
    (out / "annotate.csv").write_text("file,label\n" + "".join(f"{name},{word}\n" for name, word in rows))
    before = (out / "annotate.csv").read_bytes()
    choose(out, budget=6)
    told = capsys.readouterr().out
    for word in (
        "'n/a' (1 images) says",
        "'unsure' (1",
        "'?' (1",
        f"{names[4]} ('a' and 'b'",
        "of no image of the pool",
    ):
        assert word in told
    assert "on the page 4 images have no label for that" in told
    assert "6 images, 2 of them labelled" in told
    data = page_data(out / "annotate.html")
    assert {image["file"]: image["label"] for image in data["images"] if "label" in image} == dict(rows[:2])
    assert data["classes"] == ["a", "b"]
    assert (out / "annotate.csv").read_bytes() == before
    (out / "annotate.csv").write_text(f"file,label\n{names[0]},unsure\n")
    choose(out, budget=6, classes="a,unsure")  # a class where it is named as one
    assert "1 of them labelled" in capsys.readouterr().out


def test_a_rare_word_that_earlier_rounds_have_often_is_no_slip_of_another(choose, tmp_path, capsys):
    one = choose(tmp_path / "one", budget=6)
    (one / "annotate.csv").write_text(write_labels(dict.fromkeys(chosen_names(one), "shoe")))
    two = choose(tmp_path / "two", budget=4, labelled=[one])
    names = chosen_names(two)
    (two / "annotate.csv").write_text(write_labels(dict.fromkeys(names, "shoes") | {names[0]: "shoe"}))
    open_run(two, [], None, partial=False, log=lambda _: None)  # training takes it
    choose(two, budget=4, labelled=[one])
    told = capsys.readouterr().out
    assert "not ready" not in told
    assert "4 images, 4 of them labelled" in told


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


def test_labels_come_back_under_the_made_up_names_that_images_were_handed_out_by(choose, folder, tmp_path):
    """A list of whole paths: CVAT and people who sort the files see 0_000.png, ..."""
    shoes = shutil.copytree(folder, tmp_path / "shoes")
    (shoes / "000.png").rename(shoes / "1_002.png")  # as another image is handed out
    (tmp_path / "list.txt").write_text("".join(f"{shoes / name}\n" for name in ("001.png", "002.png", "1_002.png")))
    out = choose(tmp_path / "run", source=tmp_path / "list.txt", budget=2)
    names = chosen_names(out)
    _, _, *lines = map(json.loads, (out / "cvat_manifest.jsonl").read_text().splitlines())
    files = [line["name"] + line["extension"] for line in lines]
    assert files == [f"{place}_{name.rpartition('/')[2]}" for place, name in enumerate(names)]
    images = "".join(f"<image name='{file}'><tag label='{i}'/></image>" for i, file in enumerate(files))
    (tmp_path / "cvat.xml").write_text(f"<annotations>{images}</annotations>")
    for i, file in enumerate(files):
        (tmp_path / "sorted" / str(i)).mkdir(parents=True)
        shutil.copyfile(out / "images" / file, tmp_path / "sorted" / str(i) / file)
    for number, labels in enumerate((tmp_path / "cvat.xml", tmp_path / "sorted")):
        found = open_run(out, [labels], None, partial=False, log=lambda _: None).answers
        assert (found.labels, len(found.understood)) == (dict(zip(names, "01", strict=True)), 1)
        two = choose(tmp_path / f"two {number}", source=tmp_path / "list.txt", budget=1, labelled=[out, labels])
        assert (two / "labelled.csv").read_text() == write_labels(dict(zip(names, "01", strict=True)))


def test_a_first_round_of_one_class_is_gone_on_with(choose, tmp_path):
    """Where nearly all images are alike; only training needs a second class."""
    one = choose(tmp_path / "one", budget=4)
    labels = dict.fromkeys(chosen_names(one), "whole")
    (one / "annotate.csv").write_text(write_labels(labels))
    with pytest.raises(UserError, match="not ready: all 4 labels are 'whole': two classes are needed"):
        open_run(one, [], None, partial=False, log=lambda _: None)
    for strategy in ("auto", "label-free"):
        two = choose(tmp_path / strategy, budget=4, labelled=[one], strategy=strategy)
        assert not labels.keys() & set(chosen_names(two))
        assert page_data(two / "annotate.html")["classes"] == ["whole"]
    with pytest.raises(UserError, match="--strategy half asks a model of labels of two classes"):
        choose(tmp_path / "no", labelled=[one], strategy="half")


def test_labels_in_no_letters_that_are_known_are_asked_for_as_utf_8(choose, tmp_path):
    """A table in Shift-JIS; the page was never written."""
    out = choose(tmp_path / "run", budget=4)
    table = "file,label\n" + "".join(f"{name},カー\n" for name in chosen_names(out))
    (out / "annotate.csv").write_bytes(table.encode("shift_jis"))
    for again in (lambda: choose(out, budget=4), lambda: choose(tmp_path / "two", budget=4, labelled=[out])):
        with pytest.raises(UserError, match=r'annotate\.csv: the label ".*udc81.*" of .*png is no text .*: save the'):
            again()
    (tmp_path / "classes.txt").write_bytes("カー\nネコ\n".encode("shift_jis"))
    with pytest.raises(UserError, match=r'^--classes: ".*udc81.*" is no text in UTF-8, .*: save the list as UTF-8'):
        choose(tmp_path / "two", budget=4, classes=tmp_path / "classes.txt")


def test_a_run_folder_may_have_any_name(choose, tmp_path):
    out = choose(tmp_path / os.fsdecode(b"caf\xe9"), budget=4)
    assert r"&#34;caf\udce9&#34;: 4 of" in (out / "annotate.html").read_text()


def test_the_list_of_names_is_there_after_a_kill_between_it_and_the_list(choose, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(selection, "save_names", dies)
    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path / "run", budget=4)
    monkeypatch.undo()
    out = choose(tmp_path / "run", budget=4)
    assert (out / "subset.txt").read_text().splitlines() == chosen_names(out)
