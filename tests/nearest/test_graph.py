"""The graph and smoothed features against full matrices."""

import numpy as np
import pytest
import torch

from data_selection.nearest.graph import build_graph, nearest_neighbours, outside_average, smooth, smooth_outside
from tests.support import oracles_graph as oracle

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count, dimensions, seed=0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def graph_of(pool, k):
    return build_graph(*nearest_neighbours(pool, k))


def special_pool():
    """Copies, a clump of more copies than neighbours with a row near it, and an all-zero row."""
    pool = oracle.unit(rows(60, 5))
    pool[1:3] = pool[0]
    pool[10:22] = pool[10]
    pool[22] = oracle.unit(pool[10:11] + 1e-4)[0]
    pool[40] = 0
    return torch.tensor(pool, dtype=torch.float32)


@pytest.mark.parametrize("pool", [oracle.unit(rows(60, 5)), special_pool()], ids=["plain", "special"])
@pytest.mark.parametrize("k", [1, 10, 80])
def test_the_graph_matches_the_dense_one(pool, k):
    pool = torch.as_tensor(pool, dtype=torch.float32)
    graph = graph_of(pool, k)
    matrix, tau = oracle.average(pool, k)
    np.testing.assert_allclose(graph.average.toarray(), matrix, atol=2e-5)
    np.testing.assert_allclose(graph.reach, tau, atol=2e-7)


def test_copies_have_weight_1_and_an_all_zero_row_stands_alone():
    pool = special_pool()
    average = graph_of(pool, 10).average.toarray()
    np.testing.assert_allclose(average.sum(1), 1, atol=1e-6)
    for row in average[10:21, 10:23]:
        assert np.count_nonzero(row) >= 10
        np.testing.assert_allclose(row[row > 0], 1 / np.count_nonzero(row), atol=1e-6)
    assert average[40, 40] == 1
    assert not average[:40, 40].any()
    assert not average[41:, 40].any()


def test_rounding_does_not_tell_copies_apart():
    index = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    similarity = torch.ones(4, 3) + torch.tensor([[3e-7, 0, -3e-7]])
    average = build_graph(index, similarity).average.toarray()
    np.testing.assert_allclose(average, (1 - np.eye(4)) / 3, atol=1e-7)


def test_a_row_beside_copies_averages_over_them():
    pool = torch.eye(3)[[0, 0, 0, 1]] + 0.001  # its weights are below the smallest float
    average = graph_of(pool, 2).average.toarray()
    np.testing.assert_allclose(average, [[0, 0.5, 0.5, 0], [0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]])


def test_rows_at_right_angles_stand_alone():
    np.testing.assert_array_equal(graph_of(torch.eye(4), 2).average.toarray(), np.eye(4))


@pytest.mark.parametrize("pool", [oracle.unit(rows(60, 5)), special_pool()], ids=["plain", "special"])
@pytest.mark.parametrize(("k", "steps"), [(10, 2), (10, 0), (3, 5), (80, 1)])
def test_smoothed_features_match_the_dense_ones(pool, k, steps):
    pool = torch.as_tensor(pool, dtype=torch.float32)
    queries = torch.cat([oracle_rows(20), pool[[0, 10, 40]]])  # the last three are in the pool as well
    graph = graph_of(pool, k)
    smoothed, levels = smooth(pool, graph, steps)
    expected = oracle.smoothed(pool, k, steps)
    assert len(levels) == steps
    for level, other in zip(levels, expected, strict=False):
        np.testing.assert_allclose(level, other, atol=2e-5)
    np.testing.assert_allclose(smoothed, oracle.unit(expected[-1]), atol=2e-5)
    index, similarity = nearest_neighbours(pool, k, queries=queries)
    outside = smooth_outside(queries, levels, index, similarity, graph)
    np.testing.assert_allclose(outside, oracle.smoothed_outside(queries, pool, k, steps), atol=5e-5)


def oracle_rows(count):
    return torch.tensor(oracle.unit(rows(count, 5, seed=3)), dtype=torch.float32)


def test_shares_of_an_outside_row_do_not_underflow():
    pool = torch.eye(3)[[0, 0, 0, 1]] + 0.001
    graph = graph_of(pool, 2)
    average, alone = outside_average(*nearest_neighbours(pool, 2, queries=torch.tensor([[0.3, 0.3, 2.0]])), graph)
    assert not alone.any()
    np.testing.assert_allclose(average.sum(axis=1), 1, atol=1e-6)


def test_the_order_of_the_rows_changes_nothing():
    pool = special_pool()[[i for i in range(60) if not 11 <= i < 22]]  # of a clump, the lowest numbers are neighbours
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(5))
    smoothed, levels = smooth(pool, graph_of(pool, 10))
    other, other_levels = smooth(pool[order], graph_of(pool[order], 10))
    np.testing.assert_allclose(other, smoothed[order], atol=1e-6)
    np.testing.assert_allclose(other_levels[1], levels[1][order], atol=1e-6)
