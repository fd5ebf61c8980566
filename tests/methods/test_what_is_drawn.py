"""Which seed, rows and bounds the random parts of methods are given, and when a loss stands still."""

import importlib

import numpy as np
import pytest
import torch

from data_selection.methods import probcover, zcore
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.configs_clusters import ProbCoverConfig, ZCoreConfig
from data_selection.methods.configs_design import MaxHerdingConfig, UncertaintyHerdingConfig, VOptimalConfig
from data_selection.methods.design import voptimal
from data_selection.methods.table import METHODS
from tests.support.activeft_cases import trace
from tests.support.beliefs import beliefs

TEN = 10
pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count=80):
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["kmeans", "probcover", "stratified", "typiclust"])
def test_clusters_begin_by_the_seed(name, monkeypatch):
    module, seen = importlib.import_module(f"data_selection.methods.{name}"), []
    real = module.fit_clusters
    monkeypatch.setattr(module, "fit_clusters", lambda *some: seen.append(some[3]) or real(*some))
    METHODS[name].select(rows(), 6, seed=5)
    assert seen == [5]


@pytest.mark.parametrize(
    ("name", "config"),
    [("maxherding", MaxHerdingConfig(clients=10)), ("herding-uncertainty", UncertaintyHerdingConfig(clients=10))],
)
def test_clients_are_drawn_by_the_seed(name, config):
    method = METHODS[name]
    lists = [
        method.select(rows(), 6, config=config, seed=seed, **beliefs(method, rows())).tolist() for seed in (0, 1, 0)
    ]
    assert lists[0] == lists[2] != lists[1]


def test_the_core_of_a_design_is_drawn_by_the_seed(monkeypatch):
    seen, real = [], voptimal.cover
    monkeypatch.setattr(voptimal, "cover", lambda *some: seen.append(some[5]) or real(*some))
    voptimal.select_voptimal(rows(), 6, config=VOptimalConfig(core=4, steps=0), seed=5)
    assert seen == [5]


def test_the_rows_that_tell_probcovers_radius_are_drawn(monkeypatch):
    seen, real = [], probcover.pure_reach
    monkeypatch.setattr(probcover, "ASKED", 10)
    monkeypatch.setattr(probcover, "pure_reach", lambda *some: seen.append(some[2].tolist()) or real(*some))
    for seed in (0, 1, 0):
        probcover.select_probcover(rows(), 4, config=ProbCoverConfig(clusters=4), seed=seed)
    assert seen[0] == seen[2] != seen[1]
    assert all(asked == sorted(set(asked)) and len(asked) == 10 for asked in seen)
    assert max(map(max, seen)) > 40


def test_zcores_points_lie_between_the_pools_ends_with_the_median_the_likeliest(monkeypatch):
    """In coordinates of which none is drawn twice for one point."""
    columns, axes, edges = rows(81).exp().T.contiguous(), [], []
    real, draws = zcore.distance, zcore.triangular
    monkeypatch.setattr(zcore, "distance", lambda table, axis, points: axes.append(axis) or real(table, axis, points))
    monkeypatch.setattr(zcore, "triangular", lambda generator, *some: edges.append(some) or draws(generator, *some))
    zcore.scores(columns, ZCoreConfig(draws=40, dimensions=5), np.random.default_rng(0))
    (low, middle, high), axis = edges[0], axes[0].numpy()
    assert all(len(set(some)) == 5 for some in axis.tolist())
    for found, wanted in ((low, np.min), (middle, np.median), (high, np.max)):
        np.testing.assert_array_equal(found, wanted(columns.numpy(), axis=1)[axis])


def test_batches_are_drawn_by_the_seed():
    config = ActiveFTConfig(init="fps", batch_size=20, max_iter=4)  # after a labelled row nothing else is drawn
    losses = [trace(rows(), 5, config=config, labelled=[0], seed=seed)[1] for seed in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_the_loss_is_compared_with_that_of_ten_iterations_before():
    moved = ActiveFTConfig(max_iter=40, lr=0.01)
    losses = np.array(trace(rows(), 8, config=moved)[1])
    steps = [abs(losses[back:] - losses[:-back]) for back in (TEN - 1, TEN)]
    threshold = float(steps[1][5:20].min()) * 1.0001
    stop = int(np.argmax(steps[1] < threshold)) + TEN + 1
    assert stop != max(TEN + 1, int(np.argmax(steps[0] < threshold)) + TEN) <= 40
    config = ActiveFTConfig(max_iter=40, lr=0.01, threshold=threshold)
    assert len(trace(rows(), 8, config=config)[1]) == stop
