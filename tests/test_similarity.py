"""The blocked nearest-reference kernel against the full float64 matrix."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_selection.errors import UserError
from data_selection.similarity import exact_dot, nearest, recheck


def textbook(features, references, metric):
    """(value, index) from the full matrix in float64; of equal ones the lowest index."""
    a, b = (torch.as_tensor(np.asarray(x), dtype=torch.float32) for x in (features, references))
    if metric == "cosine":
        a, b = F.normalize(a, dim=1).double(), F.normalize(b, dim=1).double()
        value, index = (a[:, None] * b).sum(-1).max(1)
        return value.float(), index
    value, index = (a.double()[:, None] - b.double()).square().sum(-1).min(1)
    return value.float(), index


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("count", "references"), [(1, 1), (300, 1), (300, 40), (7, 300)])
def test_matches_the_full_matrix(metric, kind, count, references):
    generator = np.random.default_rng(count)
    features = generator.normal(size=(count, 24)).astype(kind)
    points = torch.from_numpy(generator.normal(size=(references, 24)).astype(np.float32))
    value, index = nearest(features, points, metric=metric, max_bytes=5000)
    expected_value, expected = textbook(features, points, metric)
    assert index.tolist() == expected.tolist()
    torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("max_bytes", [1, 3000, 1 << 25])
def test_equal_references_give_the_lowest_index(metric, max_bytes):
    rows = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    points = rows[:30].repeat(5, 1)[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    _, index = nearest(rows, points, metric=metric, max_bytes=max_bytes)
    same = (points[index][:, None] == points).all(-1)
    assert torch.equal(index, same.int().argmax(1))


def test_near_ties_are_decided_exactly():
    """References that differ by less than a float32 product can tell."""
    base = F.normalize(torch.randn(1, 384, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    points = (base + 3e-8 * torch.randn(64, 384, generator=torch.Generator().manual_seed(1))).float()
    rows = (base + 0.01 * torch.randn(100, 384, generator=torch.Generator().manual_seed(2))).float()
    distance = (rows.double()[:, None] - points.double()).square().sum(-1)
    _, index = nearest(rows, points, metric="euclidean")
    lowest = distance.amin(1)
    torch.testing.assert_close(distance.gather(1, index[:, None])[:, 0], lowest, rtol=1e-12, atol=1e-12)


def test_recheck_keeps_the_lowest_of_equals():
    rows, points = torch.eye(2, 3), torch.eye(2, 3).repeat(3, 1)
    best, index = exact_dot(rows, points[[4, 5]]), torch.tensor([4, 5])
    recheck(rows, points, None, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 0]), best, index, max_pairs=1)
    assert index.tolist() == [0, 1]


def test_bad_input():
    rows = torch.randn(10, 4)
    rows[7, 2] = torch.nan
    with pytest.raises(UserError, match="first in row 7"):
        nearest(rows, rows[:2], max_bytes=200)
    with pytest.raises(ValueError, match="use cosine or euclidean"):
        nearest(rows, rows[:2], metric="dot")
