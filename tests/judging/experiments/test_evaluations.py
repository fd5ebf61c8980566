"""The evaluations on frozen features, each asked for one list."""

from types import SimpleNamespace

import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.judging import smoothed
from data_selection.judging.evaluation import PROBE_C
from data_selection.judging.experiments import evaluations
from data_selection.judging.probe import choose_c, fit_probe
from data_selection.judging.smoothed import smoothing_of
from data_selection.nearest.similarity import normalise


@pytest.fixture(scope="module")
def pool():
    """Three overlapping classes of unlike sizes; the test rows are far shorter than the pool's."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 2] * 20)
    parts = [torch.eye(6)[labels] + 0.6 * torch.randn(120, 6, generator=draw) for _ in range(2)]
    base = smoothing_of(parts[0], k=5, steps=1)
    outside = base.outside(parts[1])
    return SimpleNamespace(
        tensors=(parts[0], labels, 0.01 * parts[1], labels), classes=3, smoothed=lambda k, steps: (base, outside)
    )


def task(pool, **settings):
    return SimpleNamespace(pool=pool, ids=torch.arange(0, 120, 2), settings=settings)


@pytest.mark.parametrize("c", [3.0, "auto"])
def test_the_probe_looks_at_directions_and_takes_the_c_that_is_asked_for(pool, c):
    features, labels, test, truth = pool.tensors
    units, known = normalise(features[::2]), labels[::2]
    chosen = choose_c(units, known)
    assert chosen not in (3.0, PROBE_C)
    found = evaluations.probe(task(pool, c=c))
    assert found["c"] == (chosen if c == "auto" else 3.0)
    predicted = fit_probe(units, known, 3, found["c"]).predict(normalise(test)).argmax(1)
    assert found["accuracy"] == 100 * (predicted == truth).double().mean().item()


def test_the_smoothed_probe_may_choose_its_c(pool, monkeypatch):
    monkeypatch.setattr(smoothed, "SURE_OF_C", 10)
    base, known = pool.smoothed(5, 1)[0], pool.tensors[1][::2]
    chosen = choose_c(base.smoothed[::2], known)
    assert evaluations.smoothed(task(pool, k=5, steps=1, c="auto"))["c"] == chosen != smoothed.SMOOTH_C
    assert evaluations.smoothed(task(pool, k=5, steps=1, c=3.0))["c"] == 3


def test_no_step_of_smoothing_is_a_choice_and_no_neighbour_is_none():
    check = evaluations.FROZEN["smoothed"].check
    assert check({"steps": 0, "c": 3}, None, "here") == {"c": 3.0, "k": 10, "steps": 0}
    with pytest.raises(UserError, match="here: k 0 must be a whole number"):
        check({"k": 0}, None, "here")
