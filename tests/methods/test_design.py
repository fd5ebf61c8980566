"""Facility location, V-optimal design and choice by doubt against full matrices."""

import functools

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from data_selection.common.errors import UserError
from data_selection.methods.configs_design import (
    FacilityConfig,
    HalfConfig,
    MarginClustersConfig,
    MaxHerdingConfig,
    UncertaintyHerdingConfig,
    VOptimalConfig,
    WeightedConfig,
)
from data_selection.methods.design import doubt, facility, smoothing
from data_selection.methods.design.doubt import (
    margins,
    select_half,
    select_margin,
    select_margin_clusters,
    select_uncertainty_herding,
    select_weighted_voptimal,
)
from data_selection.methods.design.facility import Cover, select_facility, select_maxherding
from data_selection.methods.design.kernels import Kernel, RandomFeatures, median_distance
from data_selection.methods.design.smoothing import smoothed_rows
from data_selection.methods.design.voptimal import VOptimal, select_voptimal
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import normalise
from tests.support import oracles_design as oracle
from tests.support.oracles_graph import centred, smoothed, unit

pytestmark = pytest.mark.usefixtures("one_thread")
PARTS = 20  # random features of each kind
COUNT, LABELLED, EXCLUDED = 150, [3, 40, 77], [5, 6, 90]
KEPT = [i for i in range(COUNT) if i not in EXCLUDED]


@pytest.fixture(scope="module")
def rows():
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=draw)
    return centres.repeat(25, 1) + 0.5 * torch.randn(COUNT, 8, generator=draw)


@pytest.fixture(scope="module")
def probabilities():
    return (2 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))).softmax(1)


def smooth_rows(rows, kept=range(COUNT), steps=2):
    return smoothed_rows(rows, torch.tensor(kept), steps, torch.device("cpu"), None)


def in_pool(places):
    return [KEPT[place] for place in places]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("select", "config", "halvings"), [
    (select_facility, FacilityConfig(), 3), (select_facility, FacilityConfig(scales=2, width=0.5), 2),
    (select_maxherding, MaxHerdingConfig(), 1),
])  # fmt: skip
def test_facility_location_is_the_plain_greedy_one(rows, monkeypatch, select, config, halvings, in_memory):
    if not in_memory:
        monkeypatch.setattr(facility, "working_memory", lambda *_: 1000)
    units = normalise(rows)[KEPT]
    width = config.width * median_distance(units)
    kernel = oracle.gaussians(units, units, [width / 2**i for i in range(halvings)])
    known = [KEPT.index(i) for i in LABELLED]
    wanted = in_pool(oracle.facility(kernel, torch.ones(len(KEPT)), 12, known))
    assert select(rows, 12, config=config, labelled=LABELLED, excluded=EXCLUDED).tolist() == wanted


def test_gains_of_many_candidates_are_put_off(rows, monkeypatch):
    monkeypatch.setattr(facility, "REFRESHED", 4)
    pool = UnitPool(rows, None, torch.device("cpu"), 1e9)
    units, weights = normalise(rows), torch.rand(COUNT, generator=torch.Generator().manual_seed(2))
    seen, real = [], Cover.gains
    monkeypatch.setattr(Cover, "gains", lambda self, some: seen.append(len(some)) or real(self, some))
    plan = Cover(pool, torch.arange(COUNT), units, weights, Kernel((0.5,)), torch.empty(0, dtype=torch.int64))
    wanted = oracle.facility(oracle.gaussians(units, units, [0.5]), weights, 20)
    assert plan.choose(20, bool).tolist() == wanted
    assert sum(seen) < 20 * COUNT / 2


def test_clients_and_candidates_of_a_large_pool_are_drawn(rows):
    lists = [
        select_facility(rows, 5, config=FacilityConfig(clients=40, candidates=30), seed=s).tolist() for s in (0, 1)
    ]
    assert lists[0] != lists[1]
    assert select_facility(rows, 5, config=FacilityConfig(clients=40, candidates=30)).tolist() == lists[0]
    assert select_facility(rows, 8).tolist()[:5] == select_facility(rows, 5, seed=1).tolist()  # nothing to draw


