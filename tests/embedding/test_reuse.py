"""Extraction of a folder that changes embeds what is new, and what earlier work knows is taken over."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_selection.commands import run_extract
from data_selection.commands.extract import main_extract
from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.system import lock
from data_selection.embedding.reuse import rows_of
from data_selection.images.pools import Pool, open_pool
from data_selection.images.record import record_pool
from tests.support.changing_folder import extract, interrupt, paint


def test_only_what_is_new_is_embedded(greys, tmp_path, embedded, capsys):
    first = extract(greys, tmp_path)
    assert embedded.pop() == sorted(first)
    paint(greys / "00.png", 250)  # sorts first
    (greys / "3.png").unlink()
    (greys / "5.png").rename(greys / "zz.png")
    paint(greys / "7.png", 251)
    capsys.readouterr()
    second = extract(greys, tmp_path)
    assert embedded.pop() == ["00.png", "7.png"]
    assert "9 rows in" in capsys.readouterr().out
    for name in ("0.png", "1.png", "2.png", "4.png", "6.png", "8.png"):
        assert np.array_equal(second[name], first[name])
    assert np.array_equal(second["zz.png"], first["5.png"])
    assert "3.png" not in second
    fresh = extract(greys, tmp_path / "fresh")
    for name, row in fresh.items():
        np.testing.assert_allclose(second[name], row, rtol=1e-4, atol=1e-5)
    assert not np.allclose(second["7.png"], first["7.png"], atol=1e-3)


def test_a_file_that_is_whole_is_left_as_it_is(greys, tmp_path, embedded, capsys):
    extract(greys, tmp_path)
    path = tmp_path / "out" / "pool_train.npy"
    before = (path.stat().st_ino, path.stat().st_mtime_ns)
    del embedded[:]
    extract(greys, tmp_path)
    assert embedded == []
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert f"{path} is already there: 9 rows of the same images" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "labels"), [(("dog", "cat"), [1, 0, 1]), (("cat", "owl"), [0, 1, 0])])
def test_other_labels_are_written_though_every_image_is_known(greys, tmp_path, embedded, words, labels):
    """Swapped, and called otherwise under the same numbers."""

    def listed(first, second):
        rows = zip(("0.png", "1.png", "2.png"), (first, second, first), strict=True)
        (tmp_path / "list.csv").write_text("".join(f"{greys}/{name},{word}\n" for name, word in rows))
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
def test_other_pixels_or_backbones_make_all_rows_anew(greys, tmp_path, embedded, flags):
    extract(greys, tmp_path)
    embedded.clear()
    extract(greys, tmp_path, *flags)
    assert len(embedded.pop()) == 9


def test_unfinished_work_is_taken_over_where_files_came_and_went(greys, tmp_path, embedded, monkeypatch):
    interrupt(greys, tmp_path, monkeypatch)
    embedded.clear()
    (greys / "1.png").unlink()
    paint(greys / "x.png", 255)
    extract(greys, tmp_path, "--on_error", "skip")
    assert embedded.pop() == ["4.png", "5.png", "6.png", "7.png", "8.png", "x.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == []


def test_an_image_that_unfinished_work_left_out_is_tried_again(greys, tmp_path, monkeypatch):
    """Its row is zeros, and the file is the same."""
    (greys / "1.png").write_bytes((greys / "1.png").read_bytes()[:40])
    interrupt(greys, tmp_path, monkeypatch, "--on_error", "skip")
    paint(greys / "x.png", 255)
    assert "1.png" not in extract(greys, tmp_path, "--on_error", "skip")
    assert (tmp_path / "out" / "pool_train.skipped.txt").read_text() == "1.png\n"


def test_files_that_cannot_be_read_are_not_each_other(greys):
    record = record_pool(open_pool(str(greys)))
    gone = replace(record, hashes=("", *record.hashes[1:-1], ""))
    assert list(rows_of(gone, np.arange(9))) == list(record.hashes[1:-1])


def test_unfinished_work_of_another_backbone_is_dropped_with_a_word(greys, tmp_path, embedded, monkeypatch, capsys):
    interrupt(greys, tmp_path, monkeypatch, "--n_last_blocks", "2")
    embedded.clear()
    extract(greys, tmp_path)
    assert len(embedded.pop()) == 9
    assert "unfinished work, which is dropped (n_last_blocks was 2, now 1)" in capsys.readouterr().out


@pytest.mark.parametrize("taken", ["earlier", "partial", "partial.aside"])
@pytest.mark.parametrize("before", [False, True])
def test_folders_that_somebody_else_made_are_not_removed(greys, tmp_path, monkeypatch, taken, before):
    if before:  # which would be put aside
        interrupt(greys, tmp_path, monkeypatch, "--n_last_blocks", "2")
    folder = tmp_path / "out" / f"pool_train.{taken}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").write_text("precious")
    if taken == "earlier":
        extract(greys, tmp_path)
    else:
        with pytest.raises(UserError, match=rf"pool_train\.{taken} is where .* holds other files \(notes\.txt\)"):
            extract(greys, tmp_path)
    assert (folder / "notes.txt").read_text() == "precious"


def test_work_that_another_process_is_at_is_not_dropped(greys, tmp_path, embedded, monkeypatch):
    interrupt(greys, tmp_path, monkeypatch, "--n_last_blocks", "2")
    unfinished = tmp_path / "out" / "pool_train.partial"
    with (unfinished / "lock").open("r+") as held:
        lock(held)
        with pytest.raises(UserError, match="another process is writing"):
            extract(greys, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == [unfinished.name]


def test_an_image_that_could_not_be_read_is_tried_again(greys, tmp_path, embedded):
    whole = (greys / "4.png").read_bytes()
    (greys / "4.png").write_bytes(whole[:40])
    assert len(extract(greys, tmp_path, "--on_error", "skip")) == 8
    (greys / "4.png").write_bytes(whole)
    embedded.clear()
    assert len(extract(greys, tmp_path, "--on_error", "skip")) == 9
    assert embedded.pop() == ["4.png"]
    assert not (tmp_path / "out" / "pool_train.skipped.txt").exists()


def test_a_file_from_before_records_is_made_anew(greys, tmp_path, embedded):
    extract(greys, tmp_path)
    sidecar(tmp_path / "out" / "pool_train.npy", "images").unlink()
    embedded.clear()
    extract(greys, tmp_path)
    assert len(embedded.pop()) == 9


def test_a_pool_in_memory_has_a_record_too(tmp_path):
    main_extract(["--dataset", "DEMO", "--split", "test", "--output_dir", str(tmp_path), "--amp", "off"])
    told = json.loads((tmp_path / "DEMO_test.images.json").read_text())
    assert (told["version"], told["name"], told["bytes"], len(told["hash"])) == (1, None, None, 2000)


def test_labels_are_looked_up_by_the_first_process_alone(tmp_path, monkeypatch):
    """The others would read the record, and all new images of a large pool, once more each."""
    monkeypatch.setattr(run_extract, "kept_labels", lambda *_: pytest.fail("of no use here"))
    monkeypatch.setattr(run_extract, "on_main", lambda *_: ([1, -1], ("a", "b")))  # what it has found
    labelled, bare = (Pool(paths=["x", "y"], names=["x", "y"], labels=labels) for labels in ([0, 0], None))
    for pool in (labelled, bare):
        run_extract.keep_labels(tmp_path / "x.npy", pool, World(1, 2, torch.device("cpu")))
    assert labelled.labels == [0, 0]
    assert (bare.labels, bare.class_names, bare.classes) == ([1, -1], ("a", "b"), 2)
