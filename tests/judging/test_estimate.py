"""The accuracy to expect on a pool, where the labelled images are not like it."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from data_selection.judging.estimate import FEWEST_DRAWN, cell_weights, estimate


def test_an_image_stands_for_the_rows_that_are_nearest_to_it():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(300, 5)) * draw.uniform(0.1, 9, size=(300, 1))
    ids = torch.tensor([7, 3, 250, 99])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = (unit @ unit[ids].T).argmax(1)
    assert cell_weights(features, ids).tolist() == [(nearest == place).mean() for place in range(4)]


def test_a_crowd_of_which_one_label_is_right_counts_as_a_crowd():
    """An easy crowd of 900 and a hard rim of 100, of which a choice takes as many: the pool's accuracy is 90 %."""
    draw = np.random.default_rng(1)
    crowd, rim = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])
    features = np.repeat([crowd, rim], [900, 100], axis=0) + 0.01 * draw.normal(size=(1000, 4))
    ids = torch.cat([torch.arange(20), torch.arange(900, 920)])
    right = ids < 900
    found = estimate(right, cell_weights(features, ids))
    assert found.share.value == pytest.approx(90)
    assert (found.right, found.drawn) == (20, 0)
    equal = estimate(right, torch.ones(40))
    assert equal.share.value == 50
    assert equal.effective == pytest.approx(40)
    oracle = binomtest(20, 40).proportion_ci(method="wilson")
    assert equal.share[1:] == pytest.approx((100 * oracle.low, 100 * oracle.high), abs=1e-4)


def test_uneven_weights_are_worth_fewer_labels():
    weights = torch.tensor([4.0, 1, 1, 1, 1])
    found = estimate(torch.tensor([True, True, True, False, False]), weights)
    assert found.effective == pytest.approx(64 / 20)  # (sum w)^2 / sum w^2
    assert found.share.value == pytest.approx(75)
    even = estimate(torch.tensor([True, True, True, False]), torch.ones(4))
    assert found.share.high - found.share.low > even.share.high - even.share.low


def test_images_drawn_at_random_judge_alone_where_there_are_enough():
    right = torch.arange(60) % 3 > 0
    drawn = torch.arange(0, 60, 3)[:FEWEST_DRAWN]  # all wrong
    found = estimate(right, torch.ones(60), drawn)
    assert (found.share.value, found.drawn, found.right) == (0, FEWEST_DRAWN, 0)
    assert found.share.high == pytest.approx(
        100 * binomtest(0, FEWEST_DRAWN).proportion_ci(method="wilson").high, abs=1e-4
    )
    few = estimate(right, torch.ones(60), drawn[1:])
    assert (few.drawn, few.right, few.share.value) == (0, 40, pytest.approx(100 * 2 / 3))
