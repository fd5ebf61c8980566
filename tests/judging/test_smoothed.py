"""The probe on smoothed features against full matrices and scikit-learn, on real images."""

import functools
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import data_selection
from data_selection.common import distributed
from data_selection.common.errors import UserError
from data_selection.judging import smoothed as module
from data_selection.judging.smoothed import (
    Probe,
    at_temperature,
    choose_c,
    fit_probe,
    fit_smoothed,
    folds,
    held_out,
    log_loss,
    temperature,
)
from tests.support import oracles_graph as oracle

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
    results = (found.pool, found.corrected, found.predict(queries), found.predict(queries, corrected=True))
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
    assert not found.features.any()  # about their mean nothing is left, nobody has a neighbour
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
    monkeypatch.setattr(module, "choose_c", lambda features, known: (seen.append(known), 1.0)[1])  # its folds go by it
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
    with pytest.raises(UserError, match=r"labels -1..2 are outside 0..2"):
        fit_smoothed(pool, [-1, 2], [0, 1])
    with pytest.raises(UserError, match=r"labels 1..5 are outside 0..4"):
        fit_smoothed(pool, [1, 5], [0, 1], classes=5)
    with pytest.raises(UserError, match="id 220 is outside"):
        fit_smoothed(pool, [1, 2], [0, 220])
    with pytest.raises(UserError, match="k 0 and steps 2"):
        fit_smoothed(pool, [1, 2], [0, 1], k=0)
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
    pool, labels, _, _ = digits()
    rows, known = torch.tensor(oracle.unit(pool[:100])), labels[:100]
    found = held_out(rows, known, 10, 10.0)
    fold = folds(known)
    for part in range(5):
        model = LogisticRegression(C=10.0, tol=1e-9, max_iter=10000).fit(rows[fold != part], known[fold != part])
        np.testing.assert_allclose(found[fold == part], model.predict_proba(rows[fold == part]), atol=1e-3)
    alone = torch.cat([known, torch.tensor([11])])
    assert held_out(torch.cat([rows, rows[:1]]), alone, 12, 10.0)[-1, 11] == 0


def test_c_is_chosen_by_accuracy_then_log_loss_then_the_lowest(monkeypatch):
    labels = torch.tensor([0, 0, 1, 1])
    sure, right, wrong = (torch.tensor([[p, 1 - p], [p, 1 - p], [1 - q, q], [1 - q, q]]) for p, q in
                          ((0.9, 0.9), (0.6, 0.6), (0.99, 0.4)))  # fmt: skip
    for answers, best in (
        ({1: wrong, 3: right, 10: wrong}, 3),
        ({1: right, 3: sure, 10: right}, 3),
        ({10: sure, 3: sure, 1: right}, 3),
    ):
        monkeypatch.setattr(module, "held_out", lambda x, y, classes, c, answers=answers: answers[c])
        assert choose_c(torch.zeros(4, 2), labels, grid=answers) == best


@pytest.mark.parametrize("labels", [[3], [3, 3, 3], [1, 1, 2, 2, 3]])
def test_c_is_the_default_where_a_fold_would_lack_a_class(labels):
    assert choose_c(torch.randn(len(labels), 3), torch.tensor(labels), default=7.0) == 7.0


def test_a_chosen_c_is_used():
    pool, labels, _, _ = digits()
    ids = torch.arange(0, POOL, 2)
    found = fit_smoothed(pool, labels[ids], ids, c=None)
    z = module.smooth(found.features, found.graph)[0][ids]
    assert found.c == choose_c(z, labels[ids]) != module.SMOOTH_C
    assert found.pool.equal(fit_smoothed(pool, labels[ids], ids, c=found.c).pool)


@pytest.mark.parametrize("true", [0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0])
def test_the_temperature_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator) * 2
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator)[:, 0]
    probabilities = logits.softmax(1)
    found = temperature(probabilities, labels)
    assert found == true
    cooled = at_temperature(probabilities, found)
    np.testing.assert_allclose(cooled, (logits / true).softmax(1), atol=1e-5)
    losses = [log_loss(at_temperature(probabilities, value), labels) for value in module.TEMPERATURES]
    assert log_loss(cooled, labels) == min(losses)


def test_temperature_of_labels_that_say_nothing():
    certain = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert temperature(certain, torch.tensor([1, 1])) == 1  # any is as good
    assert temperature(certain, torch.tensor([0, 0])) == 1  # none can help
    mixed = torch.tensor([[0.6, 0.4, 0.0]] * 9 + [[0.9, 0.1, 0.0]])
    labels = torch.tensor([0] * 9 + [2])  # the class of the last was not seen
    assert temperature(mixed, labels) == temperature(mixed[:9], labels[:9]) == 0.25
    assert at_temperature(mixed, 5.0)[:, 2].tolist() == [0] * 10


def one_rank(rank, size, port, out):
    import os

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    pool, labels, queries, _ = digits()
    with distributed.start("cpu") as world:
        if rank:  # the others must take rank 0's probe
            module.fit_probe = None
        found = fit_smoothed(pool, labels[LABELLED], LABELLED, c=None, world=world)
        torch.save([found.pool, found.corrected, found.predict(queries, corrected=True)], f"{out}/{rank}.pt")


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_learn_the_same(size, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, (size, port, str(tmp_path)), nprocs=size)
    pool, labels, queries, _ = digits()
    found = fit_smoothed(pool, labels[LABELLED], LABELLED, c=None)
    alone = [found.pool, found.corrected, found.predict(queries, corrected=True)]
    for rank in range(size):
        assert all(map(torch.equal, alone, torch.load(tmp_path / f"{rank}.pt", weights_only=True)))


def test_both_are_public():
    assert data_selection.fit_smoothed is fit_smoothed
    assert data_selection.nearest_neighbours.__module__ == "data_selection.nearest.graph"
