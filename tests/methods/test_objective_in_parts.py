"""ActiveFT's sums over tiles of centroids and bags of samples are those of the whole tables."""

import pytest
import torch
import torch.nn.functional as F

from data_selection.methods import activeft_objective as module
from data_selection.methods.activeft_objective import add_segment_sums, repulsion
from tests.support.activeft_cases import ALONE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("paper", [False, True])
def test_tiles_of_centroids_change_nothing(paper, monkeypatch):
    units = F.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = repulsion(units, 0.2, ALONE, torch.empty(40, 6).double(), paper)
    monkeypatch.setattr(module, "TILE_ROWS", 7)
    monkeypatch.setattr(module, "REPULSION_BYTES", 4 * 80 * 7)
    for found, wanted in zip(repulsion(units, 0.2, ALONE, torch.empty(40, 6).double(), paper), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_bags_of_samples_change_nothing(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    rows, index = torch.randn(90, 6, generator=draw), torch.randint(0, 23, (90,), generator=draw)
    weights = torch.rand(90, generator=draw).double()
    monkeypatch.setattr(module, "BAGS", 5)
    sums, masses = torch.ones(23, 6).double(), torch.ones(23).double()
    add_segment_sums(sums, masses, rows, index, weights)
    one_hot = F.one_hot(index, 23).double() * weights[:, None]
    torch.testing.assert_close(masses, 1 + one_hot.sum(0))
    torch.testing.assert_close(sums, 1 + one_hot.T @ rows.double(), rtol=1e-5, atol=1e-5)
