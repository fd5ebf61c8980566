"""Tables of paths and labels as spreadsheets write them; one numbering for the lists of a pool."""

from pathlib import Path

import pytest
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.images.list_files import is_wide, number_labels, read_list
from data_selection.images.pools import open_pool

WORDS = (["a/ä.jpg", "b, c.jpg", "d.png"], ["Hündin", "cat", ""])


@pytest.mark.parametrize("header", ["", "file{}label\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
def test_tables_of_every_spreadsheet(tmp_path, header, separator, encoding):
    rows = [f'"{name}"{separator}{label}\r\n' for name, label in zip(*WORDS, strict=True)]
    path = tmp_path / "l.csv"
    path.write_bytes((header.format(separator) + "".join(rows) + "\r\n").encode(encoding))
    assert read_list(path) == WORDS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "utf-16"])
def test_text_lists(tmp_path, encoding):
    path = tmp_path / "l.txt"
    path.write_bytes("ä;1.jpg\r\n\r\nb,2.jpg\n".encode(encoding))
    assert read_list(path)[0] == ["ä;1.jpg", "b,2.jpg"]


def test_a_separator_within_names_is_none(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("a;1.jpg\nb;2.jpg\n")
    assert read_list(path) == (["a;1.jpg", "b;2.jpg"], ["", ""])
    path.write_text("a;1.jpg,cat\nb;2.jpg,dog\n")
    assert read_list(path) == (["a;1.jpg", "b;2.jpg"], ["cat", "dog"])
    path.write_text("z.bmp;1;2\n")
    with pytest.raises(UserError, match="3 columns"):
        read_list(path)


@pytest.mark.parametrize("data", [b"\x93NUMPY\x01\0", b"\xff\xd8\xff\xe0\x01", b"a.jpg\x81\x01", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_text_is_no_list(tmp_path, data):
    (tmp_path / "l.csv").write_bytes(data)
    with pytest.raises(UserError, match="is no list of image paths"):
        read_list(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("given", "labels", "words"),
    [
        (["10", "", "2"], [10, -1, 2], None),
        (["10.0", "", "2.0", "-1.0"], [10, -1, 2, -1], None),  # as pandas writes the same
        (["1_0", "10"], [1, 0], ["10", "1_0"]),
        (["1.0", "0"], [1, 0], ["0", "1.0"]),
        (["9" * 400, "1"], [1, 0], ["1", "9" * 400]),
        (["dog", "-1", "cat", "", "-1.0"], [1, -1, 0, -1, -1], ["cat", "dog"]),
        (["007", "7", "cat"], [0, 1, 2], ["007", "7", "cat"]),
    ],
)
def test_what_is_no_number_is_a_word(given, labels, words):
    assert number_labels(given, Path("l.csv")) == (labels, words)


def test_lists_of_a_pool_count_the_same_classes(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "train.csv").write_text("1.png,cat\n2.png,dog\n3.png,fox\n")
    (tmp_path / "test.csv").write_text("1.png,dog\n2.png,fox\n")
    train, test = (open_pool(str(tmp_path / f"{part}.csv")) for part in ("train", "test"))
    assert (train.labels, test.labels) == ([0, 1, 2], [1, 2])
    assert train.class_names == test.class_names == ("cat", "dog", "fox")
    (tmp_path / "more.csv").write_text("1.png,fox\n2.png,ant\n")  # known to test.csv through fox alone
    (tmp_path / "other.csv").write_text("1.png,zebra\n2.png,1\n")  # another pool's
    (tmp_path / "table.csv").write_bytes(b"\0\1\2\3")
    assert open_pool(str(tmp_path / "test.csv")).class_names == ("ant", "cat", "dog", "fox")
    assert open_pool(str(tmp_path / "other.csv")).labels == [1, 0]


@pytest.mark.parametrize(("given", "told"), [(["7", "007"], "007 and 7"), (["3", "01", "001"], "001 and 01")])
def test_two_ways_to_write_one_number_are_never_made_one_class(given, told):
    with pytest.raises(
        UserError, match=rf"l\.csv holds the labels {told}, which are one number: .*\(class {told[:3].strip()}\)"
    ):
        number_labels(given, Path("l.csv"))
    assert number_labels(["00", "01", "", "12"], Path("l.csv")) == ([0, 1, -1, 12], None)


def test_no_list_makes_a_class_of_no_label(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "train.csv").write_text("1.png,cat\n2.png,-1\n3.png,fox\n")
    (tmp_path / "test.csv").write_text("1.png,fox\n2.png,dog\n3.png,-1\n")
    (tmp_path / "other.csv").write_text("1.png,zebra\n2.png,-1\n")  # has nothing but that in common
    train, test = (open_pool(str(tmp_path / f"{part}.csv")) for part in ("train", "test"))
    assert (train.labels, test.labels) == ([0, -1, 2], [2, 1, -1])
    assert train.class_names == test.class_names == ("cat", "dog", "fox")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_empty_columns_at_the_end_are_none(tmp_path, separator):
    path = tmp_path / "l.csv"
    rows = ["file,label,,", "1.jpg,cat,,", "2.jpg,dog, ", "3.jpg,,,", ",,,"]
    path.write_text("".join(row.replace(",", separator) + "\n" for row in rows))
    assert read_list(path) == (["1.jpg", "2.jpg", "3.jpg"], ["cat", "dog", ""])
    assert not is_wide(path)
    path.write_text("1.jpg,\n2.jpg,\n".replace(",", separator))
    assert read_list(path) == (["1.jpg", "2.jpg"], ["", ""])
