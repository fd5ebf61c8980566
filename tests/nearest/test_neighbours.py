"""The k nearest neighbours against a full sort."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from data_selection.common.errors import UserError
from data_selection.nearest import graph as module
from data_selection.nearest import neighbour_search
from data_selection.nearest.graph import nearest_neighbours
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import BLOCK_BYTES, normalise
from tests.support import oracles_graph as oracle
from tests.support.thread_world import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count, dimensions=8, seed=0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def assert_neighbours(found, expected):
    assert found[0].dtype == torch.int64
    assert found[1].dtype == torch.float32
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=2e-7)


@pytest.mark.parametrize(("count", "k"), [(2, 1), (60, 5), (313, 15), (700, 100)])
@pytest.mark.parametrize("max_bytes", [None, 20_000])
def test_neighbours_match_a_full_sort(count, k, max_bytes):
    pool, queries = rows(count), rows(40, seed=1)
    assert_neighbours(nearest_neighbours(pool, k, max_bytes=max_bytes), oracle.neighbours(pool, k))
    found = nearest_neighbours(pool, k, queries=queries, max_bytes=max_bytes)
    assert_neighbours(found, oracle.neighbours(pool, k, queries))


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("spread", [1, 1e-3])
def test_neighbours_of_a_pool_of_many_blocks(monkeypatch, narrow, spread):
    monkeypatch.setattr(module, "narrow_is_faster", lambda: narrow)
    pool = rows(2500, 16) * spread + rows(1, 16, seed=1)  # at 1e-3 all products are 1 within float32's error
    units = normalise(pool).double().numpy()
    assert_neighbours(nearest_neighbours(pool, 15, max_bytes=1_000_000), oracle.ranked(units, units, 15, True))


def test_bfloat16_is_left_where_too_many_rows_are_alike(monkeypatch):
    monkeypatch.setattr(module, "narrow_is_faster", lambda: True)
    kinds, widen = [], neighbour_search.Search.widen
    monkeypatch.setattr(
        neighbour_search.Search, "widen", lambda self, dtype: (kinds.append(dtype), widen(self, dtype))[1]
    )
    pool = torch.cat([rows(1200, 16), rows(1200, 16, seed=2) * 1e-3 + rows(1, 16, seed=1)])
    units = normalise(pool).double().numpy()
    assert_neighbours(nearest_neighbours(pool, 15), oracle.ranked(units, units, 15, True))
    assert kinds == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_any_float_type_and_a_memory_map(tmp_path, kind):
    np.save(tmp_path / "pool.npy", rows(200).numpy().astype(kind))
    table = np.load(tmp_path / "pool.npy", mmap_mode="r")
    expected = oracle.neighbours(table.astype(np.float32), 5)
    assert_neighbours(nearest_neighbours(table, 5, max_bytes=3000), expected)


def test_real_images_with_ties():
    digits = load_digits().data[:600].round(-1)  # coarse grey values: many cosines are equal but for rounding
    index, similarity = nearest_neighbours(digits, 10)
    _, cosine = oracle.neighbours(digits, 10)
    units = oracle.unit(digits)
    np.testing.assert_allclose(similarity, cosine, atol=2e-7)
    np.testing.assert_allclose(np.einsum("nd,nkd->nk", units, units[index]), cosine, atol=2e-7)
    assert all(len({i, *row}) == 11 for i, row in enumerate(index.tolist()))


def test_a_row_is_no_neighbour_of_itself_but_its_copies_are():
    pool = rows(50)
    pool[[7, 20, 31]] = pool[3].clone()
    index, similarity = nearest_neighbours(pool, 3)
    assert index[[3, 7, 20, 31]].tolist() == [[7, 20, 31], [3, 20, 31], [3, 7, 31], [3, 7, 20]]
    np.testing.assert_allclose(similarity[3], 1, atol=2e-7)
    assert nearest_neighbours(pool, 4, queries=pool[3:4])[0].tolist() == [[3, 7, 20, 31]]


def test_late_copies_are_left_out_of_the_search():
    pool = rows(3000)
    pool[500:2900] = pool[3].clone()
    unit_pool = UnitPool(pool, None, torch.device("cpu"), BLOCK_BYTES)
    kept = neighbour_search.first_copies(unit_pool, 6, 100)
    assert kept.tolist() == [*range(505), *range(2900, 3000)]
    index, _ = nearest_neighbours(pool, 5)
    assert index[[3, 500, 2899]].tolist() == [[500, 501, 502, 503, 504], [3, 501, 502, 503, 504], [3, *range(500, 504)]]
    rest = [*range(500), *range(2900, 3000)]
    np.testing.assert_array_equal(index[rest], oracle.neighbours(pool, 5)[0][rest])


def test_rows_of_one_hash_are_compared(monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.zeros(8, dtype=torch.int64))
    pool = rows(300)
    assert_neighbours(nearest_neighbours(pool, 3), oracle.neighbours(pool, 3))


def test_an_all_zero_row_has_similarity_0_to_all():
    pool = rows(30)
    pool[[0, 9]] = 0
    index, similarity = nearest_neighbours(pool, 29)
    assert index[0].tolist() == [*range(1, 30)]
    assert index[9].tolist() == [*range(9), *range(10, 30)]
    assert not similarity[[0, 9]].any()
    assert_neighbours((index, similarity), oracle.neighbours(pool, 29))
    assert nearest_neighbours(pool, 3, queries=pool[:1])[0].tolist() == [[0, 1, 2]]
    assert nearest_neighbours(torch.zeros(4, 2), 2)[0].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_as_many_neighbours_as_there_are():
    pool = rows(6)
    assert nearest_neighbours(pool, 6)[0].shape == (6, 5)
    assert nearest_neighbours(pool, 50, queries=rows(3, seed=1))[0].shape == (3, 6)
    assert nearest_neighbours(pool[:1], 5, queries=pool[:2])[0].tolist() == [[0], [0]]
    with pytest.raises(UserError, match="pool of 1 rows has no neighbours"):
        nearest_neighbours(pool[:1], 5)


def test_what_cannot_be_searched_is_refused():
    pool = rows(30)
    with pytest.raises(UserError, match="0 neighbours asked for"):
        nearest_neighbours(pool, 0)
    with pytest.raises(UserError, match=r"\(30, 8\), \(2, 7\)"):
        nearest_neighbours(pool, 3, queries=rows(2, 7))
    pool[11, 2] = torch.nan
    with pytest.raises(UserError, match="first in row 11"):
        nearest_neighbours(pool, 3)
    with pytest.raises(UserError, match="first in row 11"):
        nearest_neighbours(rows(30), 3, queries=pool)


def test_memory_is_bounded(monkeypatch):
    largest, take = [], neighbour_search.Scratch.take
    monkeypatch.setattr(
        neighbour_search.Scratch,
        "take",
        lambda self, *shape: (largest.append(4 * shape[0] * shape[1]), take(self, *shape))[1],
    )
    pool = rows(2000)
    for limit in (20_000, 400_000):
        largest.clear()
        nearest_neighbours(pool, 5, max_bytes=limit)
        assert limit / 8 < max(largest) < limit


def test_pairs_that_wait_for_their_decision_are_few(monkeypatch):
    counts, close_pairs = [], neighbour_search.close_pairs

    def spy(product, top, slack, most):
        top, found = close_pairs(product, top, slack, most)
        counts.append((len(product), most, 0 if found is None else len(found[0])))
        return top, found

    monkeypatch.setattr(neighbour_search, "close_pairs", spy)
    pool = torch.cat([rows(300, 16), rows(700, 16, seed=2) * 1e-4 + rows(1, 16, seed=1)])
    units = normalise(pool).double().numpy()
    found = nearest_neighbours(pool, 5, max_bytes=300_000)
    assert_neighbours(found, oracle.ranked(units, units, 5, True))
    step = max(count for count, _, _ in counts)
    assert min(count for count, _, _ in counts) < step / 2  # they were cut
    assert all(found <= 256 * step for _, _, found in counts)


def test_very_many_pairs_are_not_even_listed(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "nonzero", None, raising=False)
    for shape in ((64, 2048), (64, 20)):  # folded and not
        top, found = neighbour_search.close_pairs(torch.zeros(shape), torch.full((64, 5), -torch.inf), 1e-6, 1000)
        assert found is None
        assert not top.any()


def test_all_zero_rows_take_no_time(monkeypatch):
    counts, exact_dot = [], neighbour_search.exact_dot
    monkeypatch.setattr(neighbour_search, "exact_dot", lambda a, b: (counts.append(len(a)), exact_dot(a, b))[1])
    pool = rows(2000)
    pool[::4] = 0
    nearest_neighbours(pool, 5)
    assert sum(counts) < 20 * len(pool)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_find_the_same(size):
    """As threads; in processes every method that needs neighbours is run by methods/test_ranks."""

    def both(**world):
        return [
            *nearest_neighbours(rows(400), 7, **world),
            *nearest_neighbours(rows(400), 7, queries=rows(2, seed=1), **world),
        ]

    alone = both()
    for together in on_ranks(size, lambda world: both(world=world)):
        assert all(map(torch.equal, alone, together))
