"""The probe on smoothed features against full matrices and scikit-learn, on real images."""

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import data_selection
from data_selection.common.errors import UserError
from data_selection.judging import smoothed as module
from data_selection.judging.smoothed import choose_c, fit_probe, fit_smoothed
from tests.support import oracles_graph as oracle
from tests.support.thread_world import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")
POOL, LABELLED = 220, list(range(0, 220, 9))


@functools.cache
def digits():
    """(pool, its labels, queries, their labels)."""
    data = load_digits()
    features, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    return features[:POOL], labels[:POOL], features[POOL : POOL + 60], labels[POOL : POOL + 60]


def assert_as_dense(pool, labels, ids, queries, classes, **options):
    """fit_smoothed and its predictions equal the textbook's; returns the SmoothedProbe."""
    found = fit_smoothed(pool, labels, ids, classes=classes, **options)
    expected = oracle.everything(
        pool, [int(label) for label in labels], list(map(int, ids)), queries, classes, **options
    )
    predicted = (found.predict(queries, corrected=way, calibrated=False) for way in (False, True))
    results = (found.pool, found.corrected, *predicted)
    for result, other in zip(results, expected, strict=False):
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(result, other, atol=1e-3)
    return found


@pytest.mark.parametrize("options", [{}, {"k": 4, "steps": 3, "c": 3.0}, {"k": 20, "steps": 0}])
def test_all_of_it_matches_the_dense_version(options):
    pool, labels, queries, truth = digits()
    found = assert_as_dense(pool, labels[LABELLED], LABELLED, queries, 10, **options)
    assert (found.predict(queries).argmax(1) == truth).float().mean() > 0.6


def test_classes_without_a_label_are_never_predicted():
    pool, labels, queries, _ = digits()
    ids = [i for i in LABELLED if labels[i] in (2, 3, 7)]
    found = assert_as_dense(pool, labels[ids], ids, queries, 12)
    assert found.pool.shape == (POOL, 12)
    assert found.pool.sum(0).nonzero()[:, 0].tolist() == [2, 3, 7]
    assert fit_smoothed(pool, labels[ids], ids).pool.shape == (POOL, 8)


def test_two_classes_are_scikit_learns_binary_model():
    pool, labels, queries, _ = digits()
    ids = [i for i in LABELLED if labels[i] in (2, 7)]
    assert_as_dense(pool, labels[ids], ids, queries, 10)


@pytest.mark.parametrize("ids", [[5], [5, 9, 30]])
def test_one_class_is_always_predicted(ids):
    pool, _, queries, _ = digits()
    found = assert_as_dense(pool, [4] * len(ids), ids, queries, 6)
    assert (found.predict(queries)[:, 4] == 1).all()


@pytest.mark.parametrize("count", [3, 10, 12])
def test_a_pool_smaller_than_its_neighbourhoods(count):
    pool, labels, queries, _ = digits()
    assert_as_dense(pool[:count], labels[:2], [0, 1], queries, 10)


def test_copies_and_an_all_zero_row():
    pool, labels, queries, _ = digits()
    pool = pool.clone()
    pool[1:30] = pool[:1].clone()  # more copies than neighbours
    pool[40] = 0
    ids = [i for i in LABELLED if i not in range(1, 30)]
    assert_as_dense(pool, labels[ids], ids, torch.cat([queries, pool[[0, 40]]]), 10)


def test_a_pool_of_equal_rows_knows_only_its_labels():
    pool = torch.full((30, 4), 0.3)
    found = fit_smoothed(pool, [0, 1, 1], [0, 1, 2])
    assert not found.base.features.any()  # about their mean nothing is left, nobody has a neighbour
    prior = fit_probe(torch.zeros(3, 4), torch.tensor([0, 1, 1]), 2, 30.0).predict(torch.zeros(1, 4))[0]
    for rows in (found.pool, found.corrected[3:], *(found.predict(pool[:2], corrected=way) for way in (False, True))):
        np.testing.assert_allclose(rows, prior.expand(len(rows), -1), atol=1e-6)
    assert found.corrected[:3].tolist() == [[1, 0], [0, 1], [0, 1]]


def test_the_order_of_rows_and_labels_changes_nothing():
    pool, labels, queries, _ = digits()
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(LABELLED)
    one = fit_smoothed(pool, labels[ids], ids)
    moved = order.argsort()[ids].flip(0)
    other = fit_smoothed(pool[order], labels[ids].flip(0), moved)
    np.testing.assert_allclose(other.pool, one.pool[order], atol=1e-3)
    np.testing.assert_allclose(other.corrected, one.corrected[order], atol=1e-3)
    np.testing.assert_allclose(other.predict(queries, corrected=True), one.predict(queries, corrected=True), atol=1e-3)


def test_labels_are_learned_in_the_order_of_the_pool(monkeypatch):
    pool, labels, _, _ = digits()
    ids, seen = torch.tensor(LABELLED), []
    monkeypatch.setattr(
        module, "choose_c", lambda features, known, each: (seen.append(known), 1.0)[1]
    )  # its folds go by it
    mixed = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    fit_smoothed(pool, labels[ids[mixed]], ids[mixed], c=None)
    assert seen[0].equal(labels[ids])


