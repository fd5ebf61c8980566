"""The file that a pool's neighbours are kept in: read where it is whole and of the rows, and nothing left beside it."""

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.nearest import stored_graph as module
from data_selection.nearest.neighbour_files import neighbours_file, read_neighbours, row_hashes
from data_selection.nearest.stored_graph import pool_graph
from tests.nearest.test_stored_graph import assert_fresh, rows, table_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_file_of_another_format_is_made_anew(tmp_path):
    table = table_of(tmp_path, rows(60))
    pool_graph(table, 5)
    path = neighbours_file(table.path)
    with np.load(path) as kept:
        content = dict(kept)
    np.savez(path, **(content | {"format": module.FORMAT + 1}))
    assert read_neighbours(path) is None
    assert_fresh(pool_graph(table, 5), table.features, 5)


@pytest.mark.parametrize("name", ["index", "similarity", "hashes"])
def test_a_file_whose_parts_do_not_fit_is_made_anew(name, tmp_path):
    table = table_of(tmp_path, rows(60))
    pool_graph(table, 5)
    path = neighbours_file(table.path)
    with np.load(path) as kept:
        content = dict(kept)
    np.savez(path, **(content | {name: content[name][:20]}))
    assert read_neighbours(path) is None
    assert_fresh(pool_graph(table, 5), table.features, 5)


def killed(*_):
    raise KeyboardInterrupt


def test_what_a_kill_at_the_end_has_left_is_removed(tmp_path, monkeypatch):
    table = table_of(tmp_path, rows(60))
    folder = neighbours_file(table.path).with_suffix(".partial")
    remove = module.shutil.rmtree
    monkeypatch.setattr(module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        pool_graph(table, 5)
    assert folder.exists()
    monkeypatch.setattr(module.shutil, "rmtree", remove)
    monkeypatch.setattr(module._Work, "run", killed)  # the graph is there: nothing is looked up
    pool_graph(table, 5)
    assert not folder.exists()
    folder.mkdir()
    (folder / "request.json").write_text('{"k": 50}')  # another process looks more of them up
    pool_graph(table, 5)
    assert folder.exists()


def test_a_single_image_has_no_neighbours_and_leaves_nothing(tmp_path):
    table = table_of(tmp_path, rows(1))
    with pytest.raises(UserError, match="a pool of 1 rows has no neighbours"):
        pool_graph(table, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["P_train.npy"]


def test_no_neighbours_are_nothing_to_ask_for(tmp_path):
    with pytest.raises(UserError, match="0 neighbours asked for"):
        pool_graph(table_of(tmp_path, rows(60)), 0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_a_damaged_file_is_made_anew(content, tmp_path):
    table = table_of(tmp_path, rows(40))
    neighbours_file(table.path).write_bytes(content)
    assert read_neighbours(neighbours_file(table.path)) is None
    assert_fresh(pool_graph(table, 5), table.features, 5)


def test_hashes_are_of_the_values():
    features = rows(20)
    assert np.array_equal(row_hashes(features), row_hashes(torch.tensor(features)))
    assert np.array_equal(row_hashes(features), row_hashes(features.astype(np.float64)))
    assert np.array_equal(row_hashes(features), row_hashes(torch.tensor(features, requires_grad=True)))
    short = torch.tensor(features).bfloat16()
    assert np.array_equal(row_hashes(short), row_hashes(short.float()))
    assert len(np.unique(row_hashes(features), axis=0)) == 20
