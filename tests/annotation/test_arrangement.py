"""The order of a page's images: look-alikes side by side, near-duplicates known, beliefs as groups."""

import numpy as np
import pytest

from data_selection.annotation import arrangement
from data_selection.annotation.arrangement import Beliefs, arrange, why


def clusters(sizes, seed=0):
    """(features, cluster of each row), rows shuffled."""
    draw = np.random.default_rng(seed)
    kinds = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.eye(len(sizes), 16)[kinds] + 0.05 * draw.normal(size=(len(kinds), 16)), kinds


@pytest.mark.parametrize("at_once", [4_000, 30])
def test_look_alikes_lie_side_by_side(monkeypatch, at_once):
    monkeypatch.setattr(arrangement, "AT_ONCE", at_once)
    features, kinds = clusters([7, 12, 5, 9, 11])
    found = arrange(features)
    assert sorted(found.order) == list(range(44))
    assert np.all(np.diff(found.groups) >= 0)
    assert set(found.groups) == set(range(len(found.titles)))
    shown = kinds[found.order]
    changes = int((shown[1:] != shown[:-1]).sum())
    assert changes == 4 if at_once > 44 else changes <= 9
    if at_once > 44:
        pure = [len(set(shown[np.array(found.groups) == group])) for group in set(found.groups)]
        assert max(pure) == 1
    assert arrange(features) == found


def test_near_duplicates_come_first_and_are_counted():
    draw = np.random.default_rng(1)
    features = draw.normal(size=(30, 16))
    features[7] = features[21] + 1e-3 * draw.normal(size=16)
    found = arrange(features)
    assert (found.alike[7][0], found.alike[21][0]) == (21, 7)
    assert [place for place, twins in enumerate(found.twins) if twins] == [7, 21]
    assert all(len(others) == 4 and place not in others for place, others in enumerate(found.alike))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count):
    found = arrange(np.eye(3)[:count])
    assert sorted(found.order) == list(range(count))
    assert len(found.alike) == len(found.twins) == count


def test_beliefs_are_the_groups_the_most_certain_first():
    features, _ = clusters([5])
    rows = np.array([[0.6, 0.4, 0], [0.1, 0, 0.9], [0.9, 0.1, 0], [0.2, 0, 0.8], [0.7, 0.3, 0]])
    beliefs = Beliefs(rows, ["cat", "dog", "fox"])
    found = arrange(features, beliefs)
    assert found.order == [2, 4, 0, 1, 3]
    assert found.groups == [0, 0, 0, 1, 1]
    assert found.titles == ["cat", "fox"]
    assert beliefs.likeliest()[:2] == [("cat", 0.6), ("fox", 0.9)]


def test_why_says_where_classes_meet():
    rows = np.array([[0.5, 0.4, 0.1], [0.4, 0.5, 0.1], [0.1, 0.5, 0.4], [1, 0, 0], [0, 0.9, 0.1], [0.45, 0, 0.55]])
    every = why(Beliefs(np.vstack([rows, [[0.45, 0.55, 0]]]), ["cat", "dog", "fox"]))
    assert every == (
        "7 images: 3 where cat and dog meet, 1 where dog and fox meet, 1 where cat and fox meet, 2 of which the model "
        "is surer"
    )
    words = why(Beliefs(rows, ["cat", "dog", "fox"]), shown=1)
    assert words == "6 images: 2 where cat and dog meet, 2 where other classes meet, 2 of which the model is surer"
    assert why(Beliefs(np.ones((3, 1)), ["cat"])) == "3 images: all believed to be cat"
