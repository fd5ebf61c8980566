"""Neighbours kept beside the feature file: equal to a fresh search, mended, resumed, shared."""

import threading

import numpy as np
import pytest
import torch

from data_selection.common.feature_table import FeatureTable, load_features, save_features
from data_selection.nearest import stored_graph as module
from data_selection.nearest.graph import Finder, nearest_neighbours
from data_selection.nearest.neighbour_files import neighbours_file
from data_selection.nearest.pool_reader import unit_mean
from data_selection.nearest.stored_graph import pool_graph
from tests.support.thread_world import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count, dimensions=6, seed=0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)).numpy()


def pool_rows():
    """200 rows with copies, more of them than neighbours, and an all-zero row."""
    features = rows(200)
    features[20:32] = features[20]
    features[50] = 0
    return features


def table_of(folder, features):
    save_features(folder / "P_train.npy", features)
    return load_features(folder / "P_train.npy")


def assert_fresh(found, features, k):
    """Neighbours equal a fresh search about the same point, bit by bit."""
    index, similarity = nearest_neighbours(features, k, centre=found.centre)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.similarity, similarity)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "LEAST_ROWS", 1)


@pytest.fixture
def asked(monkeypatch):
    """How many rows each search looked up, by the number of rows that it looked among."""
    counts = {}
    find = Finder.find

    def counting(self, ids):
        counts[self.pool.count] = counts.get(self.pool.count, 0) + len(ids)
        return find(self, ids)

    monkeypatch.setattr(Finder, "find", counting)
    return counts


def test_found_the_next_time(tmp_path, asked):
    table = table_of(tmp_path, pool_rows())
    found = pool_graph(table, 7)
    assert asked.pop(200) == 200
    assert_fresh(found, table.features, 7)
    assert found.centre.equal(unit_mean(table.features, torch.device("cpu")))
    asked.clear()
    for k in (7, 3, 15):  # 15: rounds of choosing ask for fewer than the training after them
        again = pool_graph(table, k)
        assert again.index.shape == (200, k)
        assert again.index[:, :7].equal(found.index[:, :k])
        assert again.similarity[:, :7].equal(found.similarity[:, :k])
    assert not asked
    assert pool_graph(table, 17).index.shape == (200, 17)
    assert asked[200] == 200
    assert {path.name for path in tmp_path.glob("*neigh*")} == {"P_train.neighbours.npz", "P_train.neighbours.json"}


def test_more_neighbours_than_rows(tmp_path, asked):
    table = table_of(tmp_path, rows(5))
    assert_fresh(pool_graph(table, 15), table.features, 15)
    asked.clear()
    assert pool_graph(table, 15).index.shape == (5, 4)
    assert not asked


CHANGES = {
    "added": lambda f: np.concatenate([f[:60], rows(3, seed=5), f[60:], rows(4, seed=6), f[20:21], f[50:51]]),
    "removed": lambda f: np.delete(f, [3, 22, 110], axis=0),
    "copies removed": lambda f: np.delete(f, [20, 31], axis=0),
    "a zero row's neighbours removed": lambda f: np.delete(f, [0, 1], axis=0),
    "both": lambda f: np.concatenate([np.delete(f, [0, 7, 150], axis=0), rows(2, seed=7)]),
    "changed": lambda f: np.concatenate([f[:90], rows(1, seed=8), f[91:]]),
    "added before": lambda f: np.concatenate([rows(2, seed=9), f]),
    "near copies added": lambda f: np.concatenate([f, f[70:100] + 1e-4 * rows(30, seed=10)]),  # as near as a last one
}


@pytest.mark.parametrize("change", CHANGES)
def test_mended_equals_fresh(change, tmp_path, asked):
    before = pool_graph(table_of(tmp_path, pool_rows()), 7)
    features = CHANGES[change](pool_rows())
    table = table_of(tmp_path, features)
    asked.clear()
    found = pool_graph(table, 5)
    assert asked.get(len(features), 0) < 120  # the others are only compared with what was added
    assert found.centre.equal(before.centre)
    assert_fresh(found, table.features, 5)
    assert_fresh(pool_graph(table, 7), table.features, 7)  # as many as were kept


