"""Judge a subset in seconds: k-NN and a linear probe on cached features, no finetuning."""

import statistics
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression

from data_selection.common.checks import check_ids
from data_selection.common.errors import UserError
from data_selection.nearest.similarity import normalise, row_blocks

KNN_TEMPERATURE = 0.07  # DINO's k-NN evaluation weighs a neighbour by exp(similarity / 0.07)
# Inverse L2 strength of the probe on unit-length features. Fixed for every method and budget, so that a comparison
# cannot be tuned; configs/README.md, "How the probe was set", gives the accuracy at other values.
PROBE_C = 100.0


class MeanSd(NamedTuple):
    """Mean and sample standard deviation (n - 1) of `count` values; sd is nan for one value."""

    mean: float
    sd: float
    count: int

    def __str__(self):
        return f"{self.mean:.2f} ± {self.sd:.2f}" if self.count > 1 else f"{self.mean:.2f}"


def mean_sd(values):
    """MeanSd of a list of numbers."""
    values = list(values)
    return MeanSd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan"), len(values))


def knn_accuracy(train_features, train_labels, test_features, test_labels, *, k=20):
    """Weighted k-nearest-neighbour accuracy in percent (0-100) by cosine similarity.

    train_features (N, D), test_features (M, D): float tensors on one device. train_labels (N,), test_labels (M,):
    int64, 0 or more. k: neighbours; of fewer than k training rows all are used. A neighbour's vote weighs
    exp(similarity / 0.07), as in DINO's evaluation; of equal votes the lowest class wins.
    """
    _check_labels(train_labels, "training")
    _check_labels(test_labels, "test")
    bank = normalise(train_features)
    classes = int(train_labels.max()) + 1
    correct = 0
    for start, stop in row_blocks(len(test_features), len(bank)):
        similarity = normalise(test_features[start:stop]) @ bank.T  # (B, N)
        weight, neighbour = similarity.topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(stop - start, classes, device=bank.device)
        votes.scatter_add_(1, train_labels[neighbour], ((weight - 1) / KNN_TEMPERATURE).exp())
        correct += (votes.argmax(1) == test_labels[start:stop]).sum().item()
    return 100 * correct / len(test_labels)


def probe_accuracy(train_features, train_labels, test_features, test_labels, *, c=PROBE_C):
    """Accuracy in percent (0-100) of a multinomial logistic regression on unit-length features (scikit-learn, L-BFGS).

    train_features (N, D), test_features (M, D): float tensors. train_labels (N,), test_labels (M,): int64, 0 or more.
    c: inverse strength of the L2 penalty. Deterministic. Raises UserError where all training labels are of one class.
    """
    _check_labels(train_labels, "training")
    _check_labels(test_labels, "test")
    if train_labels.min() == train_labels.max():
        raise UserError(
            f"the subset's {len(train_labels)} images are all of class {train_labels[0]}: a probe needs two"
        )
    probe = LogisticRegression(C=c, max_iter=2000, tol=1e-4)
    probe.fit(normalise(train_features).cpu().numpy(), train_labels.cpu().numpy())
    predicted = torch.from_numpy(probe.predict(normalise(test_features).cpu().numpy()))
    return 100 * (predicted == test_labels.cpu()).double().mean().item()


def judge_subset(ids, train, test, *, k=20):
    """(k-NN accuracy, linear-probe accuracy) in percent on `test` when only the chosen images of `train` have labels.

    ids: pool indices into train. train, test: FeatureTables with labels.
    """
    if train.labels is None or test.labels is None:
        missing = train if train.labels is None else test
        raise UserError(f"feature file {missing.path} has no labels: accuracy can't be judged without them")
    ids = check_ids(ids, len(train), "subset")
    chosen = torch.as_tensor(train.features[ids.numpy()], dtype=torch.float32)
    arguments = (chosen, torch.from_numpy(train.labels)[ids], test.tensor(), torch.from_numpy(test.labels))
    return knn_accuracy(*arguments, k=k), probe_accuracy(*arguments)


def _check_labels(labels, what):
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{what} labels must be 0 or more and not empty: {int((labels < 0).sum())} are unknown")
