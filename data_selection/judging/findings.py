"""What a list of labels and held-out predictions of them say: accuracy, confusions, mistakes, what more would bring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from data_selection.judging.probe import folds

Z = 1.959964  # standard deviations on either side of the mean that hold 95 % of a normal distribution
SHARES = (0.25, 0.5, 0.75, 1.0)  # of a fold's training labels
REPEATS = 4
RATES = np.linspace(0.15, 1.0, 18)  # exponents of the fall of the error
DRAWS = 400


class Share(NamedTuple):
    """A share in percent with its 95 % interval."""

    value: float
    low: float
    high: float


def interval(right: int, count: int) -> Share:
    """The Share that `right` of `count` trials show, with Wilson's interval; count 0: 0 to 100."""
    if count == 0:
        return Share(float("nan"), 0.0, 100.0)
    share, spread = right / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return Share(100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def confusion(labels: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """(classes, classes) int64: in row i, column j the images labelled i that were predicted j."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


class Point(NamedTuple):
    """Accuracy in percent at a number of labels, with a 95 % interval; seen: measured, or else extrapolated."""

    labels: int
    accuracy: float
    low: float
    high: float
    seen: bool


@dataclass(frozen=True)
class Curve:
    """A learning curve. points: by number of labels, the measured ones first."""

    points: tuple[Point, ...]


def learning_curve(
    labels: torch.Tensor,
    answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    more: Sequence[int] = (),
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    repeats: int = REPEATS,
) -> Curve:
    """How accuracy on held-out labels grows with the number of labels, and where it goes with `more` of them.

    labels: (n,) int64. answer(train, left): the classes (int64) that a model trained on rows `train` gives rows `left`.
    The labels are left out a fifth at a time; of the others growing parts, nested and drawn by the seed, are trained
    on. error = a + b n^-c, a, b >= 0, is fitted to the means by least squares, and again to 400 draws of the folds
    (bootstrap), whose middle 95 % are the interval. more: numbers of labels to extrapolate to.
    """
    fold, generator = folds(labels), torch.Generator().manual_seed(seed)
    count = int((fold != 0).sum())
    sizes = sorted({max(2, round(share * count)) for share in shares})
    rows = []  # one for each repeat and fold: accuracy at each size
    for _ in range(repeats):
        order = torch.randperm(len(labels), generator=generator)
        for part in fold.unique().tolist():
            rest = order[fold[order] != part]
            left = (fold == part).nonzero()[:, 0]
            found = [answer(rest[: min(size, len(rest))], left) for size in sizes]
            rows.append([100 * (guess == labels[left]).double().mean().item() for guess in found])
    table = np.array(rows)
    draw = np.random.default_rng(seed)
    # folds are drawn whole: the repeats of one share its left-out images
    shape = table.reshape(repeats, -1, len(sizes))
    means = [shape[:, draw.integers(0, shape.shape[1], shape.shape[1])].mean((0, 1)) for _ in range(DRAWS)]
    points = [
        Point(size, float(table[:, i].mean()), *spread([mean[i] for mean in means]), True)
        for i, size in enumerate(sizes)
    ]
    wanted = sorted({size for size in more if size > sizes[-1]})
    if wanted and len(sizes) > 1:
        middle = extrapolate(sizes, table.mean(0), wanted)
        ahead = extrapolate(sizes, np.array(means), wanted)
        points += [
            Point(size, float(middle[i]), *spread(ahead[:, i]), False) for i, size in enumerate(wanted)
        ]  # fmt: skip
    return Curve(tuple(points))


def spread(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The middle 95 % of some values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def extrapolate(sizes: Sequence[int], accuracy: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Accuracies (percent) at `wanted` numbers of labels by the power laws that fit those at `sizes` best.

    accuracy: (..., sizes); returns (..., wanted), a law for each row.
    """
    error, n = 100 - np.asarray(accuracy, float)[..., None, :], np.asarray(sizes, float)
    fall = n ** -RATES[:, None]  # (rates, sizes)
    middle, average = fall.mean(1), error.mean(-1)
    centred = fall - middle[:, None]
    b = np.maximum(0.0, (centred * error).sum(-1) / (centred * centred).sum(-1))  # (..., rates)
    a = average - b * middle
    alone = np.maximum(0.0, (fall * error).sum(-1) / (fall * fall).sum(-1))
    b, a = np.where(a < 0, alone, b), np.maximum(a, 0.0)  # no model is better than perfect
    loss = ((a[..., None] + b[..., None] * fall - error) ** 2).sum(-1)
    best = (loss - loss.min(-1, keepdims=True) < 1e-9).argmax(-1)[..., None]  # of equal laws the one that falls slowest
    a, b = np.take_along_axis(a, best, -1), np.take_along_axis(b, best, -1)
    return np.clip(100 - (a + b * np.asarray(wanted, float) ** -RATES[best]), 0, 100)
