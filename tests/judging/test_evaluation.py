"""k-NN against a plain loop, the probe against what it must be able to do, on real images."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable
from data_selection.judging import evaluation
from data_selection.judging.evaluation import PROBE_C, judge_subset, knn_accuracy, mean_sd, probe_accuracy
from data_selection.judging.probe import choose_c, fit_probe
from data_selection.nearest.similarity import normalise


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    features, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


def plain_knn(train, train_labels, test, test_labels, k):
    """The textbook: every distance, a full sort, a vote per image."""
    hits = 0
    train = train / train.norm(dim=1, keepdim=True)
    for image, label in zip(test / test.norm(dim=1, keepdim=True), test_labels.tolist(), strict=True):
        similarity = (train @ image).tolist()
        votes = [0.0] * 10
        for i in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
            votes[train_labels[i]] += math.exp(similarity[i] / 0.07)
        hits += votes.index(max(votes)) == label
    return 100 * hits / len(test)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_matches_the_plain_loop(digits, k):
    train, train_labels, test, test_labels = digits
    arguments = (train[:300], train_labels[:300], test[:100], test_labels[:100])
    assert knn_accuracy(*arguments, k=k) == pytest.approx(plain_knn(*arguments, k=k))


def test_knn_takes_all_rows_where_fewer_than_k(digits):
    train, train_labels, test, test_labels = digits
    arguments = (train[:7], train_labels[:7], test, test_labels)
    assert knn_accuracy(*arguments, k=20) == knn_accuracy(*arguments, k=7)


def test_labels_may_be_large_and_far_apart(digits):
    small = [part[:200] for part in digits]
    large = [part if part.is_floating_point() else part * 1_000_000_000 for part in small]
    assert knn_accuracy(*large) == knn_accuracy(*small)
    assert probe_accuracy(*large, c=None) == probe_accuracy(*small, c=None)


def test_probe_learns_digits_and_ignores_scale(digits):
    train, train_labels, test, test_labels = digits
    accuracy = probe_accuracy(*digits)
    assert accuracy > 90
    assert probe_accuracy(train * 7, train_labels, test, test_labels) == pytest.approx(accuracy, abs=0.2)
    wrong = torch.roll(train_labels, 1)
    assert probe_accuracy(train, wrong, test, test_labels) < 50  # it reads the labels it is given


def test_probe_takes_the_c_that_the_labels_choose(digits):
    train, train_labels, test, test_labels = digits
    few = (train[:60], train_labels[:60], test, test_labels)
    units = normalise(train[:60])
    chosen = choose_c(units, train_labels[:60])
    assert chosen != PROBE_C
    right = fit_probe(units, train_labels[:60], 10, chosen).predict(normalise(test)).argmax(1) == test_labels
    assert probe_accuracy(*few, c=None) == 100 * right.double().mean().item() != probe_accuracy(*few)
    single = (train[:2], train_labels[:2], test, test_labels)
    assert probe_accuracy(*single, c=None) == pytest.approx(probe_accuracy(*single), abs=0.2)
    tables = [FeatureTable(np.asarray(f), np.asarray(y)) for f, y in (digits[:2], digits[2:])]
    assert judge_subset(range(60), *tables, c=None)[1] == probe_accuracy(*few, c=None)


def test_probe_needs_two_classes(digits):
    train, train_labels, test, test_labels = digits
    one = train_labels == 3
    with pytest.raises(UserError, match="all of class 3"):
        probe_accuracy(train[one], train_labels[one], test, test_labels)


@pytest.mark.parametrize(
    ("judge", "setting", "told"),
    [
        (knn_accuracy, {"k": 0}, "k 0 must be at least 1"),
        (probe_accuracy, {"c": 0}, "c 0 must be above 0"),
        (probe_accuracy, {"c": float("inf")}, "c inf must be above 0 and finite"),
        (knn_accuracy, {}, "first in row 7"),
        (probe_accuracy, {}, "first in row 7"),
    ],
)
def test_what_no_accuracy_can_be_told_of_is_refused(digits, judge, setting, told):
    train, train_labels, test, test_labels = digits
    if not setting:
        test = test.clone()
        test[7, 3] = torch.nan
    with pytest.raises(UserError, match=told):
        judge(train[:60], train_labels[:60], test, test_labels, **setting)


def test_unknown_labels_are_refused(digits):
    train, _, test, test_labels = digits
    with pytest.raises(UserError, match=r"training labels .* 1200 are unknown"):
        knn_accuracy(train, torch.full((1200,), -1), test, test_labels)


def test_judge_subset_sees_only_the_chosen_labels(digits):
    train, train_labels, test, test_labels = digits
    poisoned = train_labels.clone()
    ids = torch.arange(0, 1200, 4)
    rest = torch.ones(1200, dtype=torch.bool)
    rest[ids] = False
    poisoned[rest] = 0
    tables = [FeatureTable(np.asarray(f), np.asarray(y)) for f, y in ((train, poisoned), (test, test_labels))]
    knn, probe = judge_subset(ids, *tables, k=5)
    expected = (train[ids], train_labels[ids], test, test_labels)
    assert (knn, probe) == (knn_accuracy(*expected, k=5), probe_accuracy(*expected))


def test_judge_subset_refuses_tables_without_labels(digits):
    table = FeatureTable(np.asarray(digits[0]))
    with pytest.raises(UserError, match="no labels"):
        judge_subset([0], table, table)


def test_mean_sd_uses_n_minus_1():
    assert str(mean_sd([1.0, 2.0, 3.0])) == "2.00 ± 1.00"
    assert str(mean_sd([4.0])) == "4.00"


def test_judge_subset_compares_classes_by_name(digits):
    """Another numbering of the same names is the same; without names it would be another result."""
    train, train_labels, test, test_labels = (np.asarray(part) for part in digits)
    names = tuple("abcdefghij")
    tables = FeatureTable(train, train_labels, class_names=names), FeatureTable(test, test_labels, class_names=names)
    turned = FeatureTable(test, 9 - test_labels, class_names=names[::-1])
    ids = range(0, 1200, 4)
    assert judge_subset(ids, tables[0], turned) == judge_subset(ids, *tables)
    with pytest.raises(UserError, match="has images of z, 1 classes that"):
        judge_subset(ids, tables[0], FeatureTable(test, test_labels, class_names=("z", *names[1:])))


def test_knn_in_blocks_is_the_same(digits, monkeypatch):
    train, train_labels, test, test_labels = digits
    arguments = (train[:90], train_labels[:90], test[:50], test_labels[:50])
    whole = knn_accuracy(*arguments)
    monkeypatch.setattr(evaluation, "row_blocks", lambda n, width: [(at, min(n, at + 7)) for at in range(0, n, 7)])
    assert knn_accuracy(*arguments) == whole > 40
