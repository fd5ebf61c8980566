"""Every method on a pretended GPU: nothing that CUDA refuses, the CPU's samples, and few waits."""

from collections import Counter

import pytest
import torch

from data_selection.methods.activeft import select_activeft
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs
from tests.support.pretend_cuda import pretended

SMALL = {"activeft": {"max_iter": 4}, "kmeans": {"max_iter": 5}, "zcore": {"draws": 500}}
MOST_LAUNCHES = 420  # of an iteration over 6,000 rows and 700 centroids


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


def counted(function):
    """What a further step of function(steps) waits for and launches."""
    found = []
    for steps in (2, 3):
        with pretended() as card:
            function(steps)
        found.append((Counter(card.waits), sum(card.launches.values())))
    return found[1][0] - found[0][0], found[1][1] - found[0][1]


GREEDY = {"fps": {}, "herding": {}, "facility": {}, "herding-uncertainty": {}, "wvoptimal": {},
          "probcover": {"delta": 0.02}, "activeft": {"init": "kmeans++", "max_iter": 1}}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_no_pick_waits(name, features):
    """Picks stay on the GPU; probcover, whose next product is as large as a ball, reads three numbers for each."""
    method, waits = METHODS[name], []
    options = {"config": method.config(**GREEDY[name]), "labelled": [3]} | beliefs(method, features)
    for budget in (10, 50):
        with pretended() as card:
            method.select(features, budget, device="cuda", **options)
        waits.append(sum(card.waits.values()))
    assert waits[1] - waits[0] <= (40 if name == "probcover" else 3), card.waits


def test_an_iteration_of_activeft_is_few_large_operations():
    """The size of a table shows in the launches only where it is cut for a CPU's cache."""
    rows = torch.randn(6000, 8, generator=torch.Generator().manual_seed(0))
    waits, launches = counted(
        lambda steps: select_activeft(rows, 700, config=ActiveFTConfig(max_iter=steps), device="cuda")
    )
    assert sum(waits.values()) <= 2, waits
    assert launches < MOST_LAUNCHES
