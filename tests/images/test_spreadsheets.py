"""Files as annotators save them: workbooks, zips, linked folders, tasks with gaps, names without an ending."""

import io
import json
import re
import zipfile

import pytest

from data_selection.common.errors import UserError
from data_selection.images.answer_files import in_folders
from data_selection.images.answers import read_answers, write_labels, written_labels
from data_selection.images.list_files import read_list

NAMES = ["cats/b.jpg", "dogs/c.jpg", "e.v2.png"]
WANTED = {"cats/b.jpg": "Cat", "dogs/c.jpg": "Dog"}
TABLE = "file,label\ncats/b.jpg,Cat\ndogs/c.jpg,Dog\n"
TASKS = [
    {"data": {"image": file}, "annotations": [{"result": [{"value": {"choices": [word]}}]}]}
    for file, word in WANTED.items()
]


def zipped(**files):
    """The bytes of a zip of {name: text}."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


EXCEL = zipped(**{"[Content_Types].xml": "<Types/>", "xl/workbook.xml": "<workbook/>"})
LIBRE = zipped(**{"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": "<x/>"})
BOOKS = [
    ("a.xlsx", EXCEL), ("a.ods", LIBRE), ("a.csv", EXCEL), ("a.csv", LIBRE), ("a.xlsx", EXCEL[:50]),
    ("a.xls", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(99)), ("a.csv", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(99)),
    ("a.xls", b"\t\x08\x10\0\0\x06\5\0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), BOOKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BOOKS)])
def test_workbooks_are_called_so(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    for read in (lambda: read_answers([tmp_path / name], NAMES), lambda: read_list(tmp_path / name)):
        with pytest.raises(UserError, match=rf"{name} is a workbook, .* as CSV"):
            read()


def test_a_workbook_in_a_zip_or_called_one_is_none_either(tmp_path):
    (tmp_path / "a.zip").write_bytes(EXCEL)
    (tmp_path / "b.zip").write_bytes(zipped(**{"labels.csv": EXCEL.decode("latin-1")}))
    for name in ("a.zip", "b.zip/labels.csv"):
        with pytest.raises(UserError, match=f"{name} is a workbook"):
            read_answers([tmp_path / name[:5]], NAMES)


def test_a_table_that_is_only_called_a_workbook_is_read(tmp_path):
    (tmp_path / "a.xls").write_text(TABLE.replace(",", "\t"))
    assert read_answers([tmp_path / "a.xls"], NAMES).labels == WANTED


@pytest.mark.parametrize(
    "files",
    [
        {"project/labels.csv": TABLE, "__MACOSX/._labels.csv": "x"},
        {"project.json": json.dumps(TASKS)},
        {"notes/labels.TXT": TABLE},
        {"images/b.jpg": "", "images/c.jpg": "", "labels.csv": TABLE},
        {"Cat/b.jpg": "", "Dog/c.jpg": "", "counts.csv": "Cat,1\nDog,1\n"},
        {"Cat/b.jpg": "", "Dog/c.jpg": "", "synsets.txt": "Cat\nDog\n"},
    ],
)
@pytest.mark.parametrize("name", ["a.zip", "a.download"])
def test_a_zip_is_what_it_holds(tmp_path, name, files):
    (tmp_path / name).write_bytes(zipped(**files))
    found = read_answers([tmp_path / name], NAMES)
    assert (found.labels, found.faults) == (WANTED, [])


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds nothing: "),
        ({"b.jpg": "", "a/": ""}, "holds b.jpg: CVAT's XML, class folders of images, or one table or JSON is needed"),
        ({"1.csv": TABLE, "2.csv": TABLE}, r"holds 1\.csv, 2\.csv: .* give the file with the labels"),
        ({"a.json": "{}"}, r"a\.zip/a\.json is no export of Label Studio"),
    ],
)
def test_a_zip_without_labels_says_what_it_holds(tmp_path, files, told):
    (tmp_path / "a.zip").write_bytes(zipped(**files))
    with pytest.raises(UserError, match=told):
        read_answers([tmp_path / "a.zip"], NAMES)


def test_a_zip_with_a_password_is_told(tmp_path):
    data = bytearray(zipped(**{"a.csv": TABLE}))
    data[6] |= 1  # in the file's own head and in the table of contents
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read .*password"):
        read_answers([tmp_path / "a.zip"], NAMES)


def test_linked_class_folders_are_followed_and_loops_are_not(tmp_path):
    for file in ("elsewhere/b.jpg", "a/Dog/c.jpg"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    (tmp_path / "a/Cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/Dog/up").symlink_to(tmp_path / "a")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/Dog/gone.jpg").symlink_to(tmp_path / "nothing")
    found = read_answers([tmp_path / "a"], NAMES)
    assert (found.labels, found.faults) == (WANTED, [])
    assert found.understood[0].endswith("class folders (Cat, Dog), 2 images")
    (tmp_path / "a/Also").symlink_to(tmp_path / "elsewhere")  # under two words, and no loop
    assert read_answers([tmp_path / "a"], NAMES).faults[0] == (
        f"1 images have two labels: cats/b.jpg ('Also' and 'Cat' in {tmp_path / 'a'}); correct one of the two"
    )


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_row_with_its_label_first_is_no_path_of_folders(tmp_path, separator):
    path = tmp_path / "labels.csv"
    path.write_text(f"Cat{separator}cats/b.jpg\n")  # which ends like the image's path
    assert read_answers([path], ["cats/b.jpg"]).labels == {"cats/b.jpg": "Cat"}


def test_a_spreadsheet_computes_no_word_of_a_table_and_every_one_comes_back(tmp_path):
    labels, path = {"=1+1.png": "@SUM(A1)", "+1.png": "-x", "-1.png": "-1.5"}, tmp_path / "labels.csv"
    path.write_text(write_labels(labels))
    assert written_labels(path) == read_answers([path], [*labels]).labels == labels
    assert not [cell for cell in re.split("[,\n]", path.read_text()) if re.match("[=+@]|-[^1]", cell)]


@pytest.mark.parametrize("data", [None, "b.jpg", ["b.jpg"], 3])
def test_a_task_without_data_is_its_own(tmp_path, data):
    tasks = [TASKS[1], TASKS[0] | {"data": data, "image": "cats/b.jpg"}]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    assert read_answers([tmp_path / "a.json"], NAMES).labels == WANTED
    del tasks[1]["image"]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    assert "1 rows are of no image of the pool" in read_answers([tmp_path / "a.json"], NAMES).faults[0]


def test_annotations_that_disagree_are_told(tmp_path):
    def given(*words, cancelled=False):
        return {"result": [{"value": {"choices": [word]}} for word in words], "was_cancelled": cancelled}

    def read(*annotations):
        tasks = [TASKS[1], {"data": {"image": "b.jpg"}, "annotations": annotations}]
        (tmp_path / "a.json").write_text(json.dumps(tasks))
        found = read_answers([tmp_path / "a.json"], NAMES)
        assert found.labels == WANTED
        return found.understood[0].rpartition("JSON, ")[2]

    assert read(given("Dog"), given("Cat"), given()) == (
        "2 tasks, 1 of them with annotations that disagree, of which the last one counts"
    )
    for agreeing in ([given("Cat"), given("Cat"), given()], [given("Dog", cancelled=True), given("Cat")]):
        assert read(*agreeing) == "2 tasks"


def test_names_without_an_ending_are_hinted_at(tmp_path):
    def told(file, names):
        (tmp_path / "a.csv").write_text(f"file,label\n{file},Cat\n")
        return read_answers([tmp_path / "a.csv"], names).faults[0].partition("(a.csv")[2].partition("; take")[0]

    assert told("b", NAMES) == told("cats/B", NAMES) == "; did you mean cats/b.jpg?)"
    assert told("e.v2", NAMES) == "; did you mean e.v2.png?)"
    assert told("b", [*NAMES, "cats/b.png"]) == ")"
    assert told("dogs/b", [*NAMES, "dogs/b.png"]) == "; did you mean dogs/b.png?)"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["cat/1.jpg", "dog/2.jpg"], ["cat", "dog"]),
        (["cat/1.jpg", "cat/2.jpg"], ["cat", "cat"]),  # one class alone
        (["pets/sorted/cat/1.jpg", "pets/sorted/dog/2.jpg"], ["cat", "dog"]),  # in a folder that somebody has zipped
        (["cat/a/1.jpg", "cat/b/2.jpg", "dog/3.jpg"], ["cat", "cat", "dog"]),  # folders within a class are no classes
        (["pets/1.jpg", "pets/cat/2.jpg"], ["pets", "cat"]),
        (["1.jpg", "cat/2.jpg", "cat/__MACOSX/3.jpg"], ["cat"]),
    ],
)
def test_the_class_folder_is_the_first_that_not_all_images_share(files, words):
    assert in_folders(files) == [(file.rpartition(f"{word}/")[2], word) for file, word in
                                 zip([file for file in files if "/" in file], words, strict=False)]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"], {"1.jpg": "cat", "2.jpg": "dog", "3.jpg": "cat"}),
        (["pets/Train/cat/a/1.jpg", "pets/Test/dog/2.jpg"], {"a/1.jpg": "cat", "2.jpg": "dog"}),
        (["train/1.jpg", "train/cat/2.jpg", "val/dog/3.jpg"], {"2.jpg": "cat", "3.jpg": "dog"}),  # 1.jpg: in no class
        (["train/1.jpg", "val/2.jpg"], {}),
        (["train/1.jpg", "bus/2.jpg"], {"1.jpg": "train", "2.jpg": "bus"}),  # of vehicles
    ],
)
def test_a_split_is_no_class(files, words):
    assert dict(in_folders(files)) == words
