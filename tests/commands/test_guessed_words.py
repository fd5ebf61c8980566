"""Words that are decoded by guess, as tables in neither UTF-8 nor UTF-16 are, are told by every reader of labels."""

import json

import pytest

from data_selection.annotation.run_folder import class_words
from data_selection.images.answers import read_answers
from data_selection.images.label_files import labelled_folder
from data_selection.images.list_files import guessed
from data_selection.images.pools import open_pool
from deit.samples.sources import say_of_unread
from tests.commands.test_inventory import extract, paint

TOLD = "is not in UTF-8 and is read as Windows' cp1252, with words such as {!r}: where these are wrong, save it as CSV"
SHOES = "обувь"
TABLE = f"file,label\na.png,{SHOES}\nb.png,cat\n"
IN_CP1251 = "îáóâü"  # what the word becomes


@pytest.fixture
def pool(tmp_path):
    for name in ("a.png", "b.png"):
        paint(tmp_path / "pool" / name)
    (tmp_path / "pool" / "l.csv").write_bytes(TABLE.encode("cp1251"))
    return tmp_path / "pool"


@pytest.mark.parametrize(("encoding", "word"), [
    ("cp1251", "обувь"), ("shift_jis", "猫"), ("gbk", "狗"), ("iso8859-2", "Kočka"), ("mac-roman", "été"),
    ("cp1252", "été"),
])  # fmt: skip
def test_a_guess_is_told(tmp_path, encoding, word):
    (tmp_path / "l.csv").write_bytes(f"file,label\na.png,{word}\nb.png,cat\n".encode(encoding))
    found = read_answers([tmp_path / "l.csv"], ["a.png", "b.png"])
    assert TOLD.format(found.labels["a.png"]) in found.understood[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_what_is_no_guess_is_not_told(tmp_path, encoding):
    (tmp_path / "l.csv").write_bytes("file,label\na.png,été\nb.png,cat\n".encode(encoding))
    assert "cp1252" not in read_answers([tmp_path / "l.csv"], ["a.png", "b.png"]).understood[0]


def test_names_alone_are_looked_for_in_the_pool(tmp_path):
    (tmp_path / "l.csv").write_bytes("file,label\né.png,cat\nb.png,dog\n".encode("cp1252"))
    assert "cp1252" not in read_answers([tmp_path / "l.csv"], ["é.png", "b.png"]).understood[0]
    assert guessed(tmp_path / "l.csv", ["cat", "dog"]) == ""


def test_in_tasks(tmp_path):
    task = json.dumps([{"image": "a.png", "choice": SHOES}], ensure_ascii=False).encode("cp1251")
    (tmp_path / "l.json").write_bytes(task)
    assert TOLD.format(IN_CP1251) in read_answers([tmp_path / "l.json"], ["a.png"]).understood[0]


def test_extraction_and_training_tell_it(pool, capsys):
    extract(pool, "--labels", pool / "l.csv")
    assert f"\n{pool / 'l.csv'} {TOLD.format(IN_CP1251)}" in f"\n{capsys.readouterr().out}"
    said = []
    for labelled in (labelled_folder(pool, pool / "l.csv"), open_pool(str(pool / "l.csv"))):
        say_of_unread(said.append, training=labelled, evaluation=open_pool(str(pool)))
    assert len(said) == 2
    assert all(line.startswith(f"warning: {pool / 'l.csv'} {TOLD.format(IN_CP1251)}") for line in said)


def test_class_names_too(tmp_path, capsys):
    (tmp_path / "names.txt").write_bytes(f"cat\n{SHOES}\n".encode("cp1251"))
    assert class_words(str(tmp_path / "names.txt")) == ["cat", IN_CP1251]
    assert TOLD.format(IN_CP1251) in capsys.readouterr().out
