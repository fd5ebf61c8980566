"""Every method on a pretended GPU: nothing that CUDA refuses, the CPU's samples, and few waits."""

import re
from collections import Counter

import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.methods.activeft import select_activeft
from data_selection.methods.activeft_objective import repulsion
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.configs import ActiveFTConfig, BiLAFConfig
from data_selection.methods.table import METHODS
from data_selection.nearest.similarity import normalise
from tests.support.beliefs import beliefs
from tests.support.pretend_cuda import pretended

SMALL = {"activeft": {"max_iter": 4}, "kmeans": {"max_iter": 5}, "zcore": {"draws": 500}}
MOST_OF_BILAF = 50  # launches of a choice in all classes of a batch: 250 of 50,000 rows make one
MOST_LAUNCHES = 56  # of an iteration for each span of the pool, what is done once among them


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
    assert not card.loose
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
        assert not card.loose
    assert waits[1] - waits[0] <= (40 if name == "probcover" else 3), card.waits


@pytest.mark.parametrize("options", [{}, {"batch_size": 2500}, {"objective": "paper"}], ids=str)
def test_an_iteration_of_activeft_is_few_large_operations(options):
    """Three spans; every table is of a size at which pieces for a CPU's cache would show."""
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    waits, launches = counted(
        lambda steps: select_activeft(rows, 1100, config=ActiveFTConfig(max_iter=steps, **options), device="cuda")
    )
    assert not waits
    assert launches <= 3 * MOST_LAUNCHES


def test_repulsion_of_rows_of_zeros_without_a_wait(features):
    """At this temperature the sums of other rows are lost beside them."""
    units = normalise(features)
    units[[3, 50]] = 0
    wanted = repulsion(units, 0.005, World(0, 1, units.device), torch.empty(units.shape, dtype=torch.float64))
    with pretended() as card:
        there = units.to("cuda")
        memory = torch.empty(units.shape, dtype=torch.float64, device="cuda")
        before = sum(card.waits.values())
        found = repulsion(there, 0.005, World(0, 1, there.device), memory)
        assert sum(card.waits.values()) == before
        for mine, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine.cpu(), other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("steps", [3, 60])
def test_a_centroid_thrown_away_is_told_late_but_as_on_the_cpu(features, steps):
    config = ActiveFTConfig(max_iter=steps, lr=1e30, scheduler="cosine")
    with pytest.raises(UserError) as wanted:
        select_activeft(features, 12, config=config)
    with pretended(), pytest.raises(UserError, match=re.escape(str(wanted.value))):
        select_activeft(features, 12, config=config, device="cuda")


@pytest.mark.parametrize("kind", ["remaining", "class"])
def test_a_choice_of_bilaf_waits_for_nothing(kind):
    """Two more choices in each of three classes, which are worked on together."""
    rows = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    options = {"cores": [1, 2, 3], "config": BiLAFConfig(removal=kind, intra=kind)}
    found = []
    for budget in (60, 66):
        with pretended() as card:
            chosen = select_bilaf(rows, budget, device="cuda", **options)
        found.append((sum(card.waits.values()), sum(card.launches.values())))
    assert torch.equal(chosen, select_bilaf(rows, 66, **options))
    (waits, launches), (more, further) = found
    assert more == waits
    assert further - launches <= 2 * MOST_OF_BILAF
