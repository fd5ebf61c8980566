"""Every file name survives a line of text and a cell of a table."""

import csv
import os

import pytest

from data_selection.common.listed_names import meant, quoted, unquoted
from data_selection.images.list_files import read_list

NAMES = [
    "a.png", "a b.png", "comma, semi; quote' and \"two\".png", " before.png", "after.png ", "\t.png", "a\tb.png",
    "new\nline.png", "\r.png", '"all".png', '"all"', "b\\slash.png", "b\\u0041.png", "é.png",
    os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"\xff\x81.png"), "line\u2028.png", "narrow\u202fspace.png", "'", "#.png",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_of_text(name):
    line = quoted(name)
    assert unquoted(line) == name
    assert len(line.splitlines()) == 1
    assert line == line.strip()
    line.encode()
    assert (line == name) == (name in ("a.png", "a b.png", "comma, semi; quote' and \"two\".png", "b\\slash.png",
                                       "b\\u0041.png", "é.png", "narrow\u202fspace.png", "'", "#.png"))  # fmt: skip


def written(path, rows, **how):
    with path.open("w", encoding="utf-8", newline="", **how) as handle:
        csv.writer(handle).writerows(rows)
    return path


def test_names_come_back_from_text_and_tables(tmp_path):
    known = set(NAMES).__contains__
    (tmp_path / "l.txt").write_text("".join(f"{quoted(name)}\n" for name in NAMES), encoding="utf-8")
    assert read_list(tmp_path / "l.txt", known)[0] == NAMES
    labels = [f"label {i}" for i in range(len(NAMES))]
    labels[3] = os.fsdecode(b"Stra\xdfe")
    table = [(quoted(name), quoted(label)) for name, label in zip(NAMES, labels, strict=True)]
    assert read_list(written(tmp_path / "l.csv", table), known) == (NAMES, labels)


def test_raw_tables_and_lists_are_understood(tmp_path):
    """As csv.writer, find, and sed on our own list leave them."""
    plain = [name for name in NAMES if not any("\ud800" <= letter <= "\udfff" for letter in name)]
    assert read_list(written(tmp_path / "l.csv", [(n, "x") for n in plain]), set(plain).__contains__)[0] == plain
    found = [os.fsdecode(name) for name in (b"caf\xe9.png", "ü.png".encode(), b"\xff\x81.png", b" a.png")]
    (tmp_path / "l.txt").write_bytes(b"\n".join(map(os.fsencode, found)))
    assert read_list(tmp_path / "l.txt", set(found).__contains__)[0] == found
    (tmp_path / "sed.csv").write_text(
        "".join(f"{quoted(name)},cat\n" for name in (" a.png", found[0], "new\nline.png"))
    )
    assert read_list(tmp_path / "sed.csv", set(NAMES).__contains__)[0][1:] == [found[0], "new\nline.png"]


def test_a_name_that_is_not_known_loses_the_spaces_around_it():
    assert meant(" a.png ", {"b.png"}.__contains__) == meant(" a.png ") == "a.png"
    assert meant(" a.png ", {"a.png", " a.png "}.__contains__) == " a.png "
    assert meant("Ã©.png", {"Ã©.png", "é.png"}.__contains__) == "Ã©.png"  # the first way that is known
