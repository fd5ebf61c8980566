"""Averages over the graph: rows from outside, the order of the rows."""

import numpy as np
import torch

from data_selection.nearest.graph import nearest_neighbours, outside_average, smooth
from tests.nearest.test_graph import graph_of, special_pool


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
