"""BiLAF's parts: kept counts, shares, the nearest cores and the distances within classes."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.methods.bilaf import classes, selection
from data_selection.methods.bilaf import cores as bilaf_cores
from data_selection.methods.bilaf.classes import Distances, plan_batches
from data_selection.methods.bilaf.cores import Coarse, CoreSearch, assign
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.bilaf.steps import allocate, kept_count
from data_selection.methods.configs import BILAF_PRESETS as PRESETS
from data_selection.methods.configs import CHOICES, BiLAFConfig
from data_selection.nearest.narrow import Scratch
from scripts.benchmarks.activeft import clustered, high_water


def test_kept_counts_of_the_released_program():
    sizes = torch.tensor([9, 10, 11, 15, 19, 20, 25, 29, 35, 39, 45, 57, 99, 105, 199, 200, 1000])
    expected = [9, 9, 9, 13, 17, 18, 21, 25, 29, 35, 39, 49, 89, 90, 171, 180, 900]
    assert kept_count(sizes, PRESETS["released"]).tolist() == expected
    few = kept_count(torch.tensor([10, 20, 57, 100, 1000]), PRESETS["released_imagenet"])
    assert few.tolist() == [8, 16, 44, 80, 800]


def test_paper_removes_exactly_its_share():
    sizes = torch.arange(1, 2000)
    assert kept_count(sizes, PRESETS["paper"]).tolist() == [n - n // 10 for n in range(1, 2000)]


def test_allocation_rules():
    sizes = torch.tensor([70, 20, 10])
    ones = torch.ones(3, dtype=torch.int64)
    assert allocate(sizes, 90, ones, sizes, "smallest").tolist() == [62, 18, 10]  # 7/10 x 90 is 62.99.. in float64
    assert allocate(sizes, 90, ones, sizes, "remainder").tolist() == [63, 18, 9]
    uneven = torch.tensor([819] + [1] * 9)
    lower = torch.ones(10, dtype=torch.int64)
    for rule in CHOICES["budget_rule"]:
        assert allocate(uneven, 10, lower, uneven, rule).tolist() == [1] * 10
        assert allocate(uneven, 828, lower, uneven, rule).tolist() == uneven.tolist()
        assert allocate(uneven, 200, lower, uneven, rule).sum() == 200


def test_assignment_far_from_the_origin_is_exact():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) + 300
    x[200:] = x[:200]
    cores = list(range(0, 60, 3))
    own, rival = assign(
        torch.from_numpy(x),
        torch.arange(400),
        torch.tensor(cores),
        PRESETS["released"],
        World(0, 1, torch.device("cpu")),
        1 << 20,
    )
    dist = np.stack([np.square(x - x[core]).sum(1) for core in cores], axis=1)
    order = dist.argsort(1, kind="stable")
    assert own.tolist() == order[:, 0].tolist()
    assert rival[:, 0].tolist() == order[:, 1].tolist()


@pytest.mark.parametrize("coarse", [False, True])
def test_assignment_in_a_narrow_cone_is_exact(coarse, monkeypatch):
    """float32 rounds unit vectors by nearly a hundredth of what tells these apart."""
    monkeypatch.setattr(bilaf_cores, "MANY_CORES", 0 if coarse else 10**9)
    monkeypatch.setattr(bilaf_cores, "narrow_is_faster", lambda: True)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=16) + 1e-5 * rng.normal(size=(3000, 16)))
    unit = x / x.norm(dim=1, keepdim=True)
    unit -= unit.mean(0)
    own, _ = assign(
        x, torch.arange(3000), torch.arange(600), PRESETS["paper"], World(0, 1, torch.device("cpu")), 1 << 25
    )
    square = torch.cat([(part[:, None] - unit[:600]).square().sum(2) for part in unit.split(500)])
    assert own.equal(square.argmin(1))


@pytest.mark.parametrize("rivals", [1, 3, 50])
def test_rivals_are_the_nearest_other_cores(rivals):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 5))
    x[40:50] = x[30]  # cores among them: twins
    cores = torch.arange(0, 60, 3)
    own, rival = assign(
        x, torch.arange(500), cores, PRESETS["released"], World(0, 1, torch.device("cpu")), 1 << 20, rivals=rivals
    )
    dist = np.stack([np.square(x - x[core]).sum(1) for core in cores], axis=1).round(12)
    for i, near in enumerate(dist.argsort(1, kind="stable")):
        mine = i // 3 if i % 3 == 0 and i < 60 else near[0]
        assert own[i] == mine
        assert set(rival[i].tolist()) == set([j for j in near if j != mine][:rivals]), i


@pytest.mark.parametrize("kind", ["spread", "twins", "far", "close"])
def test_coarse_products_find_the_same_cores(kind):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 12)) * (1e-4 if kind == "close" else 1) + (30 if kind == "far" else 0)
    if kind == "twins":
        x[300:] = x[:400]
    x = torch.from_numpy(x)
    search = CoreSearch(x, torch.arange(0, 640, 2), PRESETS["released"], torch.device("cpu"))
    for count in (1, 5, 40):
        search.coarse = None
        expected = search.nearest(x.float(), count, x.__getitem__)
        search.coarse = Coarse(search.narrow, search.half)
        found = search.nearest(x.float(), count, x.__getitem__)
        assert found[:, 0].equal(expected[:, 0])
        assert found.sort(1).values.equal(expected.sort(1).values)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_equally_near_cores_are_taken_by_number(most):
    x = torch.from_numpy(np.random.default_rng(4).integers(0, 4, (300, 2)).astype(float))
    search = CoreSearch(x, torch.arange(60), PRESETS["released"], torch.device("cpu"))
    square = (x[:, None] - x[:60]).square().sum(2)
    own = square.argmin(1)
    expected = square.scatter(1, own[:, None], torch.inf).sort(dim=1, stable=True).indices[:, :most]
    others = torch.tensor([[j for j in range(60) if j != i] for i in own.tolist()])
    for near in (None, others):
        found = bilaf_cores._nearest_of(search, x - search.mean, own, torch.ones(300, 1) * 1024, near, most)[0]
        assert found.equal(expected)


def test_distances_held_and_on_demand_are_the_same():
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 600, 7))) * 2.0**14
    held, demand = Distances.build(x, 1 << 30, Scratch(torch.float64)), Distances(x, 1 << 20)
    assert held.held is not None
    assert (held.held - torch.cdist(x, x).square()).abs().max() <= 1
    local = torch.stack([torch.randperm(600, generator=torch.Generator().manual_seed(g))[:450] for g in range(2)])
    for a, b in ((held, demand), (held.take(local), demand.take(local))):
        some = local[:, :20] % 450
        assert a.between(some).equal(b.between(some))
        assert a.sums(some, some > 100).allclose(b.sums(some, some > 100))
        weight = torch.arange(a.shape[1]).expand(a.shape) % 3
        assert a.totals(weight).allclose(b.totals(weight))


def test_distances_on_demand_take_the_memory_that_they_are_given(monkeypatch):
    x = (torch.from_numpy(np.random.default_rng(2).normal(size=(2, 600, 7))) * 2.0**10).round()
    held = Distances.build(x, 1 << 30, Scratch(torch.float64))
    demand, asked = Distances(x, 24 * 2 * 7 * 50), []
    real = Distances.rows
    monkeypatch.setattr(Distances, "rows", lambda self, local: asked.append(local.shape[1]) or real(self, local))
    rows = torch.stack([torch.randperm(600, generator=torch.Generator().manual_seed(g))[:130] for g in range(2)])
    columns = torch.randint(600, (2, 130, 4), generator=torch.Generator().manual_seed(9))
    assert demand.each(rows, columns).equal(held.each(rows, columns))
    assert sorted(set(asked)) == [30, 50]


@pytest.mark.parametrize("before", [1, 3])
def test_small_classes_run_on_one_thread(before, monkeypatch):
    seen = []

    def watching(*given, original=selection.denoise):
        seen.append(torch.get_num_threads())
        return original(*given)

    monkeypatch.setattr(selection, "denoise", watching)
    ours = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        select_bilaf(rows, 20, cores=[1, 2, 3])
        assert seen == [1]
        monkeypatch.setattr(classes, "CACHE_BYTES", 100)  # of classes that are larger than the cache
        select_bilaf(rows, 20, cores=[1, 2, 3])
        assert set(seen[1:]) == {before}
        with pytest.raises(UserError), classes.threads_for(1):
            raise UserError("in between")
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(ours)


def test_a_class_with_many_rivals_needs_room_for_them():
    """600 of 1,000 images near one of 400 cores, of which half are chosen: 600 x 299 rivals, in 8 tables."""
    rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    rows[:600] = rows[0] + 0.01 * rows[:600]
    ask = functools.partial(select_bilaf, rows, 700, cores=[0, *range(601, 1000)])
    with pytest.raises(
        UserError, match=r"for a class of 60\d images, which needs 0\.0\d+ GB: raise it, or use more cores"
    ):
        ask(config=BiLAFConfig(max_memory=0.01))
    assert len(ask(config=BiLAFConfig(max_memory=0.01, opponent="nearest"))) == 700


def test_batches_hold_their_rivals():
    sizes, wanted = torch.full((40,), 100), torch.ones(40, dtype=torch.bool)
    few = plan_batches(sizes, torch.ones(40, dtype=torch.int64), wanted, 8, 1 << 23, torch.device("cpu"))
    many = plan_batches(sizes, torch.full((40,), 300), wanted, 8, 1 << 23, torch.device("cpu"))
    assert [len(batch) for batch in few] == [10] * 4  # 8 x 100 x (100 + 16 + 8) bytes each, of an eighth of 8 MiB
    assert [len(batch) for batch in many] == [1] * 40
    mixed = plan_batches(sizes, torch.tensor([1, 300] * 20), wanted, 8, 1 << 23, torch.device("cpu"))
    assert max(map(len, mixed)) == 1  # as wide as the one with the most


def peak_of_bilaf(connection, max_memory):
    """Send the MB by which BiLAF on 20,000 x 768 rows raises this process's memory at most."""
    torch.set_num_threads(1)
    rows = torch.from_numpy(next(clustered(np.random.default_rng(0), 20_000, 768, 20_000)))
    config = BiLAFConfig(max_memory=max_memory)
    select_bilaf(rows[:300], 20, cores=[1, 2], config=config)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = high_water()
    cores = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))[:700].tolist()
    select_bilaf(rows, 2000, cores=cores, config=config)
    connection.send(high_water() - before)


def test_rivals_that_are_kept_of_every_sample_fit_into_memory(monkeypatch):
    """What more a class asks for is looked up for it alone."""
    asked, real = [], selection.assign
    monkeypatch.setattr(selection, "assign", lambda *words: asked.append(words[-1]) or real(*words))
    monkeypatch.setattr(selection, "FEW_CORES", 0)
    rows, config = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)), BiLAFConfig(max_memory=0.01)
    for samples, rivals in ((2000, 125), (500, 133)):  # two for each of the 200 images, for each core
        select_bilaf(rows[:samples], 200, cores=[5, 70, 300], config=config)
        assert asked.pop() == rivals


def test_memory_asked_for_is_held():
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=peak_of_bilaf, args=(theirs, 0.04))
    process.start()
    assert ours.recv() < 40
    process.join()
    with pytest.raises(UserError, match=r"max_memory 0.01 GB is too little for a class of \d+ images, which needs"):
        select_bilaf(torch.randn(6000, 384), 20, cores=[0, 1], config=BiLAFConfig(max_memory=0.01))
