"""Extraction of a folder that changes embeds what is new, and what earlier work knows is taken over."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.system import lock
from data_selection.embedding import extraction
from data_selection.embedding.reuse import rows_of
from data_selection.images.pools import open_pool
from data_selection.images.record import load_record, record_pool


def paint(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((28, 28), grey, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(9):
        paint(tmp_path / "pool" / f"{i}.png", 20 * i)
    return tmp_path / "pool"


@pytest.fixture
def embedded(monkeypatch):
    """Row numbers that were embedded, by the extraction since the last look."""
    seen = []
    real = extraction.batches

    def noted(pool, parts, *args):
        seen.append([pool.names[row] for part in parts for row in part])
        return real(pool, parts, *args)

    monkeypatch.setattr(extraction, "batches", noted)
    return seen


def extract(folder, tmp_path, *flags):
    words = ["--dataset", folder, "--arch", "demo_vit", "--output_dir", tmp_path / "out", "--batch_size_per_gpu", 4]
    main_extract([str(word) for word in (*words, "--num_workers", 0, "--amp", "off", *flags)])
    path = tmp_path / "out" / "pool_train.npy"
    table = load_features(path)
    record = load_record(path, len(table))
    assert record.names == table.names
    return {name: table.features[i] for i, name in enumerate(table.names)}


def test_only_what_is_new_is_embedded(folder, tmp_path, embedded, capsys):
    first = extract(folder, tmp_path)
    assert embedded.pop() == sorted(first)
    paint(folder / "00.png", 250)  # sorts first
    (folder / "3.png").unlink()
    (folder / "5.png").rename(folder / "zz.png")
    paint(folder / "7.png", 251)
    capsys.readouterr()
    second = extract(folder, tmp_path)
    assert embedded.pop() == ["00.png", "7.png"]
    assert "9 rows in" in capsys.readouterr().out
    for name in ("0.png", "1.png", "2.png", "4.png", "6.png", "8.png"):
        assert np.array_equal(second[name], first[name])
    assert np.array_equal(second["zz.png"], first["5.png"])
    assert "3.png" not in second
    fresh = extract(folder, tmp_path / "fresh")
    for name, row in fresh.items():
        np.testing.assert_allclose(second[name], row, rtol=1e-4, atol=1e-5)
    assert not np.allclose(second["7.png"], first["7.png"], atol=1e-3)


def test_a_file_that_is_whole_is_left_as_it_is(folder, tmp_path, embedded, capsys):
    extract(folder, tmp_path)
    path = tmp_path / "out" / "pool_train.npy"
    before = (path.stat().st_ino, path.stat().st_mtime_ns)
    del embedded[:]
    extract(folder, tmp_path)
    assert embedded == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert f"{path} is already there: 9 rows of the same images" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "labels"), [(("dog", "cat"), [1, 0, 1]), (("cat", "owl"), [0, 1, 0])])
def test_other_labels_are_written_though_every_image_is_known(folder, tmp_path, embedded, words, labels):
    """Swapped, and called otherwise under the same numbers."""

    def listed(first, second):
        rows = zip(("0.png", "1.png", "2.png"), (first, second, first), strict=True)
        (tmp_path / "list.csv").write_text("".join(f"{folder}/{name},{word}\n" for name, word in rows))
        words = ["--dataset", tmp_path / "list.csv", "--arch", "demo_vit", "--output_dir", tmp_path / "out"]
        main_extract([*map(str, words), "--num_workers", "0", "--amp", "off"])
        return load_features(tmp_path / "out" / "list_train.npy")

    first = listed("cat", "dog")
    assert first.labels.tolist() == [0, 1, 0]
    features = first.features.copy()
    embedded.clear()
    second = listed(*words)
    assert embedded == [[]]
    assert (second.labels.tolist(), second.class_names) == (labels, tuple(sorted(words)))
    assert np.array_equal(second.features, features)


@pytest.mark.parametrize("flags", [["--input_size", "35"], ["--dtype", "float16"], ["--n_last_blocks", "2"]])
def test_other_pixels_or_backbones_make_all_rows_anew(folder, tmp_path, embedded, flags):
    extract(folder, tmp_path)
    embedded.clear()
    extract(folder, tmp_path, *flags)
    assert len(embedded.pop()) == 9


def interrupt(folder, tmp_path, monkeypatch, *flags):
    """An extraction that ends after its first batch."""
    real = extraction._write
    count = []

    def broken(writer, *args):
        real(writer, *args)
        writer.save()
        count.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "_write", broken)
    with pytest.raises(KeyboardInterrupt):
        extract(folder, tmp_path, *flags)
    monkeypatch.setattr(extraction, "_write", real)
    assert (tmp_path / "out" / "pool_train.partial").is_dir()


def test_unfinished_work_is_taken_over_where_files_came_and_went(folder, tmp_path, embedded, monkeypatch):
    interrupt(folder, tmp_path, monkeypatch)
    embedded.clear()
    (folder / "1.png").unlink()
    paint(folder / "x.png", 255)
    extract(folder, tmp_path, "--on_error", "skip")
    assert embedded.pop() == ["4.png", "5.png", "6.png", "7.png", "8.png", "x.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == []


def test_an_image_that_unfinished_work_left_out_is_tried_again(folder, tmp_path, monkeypatch):
    """Its row is zeros, and the file is the same."""
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    interrupt(folder, tmp_path, monkeypatch, "--on_error", "skip")
    paint(folder / "x.png", 255)
    assert "1.png" not in extract(folder, tmp_path, "--on_error", "skip")
    assert (tmp_path / "out" / "pool_train.skipped.txt").read_text() == "1.png\n"


def test_files_that_cannot_be_read_are_not_each_other(folder):
    record = record_pool(open_pool(str(folder)))
    gone = replace(record, hashes=("", *record.hashes[1:-1], ""))
    assert list(rows_of(gone, np.arange(9))) == list(record.hashes[1:-1])


def test_unfinished_work_of_another_backbone_is_dropped_with_a_word(folder, tmp_path, embedded, monkeypatch, capsys):
    interrupt(folder, tmp_path, monkeypatch, "--n_last_blocks", "2")
    embedded.clear()
    extract(folder, tmp_path)
    assert len(embedded.pop()) == 9
    assert "holds unfinished work by another backbone or of other pixels: it is dropped" in capsys.readouterr().out


def test_work_that_another_process_is_at_is_not_dropped(folder, tmp_path, embedded, monkeypatch):
    interrupt(folder, tmp_path, monkeypatch, "--n_last_blocks", "2")
    unfinished = tmp_path / "out" / "pool_train.partial"
    with (unfinished / "lock").open("r+") as held:
        lock(held)
        with pytest.raises(UserError, match="another process is writing"):
            extract(folder, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == [unfinished.name]


def test_an_image_that_could_not_be_read_is_tried_again(folder, tmp_path, embedded):
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[:40])
    assert len(extract(folder, tmp_path, "--on_error", "skip")) == 8
    (folder / "4.png").write_bytes(whole)
    embedded.clear()
    assert len(extract(folder, tmp_path, "--on_error", "skip")) == 9
    assert embedded.pop() == ["4.png"]
    assert not (tmp_path / "out" / "pool_train.skipped.txt").exists()


def test_a_file_from_before_records_is_made_anew(folder, tmp_path, embedded):
    extract(folder, tmp_path)
    sidecar(tmp_path / "out" / "pool_train.npy", "images").unlink()
    embedded.clear()
    extract(folder, tmp_path)
    assert len(embedded.pop()) == 9


def test_a_pool_in_memory_has_a_record_too(tmp_path):
    main_extract(["--dataset", "DEMO", "--split", "test", "--output_dir", str(tmp_path), "--amp", "off"])
    told = json.loads((tmp_path / "DEMO_test.images.json").read_text())
    assert (told["version"], told["name"], told["bytes"], len(told["hash"])) == (1, None, None, 2000)


def test_a_kill_while_a_table_is_replaced_leaves_no_row_to_another_image(folder, tmp_path, monkeypatch):
    """The record of new images beside the table of old ones, with as many rows, would be believed."""
    extract(folder, tmp_path)
    paint(folder / "3.png", 250)

    def kill(path, target):
        if path.parent.name == "pool_train.partial" and path.suffix == ".npy":
            raise KeyboardInterrupt
        return real(path, target)

    real = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            extract(folder, tmp_path)
    paint(folder / "9.png", 251)
    found = extract(folder, tmp_path)
    fresh = extract(folder, tmp_path / "fresh")
    assert found.keys() == fresh.keys()
    assert all(np.allclose(found[name], fresh[name], atol=1e-5) for name in fresh)
