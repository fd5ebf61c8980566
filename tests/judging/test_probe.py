"""The linear probe against scikit-learn, and its strength chosen on the labels alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from data_selection.judging import logistic
from data_selection.judging import probe as module
from data_selection.judging.probe import GRID, Probe, choose_c, fit_path, fit_probe, folds, held_out, held_out_path
from tests.support import oracles_graph as oracle

pytestmark = pytest.mark.usefixtures("one_thread")


def digits(count):
    data = load_digits()
    return torch.tensor(oracle.unit(data.data[:count])), torch.tensor(data.target[:count])


@pytest.mark.parametrize("count", [40, 400])
def test_the_path_is_scikit_learns(count):
    features, labels = digits(count)
    for c, probe in zip(GRID, fit_path(features, labels, 10, GRID), strict=True):
        model = LogisticRegression(C=c, tol=1e-9, max_iter=20000).fit(features, labels)
        np.testing.assert_allclose(probe.predict(features), model.predict_proba(features), atol=1e-3)
        np.testing.assert_allclose(probe.weight, model.coef_, atol=2e-2 * abs(model.coef_).max())
        np.testing.assert_allclose(
            fit_probe(features, labels, 10, c).predict(features), probe.predict(features), atol=1e-3
        )


def test_the_grid_may_be_in_any_order():
    features, labels = digits(60)
    up, down = fit_path(features, labels, 10, [1, 30, 30]), fit_path(features, labels, 10, [30, 1])
    assert up[0].weight.equal(down[1].weight)
    assert up[1].weight.equal(down[0].weight)
    assert up[1].weight.equal(up[2].weight)


def test_a_probe_predicts_in_blocks(monkeypatch):
    probe = Probe(torch.randn(2, 3000).double(), torch.randn(2).double(), torch.tensor([1, 4]), 6)
    rows = torch.randn(3000, 3000)
    expected = (rows.double() @ probe.weight.T + probe.bias).softmax(1)
    np.testing.assert_allclose(probe.predict(rows)[:, [1, 4]], expected, atol=1e-6)


@pytest.mark.parametrize("sizes", [[1], [7], [2, 2], [20, 3, 1, 11], [5] * 10])
def test_every_class_is_spread_over_the_folds(sizes):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    fold = folds(labels)
    for kind, size in enumerate(sizes):
        counts = torch.bincount(fold[labels == kind], minlength=5)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
    whole = torch.bincount(fold, minlength=5)
    assert whole.max() - whole.min() <= 1


def test_held_out_rows_are_not_learned_from():
    rows, known = digits(100)
    found, also = held_out(rows, known, 10, 10.0), held_out_path(rows, known, 10, [3.0, 10.0])[1]
    np.testing.assert_allclose(found, also, atol=1e-3)
    fold = folds(known)
    for part in range(5):
        model = LogisticRegression(C=10.0, tol=1e-9, max_iter=10000).fit(rows[fold != part], known[fold != part])
        np.testing.assert_allclose(found[fold == part], model.predict_proba(rows[fold == part]), atol=1e-3)
    alone = torch.cat([known, torch.tensor([11])])
    assert held_out(torch.cat([rows, rows[:1]]), alone, 12, 10.0)[-1, 11] == 0


def test_the_coarse_path_that_c_is_chosen_by_says_what_the_exact_one_says():
    rows, known = digits(100)
    exact, coarse = (held_out_path(rows, known, 10, GRID, *how) for how in ((), (module.COARSE,)))
    assert any(not torch.equal(one, other) for one, other in zip(exact, coarse, strict=True))
    for one, other in zip(exact, coarse, strict=True):
        assert (one.argmax(1) != other.argmax(1)).sum() <= 1
        np.testing.assert_allclose(one, other, atol=0.02)


def test_c_is_chosen_by_accuracy_then_log_loss_then_the_lowest(monkeypatch):
    labels = torch.tensor([0, 0, 1, 1])
    sure, right, wrong = (torch.tensor([[p, 1 - p], [p, 1 - p], [1 - q, q], [1 - q, q]]) for p, q in
                          ((0.9, 0.9), (0.6, 0.6), (0.99, 0.4)))  # fmt: skip
    for answers, best in (
        ({1: wrong, 3: right, 10: wrong}, 3),
        ({1: right, 3: sure, 10: right}, 3),
        ({10: sure, 3: sure, 1: right}, 3),
    ):
        monkeypatch.setattr(
            module, "held_out_path", lambda x, y, classes, grid, *_, answers=answers: [answers[c] for c in grid]
        )
        assert choose_c(torch.zeros(4, 2), labels, grid=answers) == best


@pytest.mark.parametrize("labels", [[3], [3, 3, 3], [1, 1, 2, 2, 3]])
def test_c_is_the_default_where_folds_would_lack_classes(labels):
    assert choose_c(torch.randn(len(labels), 3), torch.tensor(labels), default=7.0) == 7.0


def test_a_class_with_one_label_decides_nothing():
    features, labels = digits(120)
    alone = torch.cat([labels, torch.tensor([11])])
    assert choose_c(torch.cat([features, features[:1] * 0]), alone, default=7.0) == choose_c(features, labels)


@pytest.mark.parametrize(("limit", "threads"), [(20 * 3, 1), (20 * 3 - 1, 2)])
def test_small_problems_are_solved_on_one_thread(monkeypatch, limit, threads):
    found, before = [], torch.get_num_threads()
    monkeypatch.setattr(logistic, "SMALL", limit)
    monkeypatch.setattr(logistic, "path_of", lambda *_: found.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        logistic.logistic_path(torch.zeros(20, 3), torch.zeros(20, 2), [1.0])
        found.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert found == [threads, 2]
