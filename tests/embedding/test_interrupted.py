"""Images that change while an extraction lies unfinished or is at work, and kills while its files are put in place."""

from pathlib import Path

import numpy as np
import pytest

from data_selection.commands.extract import main_extract
from data_selection.common.feature_table import load_features
from data_selection.embedding import extraction, table_writer
from tests.support.changing_folder import extract, interrupt, paint


def rows_of(greys, out):
    """{name: features} made anew, elsewhere."""
    return extract(greys, out / "anew")


def assert_equal(found, fresh):
    assert found.keys() == fresh.keys()
    for name, row in fresh.items():
        np.testing.assert_allclose(found[name], row, rtol=1e-4, atol=1e-5)


def test_images_that_change_while_work_lies_unfinished_are_embedded_anew(greys, tmp_path, embedded, monkeypatch):
    """Mended under its name, and two that swapped their names: the rows that are done were theirs."""
    interrupt(greys, tmp_path, monkeypatch)
    embedded.clear()
    paint(greys / "0.png", 255)
    for old, new in (("1.png", "x"), ("2.png", "1.png"), ("x", "2.png")):
        (greys / old).rename(greys / new)
    found = extract(greys, tmp_path)
    assert embedded.pop() == ["0.png", "4.png", "5.png", "6.png", "7.png", "8.png"]
    assert_equal(found, rows_of(greys, tmp_path))


def test_an_image_that_was_left_out_and_is_mended_before_the_restart_is_embedded(greys, tmp_path, monkeypatch):
    whole = (greys / "1.png").read_bytes()
    (greys / "1.png").write_bytes(whole[:40])
    interrupt(greys, tmp_path, monkeypatch, "--on_error", "skip")
    (greys / "1.png").write_bytes(whole)
    assert_equal(extract(greys, tmp_path, "--on_error", "skip"), rows_of(greys, tmp_path))


def test_an_image_that_changes_while_it_is_embedded_is_embedded_again(greys, tmp_path, embedded, monkeypatch, capsys):
    real = extraction._write

    def write(writer, *args):
        real(writer, *args)
        paint(greys / "2.png", 255)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_write", write)
        extract(greys, tmp_path)
    assert "1 images have changed while they were embedded" in capsys.readouterr().out
    embedded.clear()
    found = extract(greys, tmp_path)
    assert embedded.pop() == ["2.png"]
    assert_equal(found, rows_of(greys, tmp_path))
    embedded.clear()
    extract(greys, tmp_path)
    assert embedded == []


@pytest.mark.parametrize("at", range(0, 26, 2))
def test_a_kill_while_files_are_put_in_place_loses_nothing(greys, tmp_path, monkeypatch, at):
    """Between any two of its steps: no table beside what tells of another, and the next start ends it, labels kept."""
    labels = {f"{i}.png": "ab"[i % 2] for i in range(9)}
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{file},{word}\n" for file, word in labels.items()))
    before = extract(greys, tmp_path, "--labels", tmp_path / "labels.csv")
    path = tmp_path / "out" / "pool_train.npy"
    paint(greys / "3.png", 250)
    (greys / "8.png").write_bytes((greys / "8.png").read_bytes()[:40])
    steps, killed = [], []

    def step(where, name):
        real = getattr(where, name)

        def taken(*words, **more):
            if "finish" in steps:
                steps.append(name)
                if len(steps) == at + 2:
                    killed.append(name)
                    raise KeyboardInterrupt
            return real(*words, **more)

        return taken

    publish = table_writer.TableWriter._publish
    with monkeypatch.context() as patch:
        patch.setattr(table_writer.TableWriter, "_publish", lambda *words: (steps.append("finish"), publish(*words))[1])
        for where, name in (
            (table_writer, "atomic_write"), (table_writer, "write_sidecar"), (table_writer, "save_record"),
            (table_writer.shutil, "rmtree"), (Path, "replace"), (Path, "unlink"),
        ):  # fmt: skip
            patch.setattr(where, name, step(where, name))
        with pytest.raises(KeyboardInterrupt):
            extract(greys, tmp_path, "--on_error", "skip")
    if path.exists():
        table = load_features(path)  # one of the two, whole
        assert set(table.names) in ({*before}, {*before} - {"8.png"})
        assert len(table.names) == 8 or np.array_equal(table.features[3], before["3.png"])
    found = extract(greys, tmp_path, "--on_error", "skip")
    table = load_features(path)
    assert [table.class_names[i] for i in table.labels] == [labels[name] for name in table.names]
    assert (tmp_path / "out" / "pool_train.skipped.txt").read_text() == "8.png\n"
    assert not [file for file in path.parent.iterdir() if "partial" in file.name or "earlier" in file.name]
    main_extract(["--dataset", str(greys), "--arch", "demo_vit", "--output_dir", str(tmp_path / "anew"),
                  "--num_workers", "0", "--amp", "off", "--on_error", "skip"])  # fmt: skip
    fresh = load_features(tmp_path / "anew" / "pool_train.npy")
    assert list(found) == list(fresh.names)
    np.testing.assert_allclose(np.array([*found.values()]), fresh.features, rtol=1e-4, atol=1e-5)