@pytest.mark.parametrize(("select", "config"), [
    (select_facility, FacilityConfig), (functools.partial(select_uncertainty_herding, probabilities=torch.eye(COUNT)),
    UncertaintyHerdingConfig), (select_voptimal, functools.partial(VOptimalConfig, core=0)),
])  # fmt: skip
def test_five_candidates_for_each_to_choose_at_least(rows, select, config):
    assert (
        select(rows, 9, config=config(candidates=1)).tolist() == select(rows, 9, config=config(candidates=45)).tolist()
    )


def test_the_median_distance_is_that_of_rows_that_differ():
    rows = torch.tensor([0.0, 0.0, 0.01, 0.02])[:, None]
    assert median_distance(rows) == pytest.approx(0.01, rel=1e-4)
    assert median_distance(rows[:2]) == 1


def test_random_features_give_the_kernel_back(rows):
    units = normalise(rows)
    features = RandomFeatures.fit(units, COUNT)(units).double()
    wanted = oracle.gaussians(units, units, [median_distance(units) / 2])
    np.testing.assert_allclose(features @ features.T, wanted, atol=2e-3)
    copies = RandomFeatures.fit(units[:5].repeat(4, 1), 50)
    assert copies(units).shape == (COUNT, 5)  # copies add nothing


def embedded(rows):
    """(n, F) of the kept rows and the smoothed ones, float64, with all of them as landmarks."""
    units = normalise(rows)[KEPT]
    x = centred(rows[KEPT], rows[KEPT])
    averaged = torch.from_numpy(unit(smoothed(x, 10, 2)[-1])).float()
    parts = [RandomFeatures.fit(some, PARTS)(some) for some in (units, averaged)]
    return torch.cat(parts, 1).double() / 2**0.5


def test_smoothed_rows_are_the_probes(rows):
    wanted = unit(smoothed(centred(rows, rows), 10, 2)[-1])
    np.testing.assert_allclose(smooth_rows(rows, steps=None), wanted, atol=1e-5)
    assert smooth_rows(rows, steps=0) is None


def test_voptimal_design_leaves_the_least_variance(rows):
    config = VOptimalConfig(core=5, noise=0.3, components=PARTS)
    chosen = select_voptimal(rows, 10, config=config, labelled=LABELLED, excluded=EXCLUDED).tolist()
    core = select_facility(rows, 2, labelled=LABELLED, excluded=EXCLUDED).tolist()  # with the labelled: 5
    known = [KEPT.index(i) for i in LABELLED + core]
    assert chosen == core + in_pool(oracle.voptimal(embedded(rows), torch.ones(len(KEPT)), 8, known, 0.3))
    assert select_voptimal(rows, 6, config=config, labelled=LABELLED, excluded=EXCLUDED).tolist() == chosen[:6]


@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_variances_that_fall_by_orders_of_magnitude_stay_right(noise):
    some = torch.randn(400, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 40)
    some = normalise(some)
    plan = VOptimal(some, (some.T @ some / 400).double(), some[:0], noise)
    for _ in range(150):
        plan.pick()
    for found, matrix in ((plan.p, plan.sigma), (plan.q, plan.sigma @ plan.moment @ plan.sigma)):
        wanted = ((some.double() @ matrix) * some).sum(1)
        assert (found - wanted).abs().max() < 2e-3 * wanted.max()


def test_a_weighted_design_asks_where_the_model_doubts(rows, probabilities):
    asked = {"labelled": LABELLED, "excluded": EXCLUDED, "probabilities": probabilities}
    config = WeightedConfig(components=PARTS)
    chosen = select_weighted_voptimal(rows, 6, config=config, **asked).tolist()
    weights = (1 - probabilities.double().square().sum(1)).clamp(min=0.001)[KEPT]
    known = [KEPT.index(i) for i in LABELLED]
    assert chosen == in_pool(oracle.voptimal(embedded(rows), weights, 6, known, 0.1))
    known_rows = smooth_rows(rows, KEPT)
    assert select_weighted_voptimal(rows, 6, config=config, smoothed=known_rows, **asked).tolist() == chosen
    assert (
        select_weighted_voptimal(rows, 6, config=WeightedConfig(components=PARTS, steps=0), **asked).tolist() != chosen
    )
    sure = asked | {"probabilities": torch.eye(4).repeat(38, 1)[:COUNT]}  # all rows count alike: no core, no weights
    core = VOptimalConfig(core=0, components=PARTS)
    assert (
        select_weighted_voptimal(rows, 6, config=config, **sure).tolist()
        == select_voptimal(rows, 6, config=core, labelled=LABELLED, excluded=EXCLUDED).tolist()
    )


