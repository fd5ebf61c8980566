"""Where ActiveFT's centroids start: distances and draws against plain loops."""

import random

import pytest
import torch
import torch.nn.functional as F

from data_selection.methods import activeft
from data_selection.methods.activeft import select_activeft
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.starts import PointDistances
from data_selection.nearest.pool_reader import UnitPool
from tests.support.activeft_cases import CPU, clusters

KINDS = {
    "euclidean": lambda rows, one: (rows - one).square().sum(1) / 2,
    "cosine": lambda rows, one: 1 - rows @ one,
    "KLDiv": lambda rows, one: (rows.softmax(1) * (rows.softmax(1).log() - one.softmax(0).log())).sum(1),
}


def unit(rows):
    return F.normalize(rows.double(), dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_the_textbooks(kind):
    rows = clusters(40, 6, 0)
    distances = PointDistances(UnitPool(rows, torch.arange(40), CPU, 1000), kind)
    for place in (0, 17, 39):
        wanted = KINDS[kind](unit(rows), unit(rows)[place])
        torch.testing.assert_close(distances.to(torch.tensor([place])).double(), wanted, atol=1e-5, rtol=1e-4)


def kmeans_plus_plus(rows, budget, labelled, excluded, seed):
    """Each next one is drawn in proportion to the squared distance to the nearest one known, by random.Random."""
    draw, order = random.Random(seed), [i for i in range(len(rows)) if i not in {*labelled, *excluded}]
    units, chosen = unit(rows), []
    for _ in range(budget):
        known = [*labelled, *chosen]
        weights = [
            0.0 if i in chosen else min(4.0, min((units[i] - units[j]).square().sum().item() / 2 for j in known))
            for i in order
        ]
        target, total = draw.random() * sum(weights), 0.0
        for i, weight in zip(order, weights, strict=True):
            total += weight
            if total > target:
                chosen.append(i)
                break
    return chosen


def farthest(rows, budget, labelled, excluded, distance):
    """Each next one farthest from those known; the first one is drawn where none is labelled."""
    units, chosen = unit(rows), []
    free = [i for i in range(len(rows)) if i not in {*labelled, *excluded}]
    for _ in range(budget):
        gap = torch.stack([KINDS[distance](units, units[j]) for j in [*labelled, *chosen]]).amin(0)
        chosen.append(max((i for i in free if i not in chosen), key=lambda i, gap=gap: gap[i].item()))
    return chosen


@pytest.mark.parametrize("distance", KINDS)
def test_farthest_starts_are_those_of_a_plain_loop(distance):
    rows = clusters(60, 6, 1)
    config = ActiveFTConfig(init="fps", distance=distance)
    # of the candidates alone, by place, as select_activeft calls it
    wanted = farthest(rows, 12, [4, 8], [9], distance)
    config = ActiveFTConfig(init="fps", distance=distance, max_iter=1, lr=1e-9)  # the centroids stay where they start
    assert select_activeft(rows, 12, config=config, labelled=[4, 8], excluded=[9]).tolist() == sorted(wanted)
    without = select_activeft(rows, 12, config=config, excluded=[9]).tolist()
    assert without != sorted(wanted)


def test_kmeans_plus_plus_starts_are_those_of_a_plain_loop():
    rows = clusters(60, 6, 1)
    config = ActiveFTConfig(init="kmeans++", max_iter=1, lr=1e-9)
    for seed in (0, 3):
        wanted = kmeans_plus_plus(rows, 12, [4, 8], [9], seed)
        assert select_activeft(rows, 12, config=config, labelled=[4, 8], excluded=[9], seed=seed).tolist() == sorted(
            wanted
        )


def test_random_starts_are_drawn_by_the_seed():
    rows, free = clusters(60, 6, 1), torch.arange(60)
    drawn = [activeft.initial(rows, 12, free, (), ActiveFTConfig(), seed, CPU).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 12
