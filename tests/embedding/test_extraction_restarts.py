"""What a crash of the machine left of an unfinished file is mended, and no row is taken that is not there."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_selection.common.errors import UserError
from data_selection.embedding import table_writer
from data_selection.embedding.forward import class_tokens
from tests.support.extraction_cases import COUNT, save, small_pool


def failing(at):
    calls = iter(range(1, 99))

    def embed(model, images):
        if next(calls) == at:
            raise UserError("stopped")
        return class_tokens(model, images)

    return embed


@pytest.fixture
def unfinished(model, tmp_path):
    """(the file, its whole content): two batches of 16 rows are done."""
    whole = save(small_pool(), model, tmp_path / "whole.npy")
    with pytest.raises(UserError, match="stopped"):
        save(small_pool(), model, tmp_path / "t.npy", embed=failing(5))
    done = (tmp_path / "t.partial" / "done").read_bytes()
    assert done == b"\1" * 32 + bytes(COUNT - 32)
    return tmp_path / "t.npy", whole


@pytest.mark.parametrize(
    ("name", "size", "kept"),
    [("done", 0, 0), ("done", 20, 20), ("done", None, 0), ("done", 99, 32), ("table.npy", 9_000, 0)],
)  # fmt: skip
def test_cut_files_are_made_again(unfinished, model, name, size, kept):
    path, whole = unfinished
    cut, lines = path.with_suffix(".partial") / name, []
    if size is None:
        cut.unlink()
    else:
        os.truncate(cut, size)
    assert np.array_equal(save(small_pool(), model, path, log=lines.append), whole)
    assert lines == ([f"going on: {kept} of {COUNT} rows are in {path.with_suffix('.partial')}"] if kept else [])


def test_marks_are_on_the_disk_before_they_count(model, tmp_path, monkeypatch):
    """fsync of the table, then of the marks, whenever rows are saved; of both when they are made."""
    synced, real = [], os.fsync

    def sync(file):
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        real(file)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(UserError, match="stopped"):
        save(small_pool(), model, tmp_path / "t.npy", embed=failing(4))
    assert (synced[:2], synced[-2:]) == (["table.npy", "done"], ["table.npy", "done"])


@pytest.mark.parametrize(("seconds", "some"), [(-1, True), (1e9, False)])
def test_rows_are_saved_as_time_goes_by(model, tmp_path, monkeypatch, seconds, some):
    """So that a kill costs little."""
    monkeypatch.setattr(table_writer, "SAVE_SECONDS", seconds)
    marks, done, embed = [], tmp_path / "t.partial" / "done", failing(5)

    def looking(*batch):
        marks.append(done.read_bytes().count(1) if done.exists() else 0)
        return embed(*batch)

    with pytest.raises(UserError, match="stopped"):
        save(small_pool(), model, tmp_path / "t.npy", embed=looking)
    assert (max(marks) > 0) is some
