"""Where ActiveFT's centroids start: distances and draws against plain loops."""

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from data_selection.methods import activeft, starts
from data_selection.methods.activeft import select_activeft
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.farthest import select_farthest
from data_selection.methods.herding import select_herding
from data_selection.methods.starts import PointDistances, plus_plus
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


@pytest.mark.parametrize("kind", KINDS)
def test_distances_to_the_nearest_of_many_take_a_pass_for_many_at_once(kind, monkeypatch):
    rows, places = clusters(70, 6, 0), torch.arange(0, 70, 2)
    monkeypatch.setattr(starts, "AT_ONCE", 20)
    for memory in (1, 1e9):
        distances, passes = PointDistances(UnitPool(rows, torch.arange(70), CPU, memory), kind), []
        real = distances.pool.read
        monkeypatch.setattr(
            distances.pool, "read", lambda *span, real=real, seen=passes: seen.append(span) or real(*span)
        )
        wanted = torch.stack([KINDS[kind](unit(rows), one) for one in unit(rows)[places]]).amin(0)
        torch.testing.assert_close(distances.to_nearest(places).double(), wanted, atol=1e-5, rtol=1e-4)
        assert len(passes) == 2
        assert distances.to_nearest(places[:0]).isposinf().all()


@pytest.mark.parametrize("choose", [
    partial(select_farthest, budget=2, labelled=range(100)), partial(select_herding, budget=2, labelled=range(100)),
    partial(plus_plus, budget=2, candidates=torch.arange(100, 200), labelled=torch.arange(100), seed=0, device=None),
])  # fmt: skip
def test_a_hundred_labelled_rows_are_looked_at_together(choose, monkeypatch):
    products, real = [], torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: products.append(one) or real(one, other))
    choose(clusters(200, 6, 0))
    assert 3 <= len(products) < 20


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
