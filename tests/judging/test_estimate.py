"""The accuracy to expect on a pool: by images drawn at random where there are enough, else by all labels."""

import pytest
import torch
from scipy.stats import binomtest

from data_selection.judging.estimate import FEWEST_DRAWN, estimate


def test_images_drawn_at_random_judge_alone_where_there_are_enough():
    right = torch.arange(60) % 3 > 0
    drawn = torch.arange(0, 60, 3)[:FEWEST_DRAWN]  # all wrong
    found = estimate(right, drawn)
    assert (found.share.value, found.drawn, found.right) == (0, FEWEST_DRAWN, 0)
    oracle = binomtest(0, FEWEST_DRAWN).proportion_ci(method="wilson")
    assert found.share.high == pytest.approx(100 * oracle.high, abs=1e-4)
    few = estimate(right, drawn[1:])
    assert (few.drawn, few.right, few.share.value) == (0, 40, pytest.approx(100 * 2 / 3))
    assert estimate(right) == few
