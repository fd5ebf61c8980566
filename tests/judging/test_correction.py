"""Correction by the neighbours, calibration and the stored graph, in the smoothed probe."""

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable
from data_selection.judging.calibration import at_temperature, temperature
from data_selection.judging.correction import HeldOut, choose_correction, unevenness
from data_selection.judging.probe import folds, held_out
from data_selection.judging.smoothed import fit_smoothed
from data_selection.nearest.stored_graph import pool_graph
from tests.support import oracles_graph as oracle

pytestmark = pytest.mark.usefixtures("one_thread")
POOL, LABELLED = 150, list(range(0, 150, 3))


@functools.cache
def digits():
    """(pool, its labels, queries, their labels)."""
    data = load_digits()
    features, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    return features[:POOL], labels[:POOL], features[POOL : POOL + 100], labels[POOL : POOL + 100]


@functools.cache
def fitted():
    pool, labels, _, _ = digits()
    return fit_smoothed(pool, labels[LABELLED], LABELLED, classes=10, correct=None)


def test_held_out_predictions_match_the_dense_version():
    pool, labels, _, _ = digits()
    known, held = labels[LABELLED], fitted().held
    z, centred = fitted().base.features, oracle.centred(pool, pool)
    np.testing.assert_allclose(z, centred, atol=1e-5)
    smoothed = oracle.unit(oracle.smoothed(centred, 10, 2)[-1])
    matrix, _ = oracle.average(centred, 15)
    fold = folds(known)
    for part in (0, 3):
        rest = [i for i, f in zip(LABELLED, fold, strict=True) if f != part]
        own = oracle.logistic(smoothed[rest], labels[rest].tolist(), 10, 30.0, smoothed)
        spread = oracle.spread(own, matrix, labels[rest].tolist(), rest)
        left = [i for i, f in zip(LABELLED, fold, strict=True) if f == part]
        np.testing.assert_allclose(held.plain[fold == part], own[left], atol=1e-3)
        np.testing.assert_allclose(held.corrected[fold == part], own[left] / 2 + (matrix @ spread)[left] / 2, atol=1e-3)


def test_predictions_are_calibrated_by_what_was_held_out():
    found, (_, labels, queries, _) = fitted(), digits()
    known = labels[LABELLED]
    assert found.temperature == temperature(found.held.plain, known) != 1
    assert found.corrected_temperature == temperature(found.held.corrected, known) != found.temperature
    for way, heat in ((False, found.temperature), (True, found.corrected_temperature)):
        raw = found.predict(queries, corrected=way, calibrated=False)
        assert found.predict(queries, corrected=way).equal(at_temperature(raw, heat))
    assert found.choice.corrected
    assert found.predict(queries).equal(found.predict(queries, corrected=True))
    assert found.pool_probabilities().equal(at_temperature(found.corrected, found.corrected_temperature))
    raw = fit_smoothed(digits()[0], known, LABELLED, classes=10, calibrate=False)
    assert (raw.temperature, raw.corrected_temperature, raw.held) == (1, 1, None)
    assert raw.pool.equal(found.pool)
    assert raw.predict(queries).equal(found.predict(queries, corrected=False, calibrated=False))


def test_uncorrected_probes_are_calibrated_too():
    pool, labels, queries, _ = digits()
    found = fit_smoothed(pool, labels[LABELLED], LABELLED, classes=10, correct=False)
    np.testing.assert_allclose(found.predict(queries), fitted().predict(queries, corrected=False), atol=1e-5)
    assert found.held.plain.allclose(held_out_of(found, labels[LABELLED]), atol=1e-3)


def test_pool_probabilities_that_are_not_corrected_are_calibrated():
    pool, labels, _, _ = digits()
    found = fit_smoothed(pool, labels[LABELLED], LABELLED, classes=10, correct=False)
    assert found.temperature != 1
    assert found.pool_probabilities().equal(at_temperature(found.pool, found.temperature))


def held_out_of(found, known):
    from data_selection.nearest.graph import smooth

    return held_out(smooth(found.base.features, found.base.graph)[0][LABELLED], known, 10, found.c)


@pytest.mark.parametrize("sizes", [[10] * 8, [7, 13, 9, 11], [1] * 30, [3]])
def test_even_classes(sizes):
    assert unevenness(labels_of(sizes)) < 0.2
    assert choose_correction(labels_of(sizes), None).corrected


def labels_of(sizes):
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def test_a_long_tail_is_uneven():
    sizes = [int(100 * 50 ** (-i / 9)) for i in range(10)]
    assert unevenness(labels_of(sizes)) == pytest.approx(1.19, abs=0.05)  # of the law itself
    choice = choose_correction(labels_of(sizes), None)
    assert not choice.corrected
    assert "classes are uneven (1.2" in choice.reason


def test_numbers_without_a_label_are_no_classes():
    assert unevenness(3 * labels_of([10] * 8)) == unevenness(labels_of([10] * 8))


def test_the_labels_decide_without_calibration_too():
    pool, labels, _, _ = digits()
    found = fit_smoothed(pool, labels[LABELLED], LABELLED, classes=10, correct=None, calibrate=False)
    assert found.choice == fitted().choice
    assert (found.temperature, found.corrected_temperature) == (1, 1)


def test_chance_is_no_unevenness():
    generator = torch.Generator().manual_seed(0)
    draws = [unevenness(torch.randint(10, (50,), generator=generator)) for _ in range(400)]
    assert abs(sum(draws) / len(draws)) < 0.02
    assert sum(value > 0.25 for value in draws) < 8


@pytest.mark.parametrize(("lost", "corrected"), [(2, True), (6, False)])
def test_cross_validation_can_object(lost, corrected):
    labels = torch.arange(4).repeat(10)
    right = torch.eye(4)[labels]
    wrong = right.clone()
    wrong[:lost] = right[:lost].roll(1, 1)
    choice = choose_correction(labels, HeldOut(right, wrong))
    assert choice.corrected == corrected
    assert f"40 right without, {40 - lost} with" in choice.reason


def test_unlike_classes_are_not_corrected_unless_asked_for():
    pool, labels, queries, _ = digits()
    ids = [i for i in range(POOL) if labels[i] < 2 or i % 17 == 0]
    found = fit_smoothed(pool, labels[ids], ids, classes=10, correct=None)
    assert "uneven" in found.choice.reason
    assert found.predict(queries).equal(found.predict(queries, corrected=False))


def test_a_stored_graph_gives_the_same():
    pool, labels, queries, _ = digits()
    graph = pool_graph(FeatureTable(pool.numpy()), 15)
    found = fit_smoothed(pool.numpy(), labels[LABELLED], LABELLED, classes=10, correct=None, graph=graph)
    assert found.pool.equal(fitted().pool)
    assert found.predict(queries).equal(fitted().predict(queries))


def test_graphs_that_do_not_fit_are_refused():
    pool, labels, _, _ = digits()
    graph = pool_graph(FeatureTable(pool.numpy()), 10)
    with pytest.raises(UserError, match="a graph of 10 neighbours a row, 15 are needed"):
        fit_smoothed(pool, labels[LABELLED], LABELLED, graph=graph)
    with pytest.raises(UserError, match="of 150 other rows than the pool's 150"):
        fit_smoothed(pool + 1, labels[LABELLED], LABELLED, correct=False, graph=graph)
    with pytest.raises(UserError, match="of 150 other rows than the pool's 149"):
        fit_smoothed(pool[:-1], labels[LABELLED[:-1]], LABELLED[:-1], correct=False, graph=graph)
