"""Rounds: which method the labels ask for, and that the model is of the labels alone."""

import numpy as np
import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.judging import rounds
from data_selection.judging.rounds import advise_rounds, choose_next
from data_selection.judging.smoothed import at_temperature, fit_smoothed
from data_selection.methods.configs_design import MarginClustersConfig
from data_selection.methods.table import METHODS
from tests.support.thread_world import on_ranks

ROUNDS = [name for name, row in METHODS.items() if row.rounds]


def pool(count=120):
    """Three clusters in eight dimensions, and the class of each row."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    return torch.randn(count, 8, generator=generator) + 2.5 * torch.eye(8)[labels], labels


@pytest.mark.parametrize(
    ("counts", "budget", "method"),
    [((10, 10, 10), 45, "wvoptimal"), ((10, 10, 10), 46, "half"), ((60, 4, 4), 5, "half"), ((2, 1), 5, "wvoptimal")],
)
def test_the_rule(counts, budget, method):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    found, reason = advise_rounds(labels, budget)
    assert found == method
    assert f"{len(counts)} classes" in reason or "labels a class, above 25" in reason


@pytest.mark.parametrize("method", ["auto", *ROUNDS])
def test_a_method_is_given_the_calibrated_model_of_the_labels(method, monkeypatch):
    features, labels = pool()
    ids = torch.arange(0, 60, 5)
    found = choose_next(features, labels[ids], ids, 6, method=method, excluded=[1, 2], labelled=[3], seed=4)
    name = "wvoptimal" if method == "auto" else method
    assert found.method == name
    model = fit_smoothed(features, labels[ids], ids, correct=False)
    said = at_temperature(model.pool, model.temperature)
    torch.testing.assert_close(found.probabilities, said)
    row = METHODS[name]
    more = {"smoothed": model.base.smoothed} if row.smoothed else {}
    taken = torch.cat([ids, torch.tensor([3])]).sort().values
    asked = row.select(
        features, 6, config=row.config(), labelled=taken, excluded=[1, 2], seed=4, probabilities=said, **more
    )
    assert found.ids.tolist() == asked.tolist()
    assert not set(found.ids.tolist()) & {*ids.tolist(), 1, 2, 3}
    known = choose_next(
        features, labels[ids], ids, 6, method=method, excluded=[1, 2], labelled=[3], seed=4, base=model.base
    )
    assert known.ids.tolist() == found.ids.tolist()
    array = choose_next(features.numpy(), labels[ids].numpy(), ids.tolist(), 6, method=method, excluded=[1, 2],
                        labelled=[3], seed=4)  # fmt: skip
    assert array.ids.tolist() == found.ids.tolist()


@pytest.mark.parametrize("method", [name for name in ROUNDS if METHODS[name].smoothed])
def test_rows_are_smoothed_as_often_as_the_config_says(method):
    features, labels = pool()
    features, ids, lists = (
        features + torch.randn(120, 8, generator=torch.Generator().manual_seed(2)),
        range(0, 60, 5),
        {},
    )
    base = rounds.smoothing_of(features, spread=False)
    for steps in (None, 0, 2, 6):
        config = METHODS[method].config(steps=steps)
        found = choose_next(features, labels[::5][:12], ids, 20, method=method, config=config, base=base)
        asked = METHODS[method].select(features, 20, config=config, labelled=ids, probabilities=found.probabilities)
        assert found.ids.tolist() == asked.tolist()
        lists[steps] = found.ids.tolist()
    assert lists[None] == lists[2]
    assert lists[0] != lists[2] != lists[6]


def test_doubt_is_where_two_clusters_meet():
    features, labels = pool()
    middle = (features[labels == 0].mean(0) + features[labels == 1].mean(0)) / 2
    features[100:110] = middle + 0.05 * torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(0, 60)
    found = choose_next(features, labels[ids], ids, 8, method="margin")
    assert len({*found.ids.tolist()} & {*range(100, 110)}) >= 4


def test_what_no_model_can_be_made_of_is_refused():
    features, labels = pool()
    with pytest.raises(UserError, match="3 labels of 1 classes: rounds ask a model"):
        choose_next(features, [0, 0, 0], [0, 3, 6], 5)
    with pytest.raises(UserError, match="label -1 is no class number"):
        choose_next(features, [0, 1, -1], [0, 3, 6], 5)
    for method in ("activeft", "nonsense"):
        with pytest.raises(UserError, match=f"method '{method}' asks no model: use auto or one of wvoptimal"):
            choose_next(features, labels[:6], range(6), 5, method=method)


@pytest.mark.parametrize("method", ROUNDS)
def test_ranks_choose_what_one_chooses(method):
    features, labels = pool()
    alone = choose_next(features, labels[:12], range(12), 6, method=method)

    def on(world: World):
        return choose_next(features, labels[:12], range(12), 6, method=method, world=world)

    for size in (2, 3):
        for found in on_ranks(size, on):
            assert found.ids.tolist() == alone.ids.tolist()
            assert torch.equal(found.probabilities, alone.probabilities)


def test_the_labels_of_the_others_are_not_looked_at(monkeypatch):
    features, labels = pool()
    seen = []
    real = rounds.fit_smoothed
    monkeypatch.setattr(
        rounds, "fit_smoothed", lambda base, *args, **how: seen.append(args) or real(base, *args, **how)
    )
    choose_next(features, labels[:9], range(9), 5)
    assert np.array_equal(seen[0][0], labels[:9])
    assert seen[0][1].tolist() == list(range(9))


def test_a_pool_that_is_smoothed_already_is_not_smoothed_again(monkeypatch):
    features, labels = pool()
    base = rounds.smoothing_of(features)
    monkeypatch.setattr(rounds, "smoothing_of", None)
    assert len(choose_next(features, labels[:12], range(12), 6, base=base).ids) == 6


def test_settings_and_the_number_of_classes_are_passed_on():
    features, labels = pool()
    ids = torch.arange(0, 60, 5)
    default = choose_next(features, labels[ids], ids, 6, method="margin-clusters")
    found = choose_next(
        features, labels[ids], ids, 6, method="margin-clusters", config=MarginClustersConfig(pool=1), classes=5
    )
    assert found.probabilities.shape == (120, 5)
    closest = METHODS["margin"].select(features, 6, labelled=ids, probabilities=found.probabilities)
    assert found.ids.tolist() == closest.tolist() != default.ids.tolist()
