"""What a pool remembers of its images, and how images of a list are found again among today's."""

import io
import os
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from data_selection.common.errors import UserError
from data_selection.images import record as records
from data_selection.images.pools import Pool, open_pool
from data_selection.images.record import PoolRecord, load_record, match, measured, record_pool, save_record


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for i, name in enumerate(("a/one.png", "a/two.png", "three.png")):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / name)
    return root


def test_only_files_that_may_have_changed_are_read(folder, monkeypatch):
    first = record_pool(open_pool(str(folder)))
    assert first.names == ("a/one.png", "a/two.png", "three.png")
    assert first.sizes == tuple((folder / name).stat().st_size for name in first.names)
    read = []
    real = records.file_hash
    monkeypatch.setattr(records, "file_hash", lambda path: read.append(os.path.basename(path)) or real(path))  # noqa: PTH119
    assert record_pool(open_pool(str(folder)), first) == first
    assert read == []
    Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "a" / "two.png")
    os.utime(folder / "three.png", ns=(1, 1))
    (folder / "a" / "one.png").rename(folder / "a" / "zero.png")
    second = record_pool(open_pool(str(folder)), first)
    assert sorted(read) == ["three.png", "two.png", "zero.png"]
    assert second.hashes[2] == first.hashes[2]  # three.png: only its time is another
    assert second.hashes[1] == first.hashes[0]  # renamed
    assert second.hashes[0] not in first.hashes


def test_the_hash_is_of_the_bytes_and_arrays_have_one_too(folder):
    record = record_pool(open_pool(str(folder)))
    assert record.hashes[0] == records.digest((folder / "a" / "one.png").read_bytes())
    arrays = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    held = record_pool(Pool(arrays=arrays))
    assert held == PoolRecord((records.digest(arrays[0].tobytes()), records.digest(arrays[1].tobytes())))


def test_the_hash_is_of_the_whole_file(tmp_path):
    content = os.urandom(records.BLOCK + 1)
    (tmp_path / "large").write_bytes(content)
    assert records.file_hash(str(tmp_path / "large")) == records.digest(content)


def test_a_file_that_is_gone_has_no_hash(folder):
    pool = open_pool(str(folder))
    (folder / "three.png").unlink()
    assert record_pool(pool).hashes[2] == ""


NOW = PoolRecord(("h1", "h2", "h3", "h3", "h5"), ("a", "b", "c", "d", "e"))


@pytest.mark.parametrize(("wanted", "rows", "moved", "changed"), [
    ([("a", "h1"), ("e", "h5")], [0, 4], [], []),
    ([("old", "h2")], [1], [0], []),  # renamed
    ([("b", "h1"), ("a", "h2")], [0, 1], [0, 1], []),  # two files that changed names
    ([("a", "h0")], [0], [], [0]),  # another content under the name
    ([("gone", "h0"), (None, "h0")], [None, None], [], []),
    ([("d", "h3"), ("c", "h3")], [3, 2], [], []),  # copies keep their names
    ([("x", "h3"), ("d", "h3"), ("y", "h3")], [2, 3, None], [0], []),  # a copy is one image, once
    ([("a", "h5"), ("z", "h1")], [4, 0], [0, 1], []),  # the name of one is the content of another
    ([("old", "h1"), ("a", "h0")], [0, None], [0], []),  # the name of one that is gone is another's now
    ([("c", "")], [2], [], []),  # known by its name alone
    ([(None, "h5")], [4], [], []),  # without names
])  # fmt: skip
def test_images_are_found_again_by_content_then_by_name(wanted, rows, moved, changed):
    names, hashes = zip(*wanted, strict=True)
    assert match(names, hashes, NOW) == (rows, moved, changed)


@pytest.mark.parametrize(("today", "wanted", "had", "rows", "moved"), [
    ("abac", "ac", [2, 3], [2, 3], []),  # of copies the one that it was
    ("abac", "aa", [2, 0], [2, 0], []),
    ("abac", "aa", [2, 1], [2, 0], [1]),  # the row of one is no other's
    ("abac", "cb", [1, 7], [3, 1], [0, 1]),  # their rows hold others, or are gone
    ("abac", "da", [0, -2], [None, 0], [1]),  # what is nowhere has no row, whatever lies in its own
])  # fmt: skip
@pytest.mark.parametrize("names", ["none", "none then", "none today"])
def test_an_image_without_a_name_is_its_content_and_its_row_among_copies(today, wanted, had, rows, moved, names):
    known = [None] * len(had) if names != "none today" else ["0", "1"]
    record = PoolRecord(tuple(today), ("0", "1", "2", "3") if names == "none then" else None)
    assert match(known, list(wanted), record, had) == (rows, moved, [])


def test_a_record_survives_the_file(tmp_path):
    record = PoolRecord(("ab", ""), ("x\udce9 \n\"'.png", "é"), (3, 4), (1, 2**62))
    save_record(tmp_path / "X.npy", record)
    assert load_record(tmp_path / "X.npy", 2) == record
    assert record.rows([1]) == PoolRecord(("",), ("é",), (4,), (2**62,))
    with pytest.raises(UserError, match=r"X\.images\.json: name should be a list of 3 values"):
        load_record(tmp_path / "X.npy", 3)
    (tmp_path / "X.images.json").write_text('{"version": 2, "hash": []}')
    with pytest.raises(UserError, match=r"no record of images of version 1"):
        load_record(tmp_path / "X.npy", 0)
    save_record(tmp_path / "X.npy", None)
    assert load_record(tmp_path / "X.npy", 2) is None
    save_record(tmp_path / "X.npy", PoolRecord(("ab",)))
    assert load_record(tmp_path / "X.npy", 1) == PoolRecord(("ab",))


def test_bars_of_reading_and_measuring_come_to_their_end(tmp_path):
    paths = []
    for i in range(70):  # more than two spans
        paths.append(tmp_path / f"{i:02}.png")
        Image.new("L", (i + 1, 2)).save(paths[-1])
    pool, bars = Pool(paths=[str(path) for path in paths]), []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**options, file=io.StringIO())
            bars.append(self)

    record = measured(record_pool(pool, progress=Bar), pool, progress=Bar)
    assert [(bar.n, bar.desc) for bar in bars] == [(70, "read"), (70, "measure")]
    assert record.widths == tuple(range(1, 71))
    assert len(set(record.hashes)) == 70


def test_equal_images_that_were_renamed_are_looked_at_once(monkeypatch):
    """Blank tiles: 100,000 of them, each beside all the others, take half an hour."""
    looks = []

    class Copies(list):
        def __iter__(self):
            looks.append(1)
            return super().__iter__()

    monkeypatch.setattr(records, "defaultdict", lambda _: defaultdict(Copies))
    now = PoolRecord(("same",) * 50, tuple(f"new/{i}.png" for i in range(50)))
    found = match([f"old/{i}.png" for i in range(50)], ["same"] * 50, now)
    assert found == (list(range(50)), list(range(50)), [])
    assert len(looks) == 1
