"""What labels and held-out predictions say, against values worked out by hand."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from data_selection.judging.findings import confusion, extrapolate, interval, learning_curve


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (37, 50), (499, 1000)])
def test_the_interval_is_wilsons(right, count):
    found = interval(right, count)
    oracle = binomtest(right, count).proportion_ci(method="wilson")
    assert found.value == pytest.approx(100 * right / count)
    assert (found.low, found.high) == pytest.approx((100 * oracle.low, 100 * oracle.high), abs=1e-4)


def test_nothing_asked_says_nothing():
    assert interval(0, 0)[1:] == (0.0, 100.0)


def test_confusions_are_counted_by_label_and_prediction():
    found = confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_a_power_law_is_found_again():
    sizes, wanted = [20, 40, 60, 80], [160, 400]
    error = 10 + 120 * np.array(sizes, float) ** -0.5
    expected = 100 - (10 + 120 * np.array(wanted, float) ** -0.5)
    assert extrapolate(sizes, 100 - error, wanted) == pytest.approx(expected, abs=0.3)
    steep = 100 - 5 - 900 * np.array(sizes, float) ** -1.0
    assert extrapolate(sizes, steep, [800]) == pytest.approx([100 - 5 - 900 / 800], abs=0.3)
    assert extrapolate(sizes, np.array([50.0, 50, 50, 50]), wanted) == pytest.approx([50, 50])
    assert extrapolate(sizes, np.array([60.0, 50, 45, 40]), wanted).max() <= 50  # it never promises a rise


def test_an_error_that_falls_fast_stays_above_0():
    sizes = [100, 200, 300, 400]
    assert 99.5 < extrapolate(sizes, 100 - 3000 * np.array(sizes, float) ** -1.4, [5000])[0] < 99.99


def test_the_curve_rises_with_labels_that_teach():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(120, 3, generator=generator)
    labels = (features.sum(1) + 0.4 * torch.randn(120, generator=generator) > 0).long()
    trained = []

    def answer(train, left):  # the nearest of the training rows
        trained.append((frozenset(train.tolist()), frozenset(left.tolist())))
        return labels[train][torch.cdist(features[left], features[train]).argmin(1)]

    curve = learning_curve(labels, answer, more=[50, 240], seed=1)
    assert [point.labels for point in curve.points] == [24, 48, 72, 96, 240]
    assert [point.seen for point in curve.points] == [True] * 4 + [False]
    assert all(not train & left for train, left in trained)
    assert all(small < large for (small, _), (large, _) in itertools.pairwise(trained) if len(small) < 96)
    for point in curve.points:
        assert 0 <= point.low <= point.accuracy <= point.high <= 100
    assert curve.points[3].accuracy > curve.points[0].accuracy
    assert curve == learning_curve(labels, answer, more=[50, 240], seed=1)
    assert learning_curve(labels, answer, seed=1).points == curve.points[:4]


def test_a_model_that_knows_everything_has_all_right_and_nothing_to_gain():
    labels = torch.arange(40) % 4
    curve = learning_curve(labels, lambda _train, left: labels[left], more=[60])
    assert [point[1:4] for point in curve.points] == [pytest.approx((100, 100, 100))] * 5
    one = learning_curve(labels, lambda _train, left: labels[left], more=[60], shares=[1.0])
    assert [point.labels for point in one.points] == [32]  # from one size nothing can be extrapolated