def plain_margins(probabilities):
    return [sorted(row, reverse=True)[0] - sorted(row, reverse=True)[1] for row in probabilities.tolist()]


def test_margin_takes_the_closest_two(rows, probabilities):
    margin = plain_margins(probabilities)
    wanted = sorted((i for i in KEPT if i not in LABELLED), key=margin.__getitem__)[:9]
    taken = {"labelled": LABELLED, "excluded": EXCLUDED}
    assert select_margin(rows, 9, probabilities=probabilities, **taken).tolist() == wanted
    assert select_margin(rows, 9, probabilities=probabilities.numpy(), **taken).tolist() == wanted
    turn = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    assert torch.equal(select_margin(rows, 4, probabilities=torch.full((COUNT, 2), 0.5), seed=3), turn[:4])
    assert margins(torch.ones(3, 1)).tolist() == [1, 1, 1]


def test_margin_over_clusters_takes_the_closest_of_each(rows, probabilities):
    margin = plain_margins(probabilities)
    doubtful = sorted((i for i in KEPT if i not in LABELLED), key=margin.__getitem__)[:40]
    z = smooth_rows(rows, KEPT)
    clusters = MiniBatchKMeans(n_clusters=8, n_init=1, random_state=2).fit_predict(z[doubtful].numpy())
    wanted = [next(i for i, c in zip(doubtful, clusters, strict=True) if c == one) for one in sorted(set(clusters))]
    config = MarginClustersConfig(pool=5)
    taken = {"labelled": LABELLED, "excluded": EXCLUDED, "probabilities": probabilities, "seed": 2}
    chosen = select_margin_clusters(rows, 8, config=config, **taken).tolist()
    assert len(wanted) == 8
    assert chosen == sorted(wanted, key=margin.__getitem__)
    assert select_margin_clusters(rows, 8, config=config, smoothed=z, **taken).tolist() == chosen
    copies = rows[:1].repeat(COUNT, 1)  # one cluster only
    for told in ({"probabilities": probabilities}, {"probabilities": torch.full((COUNT, 2), 0.5)}):
        assert torch.equal(select_margin_clusters(copies, 8, **told), select_margin(copies, 8, **told))


def test_uncertainty_herding_covers_what_is_in_doubt(rows, probabilities):
    units = normalise(rows)[KEPT]
    known = [KEPT.index(i) for i in LABELLED]
    width = torch.pdist(units[known].double()).min().item()
    weights = 1 - torch.tensor(plain_margins(probabilities), dtype=torch.float64)[KEPT]
    taken = {"labelled": LABELLED, "excluded": EXCLUDED, "probabilities": probabilities}
    for least in (0.05, 2 * width):
        kernel = oracle.gaussians(units, units, [max(width, least)])
        wanted = in_pool(oracle.facility(kernel, weights, 10, known))
        config = UncertaintyHerdingConfig(least=least)
        assert select_uncertainty_herding(rows, 10, config=config, **taken).tolist() == wanted
    assert len(select_uncertainty_herding(rows, 10, probabilities=probabilities)) == 10  # no labelled rows


def test_the_doubt_is_that_of_the_clients_and_one_label_tells_no_width(rows, probabilities):
    units, asked = normalise(rows)[KEPT], {"excluded": EXCLUDED, "probabilities": probabilities}
    weights = 1 - torch.tensor(plain_margins(probabilities), dtype=torch.float64)[KEPT]
    kernel = oracle.gaussians(units, units, [median_distance(units)])
    wanted = in_pool(oracle.facility(kernel, weights, 6, [KEPT.index(3)]))
    assert select_uncertainty_herding(rows, 6, labelled=[3], **asked).tolist() == wanted
    known, generator = [KEPT.index(i) for i in LABELLED], torch.Generator().manual_seed(4)
    clients = torch.randperm(len(KEPT), generator=generator)[:40].sort().values
    kernel = oracle.gaussians(units, units[clients], [max(0.05, torch.pdist(units[known].double()).min().item())])
    wanted = in_pool(oracle.facility(kernel, weights[clients], 6, known))
    config = UncertaintyHerdingConfig(clients=40)
    assert select_uncertainty_herding(rows, 6, config=config, labelled=LABELLED, seed=4, **asked).tolist() == wanted


