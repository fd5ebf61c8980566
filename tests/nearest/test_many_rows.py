"""What is read in pieces is the same as in one: hashes and means of pools of more rows than a piece has."""

import numpy as np
import torch

from data_selection.nearest.neighbour_files import row_hashes
from data_selection.nearest.pool_reader import SPAN_ROWS, UnitPool, unit_mean


def rows(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0)).numpy()


def test_every_row_of_a_large_pool_has_its_own_hash():
    features = rows(5000)
    hashes = row_hashes(features)
    assert np.array_equal(hashes[4090:4100], row_hashes(features[4090:4100]))
    assert np.array_equal(hashes[-1:], row_hashes(features[-1:]))
    assert len(np.unique(hashes, axis=0)) == 5000


def test_the_mean_is_of_all_unit_rows():
    features = rows(3000) + 0.5
    assert 1 < len(UnitPool.spans(3000)) < 3000 / SPAN_ROWS + 8
    wanted = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(unit_mean(features, torch.device("cpu")), wanted, atol=1e-6)
