"""TypiClust, ProbCover, kernel herding, ZCore and stratified choice beside their textbook versions."""

import numpy as np
import pytest
import sklearn.cluster
import torch
from threadpoolctl import threadpool_limits

from data_selection.common.errors import UserError
from data_selection.methods import clusters, herding, probcover, zcore
from data_selection.methods.clusters import fit_clusters, on_grid, resident_rows
from data_selection.methods.configs_clusters import (
    HerdingConfig,
    ProbCoverConfig,
    StratifiedConfig,
    TypiClustConfig,
    ZCoreConfig,
)
from data_selection.methods.herding import select_herding
from data_selection.methods.probcover import select_probcover
from data_selection.methods.stratified import select_stratified
from data_selection.methods.typiclust import select_typiclust
from data_selection.methods.zcore import scores, select_zcore, triangular
from data_selection.nearest import pool_reader
from tests.support import oracles_clusters as oracles

pytestmark = pytest.mark.usefixtures("one_thread")
LABELLED, EXCLUDED = [3, 40, 41], [0, 17, 58]
TAKEN = [{}, {"labelled": LABELLED}, {"excluded": EXCLUDED}, {"labelled": LABELLED, "excluded": [3, *EXCLUDED]}]


def pool(copies=False, count=90):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 7, generator=generator)[torch.arange(count) % 6] + 0.5 * torch.randn(
        count, 7, generator=generator
    )
    return torch.cat([rows[: count // 2], rows[: count // 2]]) if copies else rows


def kept_of(count, labelled=(), excluded=()):
    return [i for i in range(count) if i not in excluded or i in labelled]


def cluster_of(rows, count, config, seed=0, **taken):
    """{row: cluster} as the methods see it."""
    kept = torch.tensor(kept_of(len(rows), **taken))
    _, cluster = fit_clusters(torch.nn.functional.normalize(rows[kept], dim=1), count, config, seed)
    return dict(zip(kept.tolist(), cluster.tolist(), strict=True))


@pytest.fixture(params=[False, True], ids=["distinct", "copies"])
def rows(request):
    return pool(request.param)


@pytest.mark.parametrize("taken", TAKEN, ids=str)
@pytest.mark.parametrize("budget", [1, 30, "all"])
def test_typiclust_is_the_textbook(rows, taken, budget):
    config = TypiClustConfig(clusters=9, nearest=4, smallest=3)
    count = len(kept_of(90, **taken)) - len(taken.get("labelled", ()))
    budget = count if budget == "all" else budget
    cluster = cluster_of(rows, min(9, budget + len(taken.get("labelled", ()))), config, **taken)
    wanted = oracles.typiclust(rows, cluster, budget, 4, 3, **taken)
    assert select_typiclust(rows, budget, config=config, **taken).tolist() == wanted


@pytest.mark.filterwarnings("error")
def test_fewer_distinct_rows_than_clusters_are_no_cause_for_warnings():
    assert select_typiclust(torch.eye(3).repeat(8, 1), 9).unique().numel() == 9


@pytest.mark.parametrize(("count", "batches"), [(80, False), (81, True)])
def test_more_than_four_minibatches_are_fitted_by_minibatches(count, batches, monkeypatch):
    used = []
    for name in ("KMeans", "MiniBatchKMeans"):
        real = getattr(sklearn.cluster, name)
        monkeypatch.setattr(
            sklearn.cluster, name, lambda real=real, name=name, **options: used.append(name) or real(**options)
        )
    fit_clusters(torch.randn(count, 3), 2, StratifiedConfig(batch_size=20), 0)
    assert used == ["MiniBatchKMeans" if batches else "KMeans"]


def test_typiclust_leaves_small_clusters_for_last():
    rows = torch.eye(3)[[0] * 9 + [1] * 7 + [2] * 2] + 0.01 * torch.randn(18, 3, generator=torch.Generator())
    ids = select_typiclust(rows, 3, config=TypiClustConfig(smallest=3))
    assert (ids[:2] < 16).all()
    assert ids[2] < 16
    assert (select_typiclust(rows, 3, config=TypiClustConfig(smallest=2)) >= 16).sum() == 1


@pytest.mark.parametrize("taken", TAKEN, ids=str)
@pytest.mark.parametrize("delta", [0.0, 0.5, 0.9, 2.0])
def test_probcover_is_the_textbook_with_equal_images_in_a_random_order(rows, taken, delta, monkeypatch):
    monkeypatch.setattr(probcover, "TILE", (7, 11))
    monkeypatch.setattr(clusters.tiles, "__defaults__", ((7, 11),))
    kept = kept_of(90, **taken)
    count = len(kept) - len(taken.get("labelled", ()))
    for seed, budgets in ((5, (1, 20)), (6, (count,))):
        turn = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed)).tolist()
        wanted = oracles.probcover(rows, budgets[-1], delta, turn, **taken)
        for budget in budgets:  # the list of a larger budget begins with that of a smaller one
            ids = select_probcover(rows, budget, config=ProbCoverConfig(delta=delta), seed=seed, **taken).tolist()
            assert ids == wanted[:budget]


def test_probcover_of_a_pool_sorted_by_class_takes_from_all_of_them():
    """Also once no ball holds two images that are not covered, and once all are."""
    few = torch.cat([torch.eye(4), -torch.eye(4)]).repeat_interleave(10, 0)  # 8 balls cover them
    ids = select_probcover(few, 40, config=ProbCoverConfig(delta=0.1))
    assert (ids < 40).sum() in range(12, 29)
    apart = torch.nn.functional.normalize(torch.randn(100, 40, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (select_probcover(apart, 40, config=ProbCoverConfig(delta=0.1)) < 50).sum() in range(12, 29)


@pytest.mark.parametrize("purity", [0.0, 0.8, 0.95, 1.0])
def test_the_radius_is_the_largest_that_is_pure_enough(rows, purity):
    cluster = torch.arange(90) % 6
    cluster[:2] = 1
    balls = probcover.Balls(on_grid(torch.nn.functional.normalize(rows, dim=1)), 0)
    reach = probcover.pure_reach(balls, cluster, torch.arange(90), purity)
    radius = oracles.largest_pure_radius(rows, cluster, purity) if purity else oracles.largest_pure_radius(
        rows, cluster, 1 / 90
    )  # fmt: skip
    assert (2 * reach) ** 0.5 < radius or radius == 0
    assert (2 * (reach + 2 * probcover.UNIT)) ** 0.5 >= radius
    one = probcover.pure_reach(balls, torch.zeros(90, dtype=torch.int64), torch.arange(90), purity)
    assert one > 2  # the whole sphere


def test_probcover_takes_its_radius_from_clusters():
    rows = pool()
    lists = {
        purity: select_probcover(rows, 6, config=ProbCoverConfig(clusters=6, purity=purity)) for purity in (0.5, 1)
    }
    assert lists[0.5].tolist() != lists[1].tolist()
    assert set((lists[0.5] % 6).tolist()) == set(range(6))


@pytest.mark.parametrize("taken", TAKEN, ids=str)
@pytest.mark.parametrize("alpha", [None, 0.0, 0.7, 1.0])
def test_herding_lowers_the_mmd_most(taken, alpha, monkeypatch):
    monkeypatch.setattr(clusters.tiles, "__defaults__", ((7, 11),))
    rows = pool(count=40 + 20)
    for budget in (1, 12):
        config = HerdingConfig(sigma=0.6, alpha=alpha)
        weight = 1 - (budget + len(taken.get("labelled", ()))) ** -0.5 if alpha is None else alpha
        if weight == 0 and not taken.get("labelled"):
            continue  # all first choices are level
        wanted = oracles.herding(rows, budget, 0.6, weight, **taken)
        assert select_herding(rows, budget, config=config, **taken).tolist() == wanted


@pytest.mark.parametrize("taken", [{}, {"excluded": EXCLUDED}], ids=str)
def test_one_image_of_herding_alone_is_the_one_nearest_to_all(taken):
    rows = pool()
    wanted = oracles.herding(rows, 1, 0.6, 1.0, **taken)
    assert wanted != [0]
    assert select_herding(rows, 1, config=HerdingConfig(sigma=0.6), **taken).tolist() == wanted


def test_herding_of_copies_takes_the_first_and_every_image_at_last():
    rows = pool(copies=True)
    ids = select_herding(rows, 90)
    assert ids[0] < 45
    assert sorted(ids.tolist()) == list(range(90))


def test_herding_never_takes_an_image_that_is_labelled_however_few_others_are_left():
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(4)).repeat_interleave(30, 0)
    labelled = list(range(0, 90, 3))
    rest = [i for i in range(90) if i not in labelled]
    assert sorted(select_herding(rows, len(rest), labelled=labelled).tolist()) == rest


def test_herding_looks_at_a_sample_of_large_pools():
    rows = torch.nn.functional.normalize(pool(), dim=1)
    sample = torch.randperm(90, generator=torch.Generator().manual_seed(2))[:20].sort().values
    kernel = torch.exp((rows @ rows.T - 1) / 0.25)
    mean, wanted = kernel[:, sample].mean(1), []
    for _ in range(12):
        score = (len(wanted) + 1) * mean - kernel[:, wanted].sum(1)
        score[wanted] = -torch.inf
        wanted.append(int(score.argmax()))
    assert select_herding(rows, 12, config=HerdingConfig(sigma=0.5, alpha=1.0, sample=20), seed=2).tolist() == wanted
    assert herding.mean_kernel(rows, rows, 0.5).argmax() != mean.argmax()


@pytest.mark.parametrize(("dimensions", "exponent"), [(1, 3.0), (2, 3.0), (3, 3.0), (2, 0.0)])
def test_zcore_is_the_textbook(rows, dimensions, exponent, monkeypatch):
    config, seen = ZCoreConfig(draws=40, dimensions=dimensions, exponent=exponent), []
    real = zcore.distance

    def noted(columns, axes, points):
        if len(seen) % 2 == 0 or True:
            seen.append((axes.numpy(), points.numpy()))
        return real(columns, axes, points)

    monkeypatch.setattr(zcore, "distance", noted)
    monkeypatch.setattr(zcore, "AT_ONCE", 90 * 7)  # seven draws at once, and five at last
    units = torch.nn.functional.normalize(rows, dim=1)
    found = scores(units.T.contiguous(), config, np.random.default_rng(4))
    draws = [pair for axes, points in seen[::2] for pair in zip(axes, points, strict=True)]
    assert len(draws) == 40
    start = np.random.default_rng(4).random(90)
    assert found.numpy() == pytest.approx(oracles.zcore(units, draws, start, exponent), abs=1e-4)
    best = found.argsort(descending=True, stable=True)
    monkeypatch.undo()
    monkeypatch.setattr(zcore, "AT_ONCE", 90 * 7)
    assert select_zcore(rows, 30, config=config, seed=4).tolist() == best[:30].tolist()
    some = select_zcore(rows, 87, config=config, seed=4, labelled=LABELLED).tolist()
    assert some == [i for i in best.tolist() if i not in LABELLED]


@pytest.mark.parametrize("exponent", [4.0, 6.0])
def test_what_a_draw_gives_it_takes_from_others_even_among_many_copies(exponent):
    columns = torch.nn.functional.normalize(pool()[[0] * 900 + [*range(90)]], dim=1).T.contiguous()
    found = scores(columns, ZCoreConfig(draws=200, exponent=exponent), np.random.default_rng(4))
    assert found.sum().item() == pytest.approx(np.random.default_rng(4).random(990).sum(), abs=1e-2)


def test_the_triangular_draws_have_the_median_as_their_mode():
    low, middle, high = (np.full(20_000, edge) for edge in (-1.0, 0.5, 1.0))
    found = triangular(np.random.default_rng(0), low, middle, high)
    assert -1 <= found.min() < -0.97
    assert 0.97 < found.max() <= 1
    assert found.mean() == pytest.approx(0.5 / 3, abs=0.01)  # the mean of the corners
    assert (found < 0.5).mean() == pytest.approx(0.75, abs=0.01)
    assert (triangular(np.random.default_rng(0), low, low, low) == -1).all()


@pytest.mark.parametrize("taken", TAKEN, ids=str)
def test_strata_give_in_proportion(rows, taken):
    config = StratifiedConfig(clusters=5)
    cluster = cluster_of(rows, 5, config, **taken)
    ids = select_stratified(rows, 31, config=config, **taken).tolist()
    counted = {c: sum(cluster[i] == c for i in ids) for c in set(cluster.values())}
    assert counted == oracles.stratified_shares(cluster, 31, taken.get("labelled", ()))
    assert ids == sorted(ids)
    other = select_stratified(rows, 31, config=config, seed=1, **taken).tolist()
    assert other != ids
    seen = {i for seed in range(40) for i in select_stratified(rows, 31, config=config, seed=seed, **taken).tolist()}
    assert seen == set(kept_of(90, **taken)) - set(taken.get("labelled", ()))


def test_products_on_the_grid_are_exact():
    rows = on_grid(torch.nn.functional.normalize(torch.randn(50, 300, generator=torch.Generator()), dim=1))
    assert torch.equal((rows @ rows.T).double(), rows.double() @ rows.double().T)


def test_a_pool_beyond_memory_is_refused_with_what_it_needs(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(pool_reader, "available_memory", lambda: 5000)
    with pytest.raises(UserError, match=r"90 images in memory and needs 5\.54e-06 GB, but 5e-06 GB are free"):
        select_typiclust(pool(), 3)
    monkeypatch.setattr(pool_reader, "available_memory", lambda: 6000)
    assert resident_rows(pool(), torch.arange(90), torch.device("cpu"), "it").shape == (90, 7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # each of which keeps a copy
    with pytest.raises(UserError, match=r"needs 5\.54e-06 GB, but 1\.5e-06 GB are free"):
        select_typiclust(pool(), 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TypiClustConfig(clusters=0), r"clusters 0 is outside 1\.\."),
        (lambda: TypiClustConfig(max_iter=0), "max_iter 0"),
        (lambda: ProbCoverConfig(delta=2.5), r"delta 2\.5 is outside 0\.\.2"),
        (lambda: ProbCoverConfig(purity=float("nan")), "purity nan is outside"),
        (lambda: HerdingConfig(sigma=0), "sigma 0 is outside"),
        (lambda: ZCoreConfig(draws=0), "draws 0 is outside"),
        (lambda: StratifiedConfig(clusters=0), "clusters 0 is outside"),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_clusters_do_not_depend_on_the_number_of_threads():
    rows = torch.nn.functional.normalize(torch.randn(2500, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(fit_clusters(rows, 40, TypiClustConfig(), 0)[0])
    assert torch.equal(*found)