def test_lengths_do_not_matter_and_arrays_are_taken():
    pool, labels, queries, _ = digits()
    one = fit_smoothed(pool, labels[LABELLED], LABELLED)
    other = fit_smoothed(pool.numpy() * 4, labels[LABELLED].tolist(), LABELLED)
    np.testing.assert_allclose(other.predict(queries.numpy() / 2), one.predict(queries), atol=1e-6)


def test_without_correction():
    pool, labels, queries, _ = digits()
    found = fit_smoothed(pool, labels[LABELLED], LABELLED, correct=False)
    assert found.corrected is None
    assert found.predict(queries).equal(fit_smoothed(pool, labels[LABELLED], LABELLED).predict(queries))
    with pytest.raises(UserError, match="correct=True"):
        found.predict(queries, corrected=True)


def test_what_does_not_fit_is_refused():
    pool, labels, _, _ = digits()
    with pytest.raises(UserError, match="2 labels for 3 ids"):
        fit_smoothed(pool, [1, 2], [0, 1, 2])
    with pytest.raises(UserError, match="0 labels for 0 ids"):
        fit_smoothed(pool, [], [])
    with pytest.raises(UserError, match="label -1 is no class number"):
        fit_smoothed(pool, [-1, 2], [0, 1])
    with pytest.raises(UserError, match=r"labels 1..5 are outside 0..4"):
        fit_smoothed(pool, [1, 5], [0, 1], classes=5)
    with pytest.raises(UserError, match="id 220 is outside"):
        fit_smoothed(pool, [1, 2], [0, 220])
    with pytest.raises(UserError, match="k 0 and steps 2"):
        fit_smoothed(pool, [1, 2], [0, 1], k=0)
    with pytest.raises(UserError, match=r"labels -1..2 are outside 0..2"):
        fit_probe(pool[:2], torch.tensor([-1, 2]), 3, 1.0)
    with pytest.raises(UserError, match="at least one label"):
        fit_probe(pool[:0], labels[:0], 3, 1.0)
    with pytest.raises(UserError, match="c 0 must be above 0"):
        fit_smoothed(pool, [1, 2], [0, 1], c=0)
    with pytest.raises(UserError, match=r"queries of shape \(220, 60\): the pool's 64 columns"):
        fit_smoothed(pool, [1, 2], [0, 1]).predict(pool[:, :60])
    bad = pool.clone()
    bad[17, 3] = torch.nan
    with pytest.raises(UserError, match="first in row 17"):
        fit_smoothed(bad, [1, 2], [0, 1])
    with pytest.raises(UserError, match="first in row 17"):
        fit_smoothed(pool, [1, 2], [0, 1]).predict(bad)


def test_c_is_chosen_where_labels_are_enough(monkeypatch):
    pool, labels, _, _ = digits()
    ids = torch.arange(0, POOL, 2)
    assert fit_smoothed(pool, labels[ids], ids, c=None).c == module.SMOOTH_C  # too few to be sure of another
    monkeypatch.setattr(module, "SURE_OF_C", len(ids) // 10)
    found = fit_smoothed(pool, labels[ids], ids, c=None)
    z = module.smooth(found.base.features, found.base.graph)[0][ids]
    assert found.c == choose_c(z, labels[ids]) != module.SMOOTH_C
    assert found.pool.equal(fit_smoothed(pool, labels[ids], ids, c=found.c).pool)


def test_ranks_learn_the_same(monkeypatch):
    pool, labels, queries, _ = digits()
    alone = fit_smoothed(pool, labels[LABELLED], LABELLED, c=None, correct=None)
    fit, fitted = module.fit_probe, []
    monkeypatch.setattr(module, "fit_probe", lambda *some: (fitted.append(1), fit(*some))[1])

    def run(world):
        found = fit_smoothed(pool, labels[LABELLED], LABELLED, c=None, correct=None, world=world)
        return found, found.predict(queries)

    for found, predicted in on_ranks(3, run):
        assert predicted.equal(alone.predict(queries))
        assert found.pool.equal(alone.pool)
        assert found.corrected.equal(alone.corrected)
        assert (found.choice, found.c, found.temperature) == (alone.choice, alone.c, alone.temperature)
    assert len(fitted) == 1  # the others take rank 0's


def test_both_are_public():
    assert data_selection.fit_smoothed is fit_smoothed
    assert data_selection.nearest_neighbours.__module__ == "data_selection.nearest.graph"


def test_held_out_answers_are_in_the_order_of_the_labels():
    pool, labels, _, _ = digits()
    ids = [int(i) for i in torch.randperm(POOL, generator=torch.Generator().manual_seed(0))[:60]]
    held = fit_smoothed(pool, labels[ids], ids, classes=10).held
    ascending = fit_smoothed(pool, labels[sorted(ids)], sorted(ids), classes=10).held
    for part, other in zip(held, ascending, strict=True):
        torch.testing.assert_close(part[torch.tensor(ids).argsort()], other)
