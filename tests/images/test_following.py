"""Known images are found in today's pool by content, and those that are gone or exchanged are named."""

import pytest

from data_selection.images.following import follow, follow_labels, told
from data_selection.images.pools import Pool
from data_selection.images.record import file_hash, record_pool


@pytest.fixture
def root(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text(f"picture of {name}")
    return tmp_path


def pool(root):
    names = sorted(path.name for path in root.iterdir())
    return Pool(paths=[str(root / name) for name in names], names=names)


def known(root, names="abc"):
    return {name: file_hash(str(root / name)) for name in names}


def test_what_is_as_it_was_is_not_mentioned(root):
    before = known(root)
    (root / "a0").write_text("another one, which sorts first")
    assert follow(before, pool(root)) == ({}, [])


def test_names_that_were_exchanged_are_followed_by_content(root):
    before = known(root)
    (root / "a").rename(root / "t")
    (root / "b").rename(root / "a")
    (root / "t").rename(root / "b")
    assert follow(before, pool(root)) == ({"a": "b", "b": "a"}, [])


def test_a_new_name_is_found_and_what_is_gone_or_another_is_lost(root):
    before = known(root)
    (root / "a").rename(root / "z")
    (root / "b").unlink()
    (root / "c").write_text("something else")
    moved, lost = follow(before, pool(root))
    assert (moved, lost) == ({"a": "z"}, ["b", "c"])
    assert told(moved, lost) == "'a' is now 'z'; 'b' is gone or has another content; 'c' is gone or has another content"
    assert told(moved, lost, 1) == "'a' is now 'z' and 2 more"


def test_a_content_that_nobody_noted_is_known_by_name(root):
    assert follow({"a": "", "b": ""}, pool(root)) == ({}, [])
    assert follow({"a": "", "gone": ""}, pool(root)) == ({}, ["gone"])


def test_labels_follow_the_content_before_the_name(root):
    before, labels = record_pool(pool(root)), [0, 1, 2, -1]
    (root / "a").write_text("picture of b")
    (root / "b").write_text("picture of a")
    (root / "c").rename(root / "z")
    assert follow_labels("abcd", labels, before, pool(root)) == ([1, 0, -1, 2], 0)
    (root / "a").write_text("what was b, mended")
    assert follow_labels("abcd", labels, before, pool(root)) == ([-1, 0, -1, 2], 0)
    (root / "b").write_text("b, mended")
    assert follow_labels("abcd", labels, before, pool(root)) == ([0, 1, -1, 2], 2)
    assert follow_labels("abcd", labels, None, pool(root)) == ([0, 1, -1, -1], 0)
