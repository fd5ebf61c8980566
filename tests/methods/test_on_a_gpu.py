"""Every method on a pretended GPU: nothing that CUDA refuses, the CPU's samples, and few waits."""

import pytest
import torch

from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs
from tests.support.pretend_cuda import pretended

SMALL = {"activeft": {"max_iter": 4}, "kmeans": {"max_iter": 5}, "zcore": {"draws": 500}}


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 10, generator=generator).repeat(20, 1) + 0.3 * torch.randn(120, 10, generator=generator)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_samples_of_the_cpu(name, features):
    method = METHODS[name]
    options = {"config": method.config(**SMALL.get(name, {})), "labelled": [3, 50], "excluded": [7], "seed": 1}
    options |= beliefs(method, features) | ({"cores": range(20, 30)} if name == "bilaf" else {})
    expected = method.select(features, 12, **options)
    with pretended() as card:
        found = method.select(features, 12, device="cuda", **options)
    assert card.faults == []
    assert found.device.type == "cpu"
    assert torch.equal(found, expected)
