"""Judge a subset in seconds: k-NN and a linear probe on cached features, no finetuning."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

import torch

from data_selection.common.checks import as_tensor, check_finite, check_ids
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, labels_like
from data_selection.common.kinds import Ids
from data_selection.common.precision import full_float32
from data_selection.nearest.similarity import normalise, row_blocks

KNN_TEMPERATURE = 0.07  # DINO's k-NN evaluation weighs a neighbour by exp(similarity / 0.07)
# Inverse L2 strength of the probe on unit-length features in the published tables: fixed for every method and budget.
# From 250 labels on it is too high, and flatters what a plain probe is compared with (configs/README.md, "How the probe
# was set"): c=None chooses it on the labels.
PROBE_C = 100.0


class MeanSd(NamedTuple):
    """Mean and sample standard deviation (n - 1) of `size` values; sd is nan for one value."""

    mean: float
    sd: float
    size: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.sd:.2f}" if self.size > 1 else f"{self.mean:.2f}"


def mean_sd(values: Iterable[float]) -> MeanSd:
    """MeanSd of some numbers, one at least."""
    given = list(values)
    return MeanSd(statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else float("nan"), len(given))


@full_float32()
def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    k: int = 20,
) -> float:
    """Weighted k-nearest-neighbour accuracy in percent (0-100) by cosine similarity.

    train_features (N, D), test_features (M, D): float tensors, train_labels (N,), test_labels (M,): int64, 0 or more;
    each on any device, the work is done where train_features are. k: neighbours; of fewer than k training rows all are
    used. A neighbour's vote weighs exp(similarity / 0.07), as in DINO's evaluation; of equal votes the lowest class
    wins. Raises UserError for k below 1, labels that are unknown and features that are not finite.
    """
    if k < 1:
        raise UserError(f"k {k} must be at least 1: no neighbour has a vote otherwise")
    _check(train_features, train_labels, "training")
    _check(test_features, test_labels, "test")
    bank = normalise(train_features)
    present, place = train_labels.to(bank.device).unique(return_inverse=True)  # labels may be large and few
    correct, test_labels = 0, test_labels.to(bank.device)
    for start, stop in row_blocks(len(test_features), len(bank)):
        similarity = normalise(test_features[start:stop].to(bank.device)) @ bank.T  # (B, N)
        weight, neighbour = similarity.topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(stop - start, len(present), device=bank.device)
        weight = ((weight - 1) / KNN_TEMPERATURE).exp()
        for column in range(weight.shape[1]):  # one at a time: a GPU adds to the same place in any order
            some = slice(column, column + 1)
            votes.scatter_add_(1, place[neighbour[:, some]], weight[:, some])
        correct += int((present[votes.argmax(1)] == test_labels[start:stop]).sum())
    return 100 * correct / len(test_labels)


def probe_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    c: float | None = PROBE_C,
) -> float:
    """Accuracy in percent (0-100) of a multinomial logistic regression on unit-length features.

    train_features (N, D), test_features (M, D): float tensors. train_labels (N,), test_labels (M,): int64, 0 or more.
    c: inverse strength of the L2 penalty, the probe being scikit-learn's L-BFGS in float32, as in the published tables;
    None: chosen by cross-validation on the training labels where there are enough (probe.choose_c), else the default,
    solved in float64. Deterministic. Raises UserError where all training labels are of one class or unknown,
    c is not above 0, or features are not finite.
    """
    if c is not None and not 0 < c < float("inf"):
        raise UserError(f"c {c} must be above 0 and finite: 100 is that of the published tables")
    _check(train_features, train_labels, "training")
    _check(test_features, test_labels, "test")
    if train_labels.min() == train_labels.max():
        raise UserError(
            f"the subset's {len(train_labels)} images are all of class {train_labels[0]}: a probe needs two"
        )
    units, labels, asked = normalise(train_features), train_labels.to(train_features.device), normalise(test_features)
    if c is None:
        from data_selection.judging.probe import choose_c, fit_probe  # scipy: slow to import, and only needed here

        present, place = labels.unique(return_inverse=True)
        probe = fit_probe(units, place, len(present), choose_c(units, place, default=PROBE_C))
        predicted = present[probe.predict(asked).argmax(1)]
    else:
        from sklearn.linear_model import LogisticRegression

        solver = LogisticRegression(C=c, max_iter=2000, tol=1e-4).fit(units.cpu().numpy(), labels.cpu().numpy())
        predicted = torch.from_numpy(solver.predict(asked.cpu().numpy()))
    return 100 * (predicted.cpu() == test_labels.cpu()).double().mean().item()


def judge_subset(
    ids: Ids, train: FeatureTable, test: FeatureTable, *, k: int = 20, c: float | None = PROBE_C
) -> tuple[float, float]:
    """(k-NN accuracy, linear-probe accuracy) in percent on `test` when only the chosen images of `train` have labels.

    ids: pool indices into train. train, test: with labels; where both know their classes' names, these are compared,
    not the numbers. c: of the probe, None: chosen on the labels. Raises UserError where labels are missing, or test has
    a class that train lacks.
    """
    if train.labels is None or test.labels is None:
        missing = train if train.labels is None else test
        raise UserError(f"feature file {missing.path} has no labels: accuracy can't be judged without them")
    ids = check_ids(ids, len(train), "subset")
    chosen = as_tensor(train.features[ids.numpy()]).float()
    test_labels = torch.from_numpy(labels_like(test, train))
    arguments = (chosen, torch.from_numpy(train.labels)[ids], test.tensor(), test_labels)
    return knn_accuracy(*arguments, k=k), probe_accuracy(*arguments, c=c)


def _check(features: torch.Tensor, labels: torch.Tensor, what: str) -> None:
    check_finite(features)
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{what} labels must be 0 or more and not empty: {int((labels < 0).sum())} are unknown")