def test_without_smoothing_clusters_are_of_the_rows_themselves(rows, probabilities):
    margin = plain_margins(probabilities)
    doubtful = sorted(range(COUNT), key=margin.__getitem__)[:40]
    clusters = MiniBatchKMeans(n_clusters=8, n_init=1, random_state=0).fit_predict(normalise(rows)[doubtful].numpy())
    wanted = [next(i for i, c in zip(doubtful, clusters, strict=True) if c == one) for one in sorted(set(clusters))]
    plain, asked = MarginClustersConfig(pool=5, steps=0), {"probabilities": probabilities}
    chosen = select_margin_clusters(rows, 8, config=plain, **asked).tolist()
    assert chosen == sorted(wanted, key=margin.__getitem__)
    assert chosen != select_margin_clusters(rows, 8, config=MarginClustersConfig(pool=5), **asked).tolist()
    half = select_half(rows, 16, config=HalfConfig(pool=5, steps=0), **asked).tolist()
    assert half[8:] == select_margin_clusters(rows, 8, config=plain, labelled=half[:8], **asked).tolist()
    assert (
        half[8:]
        != select_margin_clusters(rows, 8, config=MarginClustersConfig(pool=5), labelled=half[:8], **asked).tolist()
    )


def test_large_pools_are_smoothed_where_it_is_asked_for_alone(rows, monkeypatch):
    for large, kept in ((COUNT, COUNT), (COUNT - 9, COUNT - 9), (COUNT - 1, COUNT)):  # excluded rows make none large
        monkeypatch.setattr(smoothing, "LARGE", large)
        assert (smooth_rows(rows, range(kept), None) is None) == (kept > large)
        assert smooth_rows(rows, range(kept)).shape == rows.shape


def test_half_is_both_in_turn(rows, probabilities):
    asked = {"excluded": EXCLUDED, "probabilities": probabilities, "seed": 3}
    chosen = select_half(rows, 7, labelled=LABELLED, **asked).tolist()
    first = select_weighted_voptimal(rows, 4, labelled=LABELLED, **asked).tolist()
    assert chosen == first + select_margin_clusters(rows, 3, labelled=LABELLED + first, **asked).tolist()
    # the seed shows in as many
    many = select_half(rows, 24, config=HalfConfig(pool=3), labelled=LABELLED, **asked).tolist()
    rest = MarginClustersConfig(pool=3)
    assert many[12:] == select_margin_clusters(rows, 12, config=rest, labelled=LABELLED + many[:12], **asked).tolist()
    whole = select_half(rows, 7, config=HalfConfig(share=1), labelled=LABELLED, **asked).tolist()
    assert whole == select_weighted_voptimal(rows, 7, labelled=LABELLED, **asked).tolist()


def test_smallest_distance_over_blocks(rows, monkeypatch):
    monkeypatch.setattr(doubt, "CHUNK_ROWS", 32)
    units = normalise(rows)
    assert doubt.smallest_distance(units) == pytest.approx(torch.pdist(units.double()).min().item(), abs=1e-4)


@pytest.mark.parametrize(("config", "field", "value"), [
    (FacilityConfig, "scales", 0), (FacilityConfig, "scales", 9), (FacilityConfig, "width", float("nan")),
    (VOptimalConfig, "noise", 0), (VOptimalConfig, "core", -1), (WeightedConfig, "steps", -1),
    (WeightedConfig, "floor", 0), (MarginClustersConfig, "pool", 0), (UncertaintyHerdingConfig, "least", 0),
    (HalfConfig, "share", 1.5),
])  # fmt: skip
def test_settings_outside_their_range(config, field, value):
    with pytest.raises(UserError, match=rf"^{field} {value} is outside \S+\.\."):
        config(**{field: value})


def test_labelled_rows_of_several_blocks_are_all_served(rows, monkeypatch):
    whole = select_facility(rows, 6, labelled=LABELLED).tolist()
    monkeypatch.setattr(facility, "block_rows", lambda *_: 2)
    assert select_facility(rows, 6, labelled=LABELLED).tolist() == whole