def test_one_row_gone_asks_only_those_that_it_was_a_neighbour_of(tmp_path, asked):
    before = pool_graph(table_of(tmp_path, rows(200)), 15)
    asked.clear()
    pool_graph(table_of(tmp_path, np.delete(rows(200), 8, axis=0)), 5)
    assert asked == {199: int((before.index == 8).any(1).sum())}


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f[::-1].copy(),
        lambda f: f + 3.0,
        lambda f: np.concatenate([f, rows(40, seed=4) * 0.1 + 3]),
        lambda f: np.concatenate([f[20:22], f]),
        lambda f: np.delete(f, range(0, 200, 4), axis=0),
    ],
    ids=["other order", "other rows", "moved mean", "copies before", "many gone"],
)
def test_what_mending_cannot_do_is_searched_anew(change, tmp_path, asked):
    pool_graph(table_of(tmp_path, rows(200)), 5)
    table = table_of(tmp_path, change(rows(200)))
    asked.clear()
    found = pool_graph(table, 5)
    assert asked == {len(table): len(table)}
    assert pool_graph(table, 15).index.shape == (len(table), 15)
    assert asked == {len(table): len(table)}  # which the first search has kept
    assert found.centre.equal(unit_mean(table.features, torch.device("cpu")))
    assert_fresh(found, table.features, 5)


def test_goes_on_after_a_kill(tmp_path, asked, small_blocks, monkeypatch, capsys):
    table, write, written = table_of(tmp_path, pool_rows()), module.atomic_write, []

    def killed(path, mode="wb"):
        if path.suffix == ".npz" and len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, mode)

    monkeypatch.setattr(module, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        pool_graph(table, 7)
    monkeypatch.setattr(module, "atomic_write", write)
    asked.clear()
    found = pool_graph(table, 7)
    assert asked == {200: 200 - 4 * 13}  # four blocks of 13 rows; the fifth file is the request
    assert "going on with 4 of 16 blocks" in capsys.readouterr().out
    assert_fresh(found, table.features, 7)


def test_unfinished_work_of_another_pool_is_dropped(tmp_path, small_blocks):
    table = table_of(tmp_path, pool_rows())
    folder = neighbours_file(table.path).with_suffix(".partial")
    pool_graph(table, 7)
    neighbours_file(table.path).unlink()
    folder.mkdir()
    np.savez(folder / "000000.npz", index=np.zeros((13, 7)), similarity=np.zeros((13, 7)))
    (folder / "request.json").write_text('{"k": 7}')
    assert_fresh(pool_graph(table, 7), table.features, 7)
    assert not folder.exists()


def test_unfinished_work_for_another_number_of_neighbours_is_dropped(tmp_path, small_blocks, monkeypatch):
    table, write = table_of(tmp_path, pool_rows()), module.atomic_write

    def killed(path, mode="wb"):
        if path.name == "000003.npz":
            raise KeyboardInterrupt
        return write(path, mode)

    monkeypatch.setattr(module, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        pool_graph(table, 7)
    monkeypatch.setattr(module, "atomic_write", write)
    assert_fresh(pool_graph(table, 5), table.features, 5)


def test_rows_of_another_length_are_searched_anew(tmp_path):
    pool_graph(table_of(tmp_path, rows(60, 6)), 5)
    table = table_of(tmp_path, rows(60, 8))
    assert_fresh(pool_graph(table, 5), table.features, 5)


def test_a_table_without_a_file(tmp_path):
    table = FeatureTable(pool_rows())
    assert_fresh(pool_graph(table, 7), table.features, 7)


def test_memory_changes_nothing(tmp_path):
    table = table_of(tmp_path, pool_rows())
    found = pool_graph(table, 7, max_bytes=20_000)
    assert_fresh(found, table.features, 7)


@pytest.mark.parametrize("change", [None, "both"])
def test_ranks_share_the_work(change, tmp_path, asked, small_blocks):
    table = table_of(tmp_path, pool_rows())
    if change:
        pool_graph(table, 7)
        table = table_of(tmp_path, CHANGES[change](pool_rows()))
    asked.clear()
    for found in on_ranks(3, lambda world: pool_graph(table, 7, world=world)):
        assert_fresh(found, table.features, 7)
    if change is None:
        assert asked[200] == 200 * 4  # once by all ranks together, and by each fresh search


def test_of_two_commands_at_once_one_looks_up(tmp_path, asked, monkeypatch):
    """The second begins while the first is at its blocks, and waits for it: locks keep threads apart too."""
    table, real, waits = table_of(tmp_path, pool_rows()), module._Work.run, threading.Event()

    def run(self, progress):
        second.start()
        assert waits.wait(60)
        real(self, progress)

    def say(world, text):
        assert text == f"another process is making {neighbours_file(table.path)}: waiting for it"
        waits.set()

    monkeypatch.setattr(module._Work, "run", run)
    monkeypatch.setattr(module.World, "say", say)
    found = []
    second = threading.Thread(target=lambda: found.append(pool_graph(table, 7)))
    found.append(pool_graph(table, 7))
    second.join()
    assert asked == {200: 200}
    for one in found:
        assert_fresh(one, table.features, 7)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy", ".npz"]


def test_ranks_without_a_file_share_the_work():
    table = FeatureTable(pool_rows())
    for found in on_ranks(2, lambda world: pool_graph(table, 7, world=world)):
        assert_fresh(found, table.features, 7)
