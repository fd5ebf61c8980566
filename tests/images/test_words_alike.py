"""Labels that people would take for one word, or for none, are asked about before they become classes."""

import re

import pytest

from data_selection.images.answers import read_answers
from data_selection.images.words_alike import alike

BOTH = " If both are classes, name all with --classes of choose_images.py"


def faults(folder, words, classes=()):
    """What is told of words that lie under images 0.png, 1.png and so on."""
    names = [f"{i}.png" for i in range(len(words))]
    quoted = [word.replace('"', '""') for word in words]
    (folder / "a.csv").write_text("".join(f'{name},"{word}"\n' for name, word in zip(names, quoted, strict=True)))
    return read_answers([folder / "a.csv"], names, classes=classes).faults


def test_twins_with_as_many_images_are_told_once(tmp_path):
    (told,) = faults(tmp_path, ["cat", "Cat"] * 6 + ["dog"])
    assert told == "'Cat' (6 images) stands beside 'cat' (6): did you mean 'cat'?" + BOTH
    assert faults(tmp_path, ["cat", "Cat"] * 6 + ["dog"], ["Cat", "cat", "dog"]) == []


def test_even_words_that_are_merely_close_are_no_slips(tmp_path):
    assert faults(tmp_path, ["pullover", "pulover"] * 2) == []


TWINS = [
    ("cat", "c\u200bat"), ("cat", "\ufeffcat"), ("cat", "\uff43\uff41\uff54"), ("two words", "two_words"),
    ("two words", "two-words"), ("cat", "\u201ccat\u201d"), ("cat", "'Cat'"), ("cat", "\u00abcat\u00bb"),
    ("007", '="007"'), ("007", "'007"), ("cat", "cat."), ("cat", "cat,"), ("cat", "cat; "), ("cat", "cat:"),
    ("7", "007"), ("7", "7.0"), ("7", '="007"'), ("1", "1."),
]  # fmt: skip
OTHERS = [("5'", '5"'), (".", ","), ("1", "2"), ("1_0", "10"), ("-1", "1"), ("1.5", "15"), ("9" * 20, "9" * 19 + "8")]


@pytest.mark.parametrize(("word", "twin"), TWINS)
def test_words_that_look_the_same_are_told(tmp_path, word, twin):
    (told,) = faults(tmp_path, [word] * 4 + [twin] * 3 + ["other"] * 3)
    assert re.search(r" stands beside .*: did you mean", told)
    assert repr(word) in told


@pytest.mark.parametrize(("word", "other"), OTHERS)
def test_words_that_differ_are_two(word, other):
    assert alike(word) != alike(other)


@pytest.mark.parametrize("huge", ["1e999999999", "nan", "snan", "Infinity"])
def test_what_is_hardly_a_number_is_held_against_others(huge):
    assert alike(huge) == alike(huge)
    assert alike(huge) != alike("1")


NONE = [
    "NA", "<NA>", "null", "None", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "-1", "-1.0", "n/a.",
    "\u200bn/a", "unsure", "Unsure", "not sure", "NOT_SURE", "unclear", "skip", "skipped", "unknown", "unknown?", "idk",
    "ignore", "to-do", "todo", "TBD", "??", "? ?", "can't tell", "can\u2019t tell", "don't know",
    "unklar", "wei\u00df nicht",
]  # fmt: skip


@pytest.mark.parametrize("word", NONE)
def test_what_stands_for_no_label_is_asked_about(tmp_path, word):
    words = ["cat"] * 4 + ["dog"] * 4 + [word] * 5
    (told,) = faults(tmp_path, words)
    assert told.startswith(f"{word!r} (5 images) says that there is no label: leave these cells empty, or, if it is a")
    assert faults(tmp_path, words, ["cat", "dog", word]) == []
