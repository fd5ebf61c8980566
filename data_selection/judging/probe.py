"""A linear classifier from few labels, its strength chosen on the labels alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from data_selection.common.errors import UserError
from data_selection.judging.calibration import log_loss
from data_selection.judging.logistic import TOLERANCE, logistic_path

SMOOTH_C = 30.0  # inverse L2 strength on smoothed features
GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FOLDS = 5
COARSE = 1e-3  # tolerance of fits that are only compared with each other: a third of the time, hits within 3 of 1,000
ENOUGH = 2  # labels a class, on average: with fewer, folds would lack whole classes


@dataclass(frozen=True)
class Probe:
    """A linear classifier: weight (P, D) and bias (P,) float64 of the P classes that had labels, of `classes` in all.

    present: (P,) int64, their numbers, ascending.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    present: torch.Tensor
    classes: int

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Probabilities (Q, classes) float32 of features (Q, D), on their device; 0 for classes without a label."""
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        result = torch.zeros(len(features), self.classes, device=features.device)
        step = max(1, (1 << 22) // (features.shape[1] + self.classes))  # rows whose float64 copy fits 32 MB
        for rows, part in zip(features.split(step), result.split(step), strict=False):
            part[:, self.present.to(features.device)] = (rows.double() @ weight.T + bias).softmax(1).float()
        return result


def fit_path(
    features: torch.Tensor, labels: torch.Tensor, classes: int, grid: Sequence[float], tolerance: float = TOLERANCE
) -> list[Probe]:
    """Multinomial logistic regression of labels (n,) int64 on features (n, D), a Probe for each C of the grid.

    Penalty |weight|^2 / (2 C), float64, deterministic (logistic.py). Two classes are scikit-learn's binary model, which
    counts one weight for both; one class is always predicted. Raises UserError where there is no label, or one outside
    0..classes-1, or a C is not above 0.
    """
    for c in grid:
        if not c > 0:
            raise UserError(f"c {c} must be above 0")
    if len(labels) == 0:
        raise UserError("a probe needs at least one label, there is none")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels {int(labels.min())}..{int(labels.max())} are outside 0..{classes - 1}: mend them")
    present, place = labels.cpu().unique(return_inverse=True)
    if len(present) == 1:
        alone = Probe(torch.zeros(1, features.shape[1]).double(), torch.zeros(1).double(), present, classes)
        return [alone for _ in grid]
    share = 2 if len(present) == 2 else 1
    path = logistic_path(features, one_hot(place, len(present)), [c / share for c in grid], tolerance)
    return [Probe(weight.cpu(), bias.cpu(), present, classes) for weight, bias in path]


def fit_probe(features: torch.Tensor, labels: torch.Tensor, classes: int, c: float) -> Probe:
    """The Probe of a single C; see fit_path."""
    return fit_path(features, labels, classes, [c])[0]


def folds(labels: torch.Tensor, count: int = FOLDS) -> torch.Tensor:
    """Which of `count` folds each label (n,) is in, (n,) int64 on the CPU: every class evenly over all, in turn."""
    fold = torch.empty(len(labels), dtype=torch.int64)
    fold[labels.cpu().argsort(stable=True)] = torch.arange(len(labels)) % count
    return fold


def held_out(features: torch.Tensor, labels: torch.Tensor, classes: int, c: float) -> torch.Tensor:
    """Probabilities (n, classes) of each row by a probe on the other folds; features (n, D), labels (n,) int64, n > 1.

    A row whose class has no other label gets 0 for it.
    """
    return held_out_path(features, labels, classes, [c])[0]


def held_out_path(
    features: torch.Tensor, labels: torch.Tensor, classes: int, grid: Sequence[float], tolerance: float = TOLERANCE
) -> list[torch.Tensor]:
    """held_out for each C of a grid."""
    fold = folds(labels, min(FOLDS, len(labels))).to(labels.device)
    results = [torch.zeros(len(labels), classes, device=features.device) for _ in grid]
    for part in fold.unique():
        rest = fold != part
        for result, probe in zip(
            results, fit_path(features[rest], labels[rest], classes, grid, tolerance), strict=True
        ):
            result[~rest] = probe.predict(features[~rest])
    return results


def enough_to_ask(labels: torch.Tensor, each: int = ENOUGH) -> bool:
    """Whether labels (n,) can be held out in turn: of two classes at least, `each` of each on average."""
    classes = len(labels.unique())
    return classes > 1 and len(labels) >= each * classes


def choose_c(
    features: torch.Tensor,
    labels: torch.Tensor,
    grid: Iterable[float] = GRID,
    default: float = SMOOTH_C,
    each: int = ENOUGH,
) -> float:
    """The c of a grid with the best 5-fold cross-validated accuracy; of equals, the least log loss, then the lowest c.

    features: (n, D); labels: (n,) int64. default is returned for less than `each` labels a class on average, or one
    class. A class with a single label is wrong for every c, and decides nothing. Deterministic.
    """
    if not enough_to_ask(labels, each):
        return default
    strengths = sorted(grid)
    scores = []
    path = held_out_path(features, labels, int(labels.max()) + 1, strengths, COARSE)
    for c, predicted in zip(strengths, path, strict=True):
        hits = int((predicted.argmax(1) == labels).sum())
        scores.append((-hits, log_loss(predicted, labels), c))
    return min(scores)[2]
