"""Measures of a choice beside their textbook forms, and what the commands print of them."""

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.judging import quality as module
from data_selection.judging.quality import directions, mean_discrepancy, quality, sliced_wasserstein
from tests.support import oracles_clusters as oracles

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rows():
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + 0.5


def test_radius_redundancy_and_effective_size(rows):
    ids = torch.tensor([4, 20, 31, 59, 7])
    units = oracles.unit(rows)
    gap = oracles.all_distances(units)[:, ids]
    found = quality(rows, ids)
    assert found.radius_mean == pytest.approx(gap.amin(1).mean().item(), abs=1e-4)
    assert found.radius_95 == pytest.approx(np.quantile(gap.amin(1).numpy(), 0.95), abs=1e-4)
    shares = np.bincount(gap.argmin(1), minlength=5) / 60
    assert found.effective == pytest.approx(1 / (shares**2).sum())
    cosine = (units[ids] @ units[ids].T).fill_diagonal_(-1)
    assert found.redundancy == pytest.approx(cosine.amax(1).mean().item(), abs=1e-6)
    assert (found.chosen, found.pool, found.looked_at) == (5, 60, 60)
    assert quality(rows.numpy(), ids.tolist()) == found
    assert np.isnan(quality(rows, [3]).redundancy)


def test_sliced_wasserstein_is_the_mean_over_directions(rows):
    along = directions(7, 5, torch.Generator().manual_seed(1))
    assert along.norm(dim=1) == pytest.approx(torch.ones(7))
    left, right = rows[:20], rows[20:33]
    wanted = [oracles.wasserstein((left @ axis).numpy(), (right @ axis).numpy()) for axis in along]
    assert sliced_wasserstein(left, right, along) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_mmd_is_three_means(rows):
    units = oracles.unit(rows).float()
    left, right = units[:20], units[15:33]
    width = np.median([(a - b).norm().item() for i, a in enumerate(left) for j, b in enumerate(left) if i < j])
    assert mean_discrepancy(left, right) == pytest.approx(
        oracles.discrepancy(left.numpy(), right.numpy(), width), rel=2e-2
    )
    assert mean_discrepancy(left, left) == pytest.approx(0, abs=1e-3)


def test_the_pool_itself_is_perfect_and_copies_are_redundant(rows):
    found = quality(rows, range(60))
    assert found.radius_mean < 1e-3
    assert found.sliced == 0
    assert found.mmd < 1e-3
    assert found.effective == pytest.approx(60)
    assert quality(torch.cat([rows, rows]), [0, 60]).redundancy == pytest.approx(1)
    assert np.isfinite(quality(torch.zeros(3, 2), [0])[:4]).all()


def test_large_pools_are_sampled_and_it_is_said(rows, monkeypatch):
    assert "drawn" not in str(quality(rows, [1, 2, 3]))
    for name, value in {"SAMPLE": 30, "PRODUCTS": 80, "FEWEST": 10, "KERNEL_SAMPLE": 8}.items():
        monkeypatch.setattr(module, name, value)
    found = quality(rows, [1, 2, 3, 9])
    assert found.looked_at == 20
    assert str(found).endswith(" (by 20 images drawn from 60)")
    assert quality(rows, [1, 2, 3, 9]) == found
    assert quality(rows, [1, 2, 3, 9], seed=1) != found
    assert quality(rows, [1]).looked_at == 30
    assert quality(rows, range(60)).looked_at == 10


def test_a_choice_that_covers_is_told_from_one_that_does_not(rows):
    order = (oracles.unit(rows) @ oracles.unit(rows)[5]).argsort(descending=True)
    corner, spread = quality(rows, order[:12]), quality(rows, order[::5])
    assert corner.sliced > 2 * spread.sliced
    assert corner.mmd > spread.mmd
    assert corner.radius_mean > spread.radius_mean
    assert corner.redundancy > spread.redundancy


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy], ids=["tensor", "array"])
def test_what_is_not_finite_is_refused(rows, kind):
    rows[7, 2] = torch.nan
    for ids in ([1, 2], [7, 2]):
        with pytest.raises(UserError, match="NaN or infinity, first in row 7"):
            quality(kind(rows), ids)


def test_what_is_excluded_is_no_part_of_the_pool(rows):
    more = torch.cat([torch.full((2, 5), torch.nan), rows])
    assert quality(more, [6, 22], excluded=[0, 1]) == quality(rows, [4, 20])


def test_wrong_ids_are_refused(rows):
    with pytest.raises(UserError, match="the subset is empty"):
        quality(rows, [])
    with pytest.raises(UserError, match="subset id 60 is outside"):
        quality(rows, [60])


def test_blocks_of_rows_change_nothing(rows, monkeypatch):
    whole = quality(rows, range(0, 60, 2))
    monkeypatch.setattr(module, "row_blocks", lambda n, width: [(at, min(n, at + 7)) for at in range(0, n, 7)])
    assert quality(rows, range(0, 60, 2)) == pytest.approx(whole, rel=1e-5)


def test_features_that_are_all_alike_are_doubted(rows):
    alike = rows[0] * torch.arange(1.0, 61)[:, None]  # only the lengths differ
    assert "95 % of the 60 images have the features of one of the 2 chosen" in quality(alike, [3, 4]).doubt
    alike[:4] = rows[:4]  # more than one in twenty is otherwise
    assert quality(alike, [10, 11]).doubt == ""
    assert quality(alike, range(10, 22)).doubt == quality(rows, range(60)).doubt == ""
