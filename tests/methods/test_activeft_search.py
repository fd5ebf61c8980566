"""How ActiveFT finds what is nearest: every screening gives the exact answer, and leaves most products out."""

import threading

import pytest
import torch
import torch.nn.functional as F

from data_selection.methods import activeft
from data_selection.methods.configs import ActiveFTConfig
from data_selection.nearest import assignment, grouped, screening
from data_selection.nearest.assignment import distinct_nearest
from data_selection.nearest.pool_reader import UnitPool
from tests.support import oracles
from tests.support.activeft_cases import ALONE, CPU, clusters, trace
from tests.support.thread_world import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def every_way(monkeypatch):
    """Take the ways that pay for many centroids for few ones too."""
    monkeypatch.setattr(screening, "GROUPED_FROM", {True: 1, False: 1})
    monkeypatch.setattr(screening, "COARSE_FROM", 1)
    monkeypatch.setattr(assignment, "COARSE_FROM", 1)


@pytest.mark.parametrize(
    ("count", "narrow", "full", "kind"),
    [
        (100, True, True, "products"),
        (300, True, True, "groups"),
        (300, False, True, "products"),
        (600, False, True, "groups"),
        (600, True, False, "products"),
        (2500, True, False, "screened"),
        (2500, False, False, "products"),
    ],
)
def test_the_search_is_the_one_that_pays(count, narrow, full, kind, monkeypatch):
    monkeypatch.setattr(screening, "narrow_is_faster", lambda: narrow)
    search = screening.make_search(UnitPool(clusters(300, 8, 0), None, CPU, 1e9), [(0, 300)], count, full, 1e9, None)
    found = "groups" if isinstance(search, grouped.GroupedSearch) else "screened" if search.screen else "products"
    assert found == kind


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"lr": 0.5}, {"batch_size": 700}], ids=["grouped", "wild", "minibatch"])
@pytest.mark.parametrize("count", [64, 300])
@pytest.mark.parametrize("make", [clusters, lambda n, d, seed: F.normalize(torch.randn(n, d), dim=1)])
def test_screened_search_is_exact(make, count, options, narrow, monkeypatch):
    rows = make(1000, 96, 0)
    rows[700:760] = rows[:60]  # ties
    rows[760:765] = 0
    config = ActiveFTConfig(max_iter=20, **{"lr": 3e-3, **options})
    every_way(monkeypatch)
    monkeypatch.setattr(screening, "narrow_is_faster", lambda: narrow)
    monkeypatch.setattr(assignment, "narrow_is_faster", lambda: narrow)
    fast = trace(rows, count, config=config)
    monkeypatch.setattr(assignment, "narrow_is_faster", lambda: False)
    monkeypatch.setattr(activeft, "make_search", lambda *rest: screening.ProductSearch(100))
    assert trace(rows, count, config=config) == fast


def test_groups_leave_most_products_out(monkeypatch):
    taken = []

    def counting(search, group, which, original=grouped.GroupedSearch._search):
        taken.append(len(which))
        original(search, group, which)

    every_way(monkeypatch)
    monkeypatch.setattr(grouped.GroupedSearch, "_search", counting)
    trace(clusters(3000, 96, 0), 256, config=ActiveFTConfig(max_iter=40, lr=3e-4))
    assert sum(taken[-100:]) / 100 < 256 / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_margins_bound_every_centroid_with_room_for_rounding(dtype):
    rows, units = clusters(600, 96, 0), clusters(80, 96, 1)
    pool = UnitPool(rows, None, CPU, 1e9)
    search = grouped.GroupedSearch(pool, [(0, 400), (400, 600)], 64, dtype, 1e9)
    for step in range(6):
        search.begin(F.normalize(units + 0.02 * step * clusters(80, 96, 2), dim=1))
        exact = pool.resident[search.order].double() @ search.units.double().T  # (n, K)
        behind = torch.full(search.margin.shape, -torch.inf, dtype=torch.float64)
        behind.scatter_reduce_(0, search.group[:, None].expand_as(exact), exact - exact.amax(1, keepdim=True), "amax")
        assert (search.margin >= behind + search.error).all()
        assert torch.equal(search.index[search.order], exact.argmax(1))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("count", [1, 40, 100, 300])
def test_assignment_is_the_greedy_one(count, repeats, narrow, monkeypatch):
    every_way(monkeypatch)
    monkeypatch.setattr(assignment, "narrow_is_faster", lambda: narrow)
    rows = clusters(300 // repeats, 16, 7).repeat(repeats, 1)
    units = clusters(count, 16, 8)
    barred = torch.zeros(300, dtype=torch.bool)
    if count in (40, 100):
        barred[:50] = True
    similarity = (units.double()[:, None] * rows.double()).sum(-1)
    expected = oracles.greedy_assignment(similarity, barred.nonzero()[:, 0].tolist())
    for step in (7, 300):
        parts = [(first, rows[first : first + step]) for first in range(0, 300, step)]
        assert distinct_nearest(lambda rows, parts=parts: parts, units, barred, ALONE, 1 << 20).tolist() == expected


@pytest.mark.parametrize("batch_size", [None, 3000])
def test_of_the_whole_pool_a_rank_keeps_its_own_spans(batch_size, monkeypatch):
    """Random batches have rows from everywhere."""
    rows, config = clusters(5000, 8, 0), ActiveFTConfig(max_iter=3, batch_size=batch_size)
    alone = activeft.select_activeft(rows, 20, config=config)
    world_of, given, real = threading.local(), [], activeft.UnitPool

    def noted(*pool, own):
        given.append(own)
        return real(*pool, own=own)

    noted.spans = real.spans
    monkeypatch.setattr(activeft, "UnitPool", noted)
    monkeypatch.setattr(activeft, "current_world", lambda _: world_of.world)

    def select(world):
        world_of.world = world
        return activeft.select_activeft(rows, 20, config=config)

    assert all(found.equal(alone) for found in on_ranks(2, select))
    spans = real.spans(5000)
    expected = [None, None] if batch_size else [spans[::2], spans[1::2]]
    assert sorted(given, key=str) == expected
