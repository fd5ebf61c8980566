"""A probe on features averaged over the pool's neighbours, and its labels spread over them: more from few labels.

The unlabelled pool says which images are alike; labels are read off the averaged features, then corrected by the
neighbours' (Huang et al., 2021, "Combining Label Propagation and Simple Models Out-performs Graph Neural Networks").
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from data_selection.common.checks import check_ids
from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from data_selection.nearest.graph import (
    Graph,
    build_graph,
    nearest_neighbours,
    outside_average,
    smooth,
    smooth_outside,
    times,
)
from data_selection.nearest.pool_reader import pool_device
from data_selection.nearest.similarity import normalise, read_rows

SMOOTH_C = 30.0  # inverse L2 strength on smoothed features
GRID = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FOLDS = 5
SPREAD_NEIGHBOURS, SPREAD_STEPS, SPREAD_SHARE = 15, 10, 0.9  # of the correction
TEMPERATURES = (1.0, 0.7, 1.4, 0.5, 2.0, 0.25, 3.0, 5.0)  # of equally good ones the first is taken


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


def fit_probe(features: torch.Tensor, labels: torch.Tensor, classes: int, c: float) -> Probe:
    """Multinomial logistic regression of labels (n,) int64 on features (n, D), penalty |weight|^2 / (2 c), as a Probe.

    By scikit-learn's L-BFGS in float64, so deterministic; two classes are its binary model, one is always predicted.
    Raises UserError where there is no label, or one outside 0..classes-1, or c is not above 0.
    """
    if not c > 0:
        raise UserError(f"c {c} must be above 0")
    if len(labels) == 0:
        raise UserError("a probe needs at least one label, there is none")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels {int(labels.min())}..{int(labels.max())} are outside 0..{classes - 1}: mend them")
    present = labels.cpu().unique()
    if len(present) == 1:
        return Probe(torch.zeros(1, features.shape[1]).double(), torch.zeros(1).double(), present, classes)
    solver = LogisticRegression(C=c, max_iter=2000, tol=1e-5)
    solver.fit(features.cpu().double().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
    if len(present) == 2:  # one logit: half of it for one class, minus half for the other
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return Probe(weight, bias, present, classes)


def folds(labels: torch.Tensor, count: int = FOLDS) -> torch.Tensor:
    """Which of `count` folds each label (n,) is in, (n,) int64 on the CPU: every class evenly over all, in turn."""
    fold = torch.empty(len(labels), dtype=torch.int64)
    fold[labels.cpu().argsort(stable=True)] = torch.arange(len(labels)) % count
    return fold


def held_out(features: torch.Tensor, labels: torch.Tensor, classes: int, c: float) -> torch.Tensor:
    """Probabilities (n, classes) of each row by a probe on the other folds; features (n, D), labels (n,) int64, n > 1.

    A row whose class has no other label gets 0 for it.
    """
    fold = folds(labels, min(FOLDS, len(labels))).to(labels.device)
    result = torch.zeros(len(labels), classes, device=features.device)
    for part in fold.unique():
        rest = fold != part
        result[~rest] = fit_probe(features[rest], labels[rest], classes, c).predict(features[~rest])
    return result


def choose_c(
    features: torch.Tensor, labels: torch.Tensor, grid: Iterable[float] = GRID, default: float = SMOOTH_C
) -> float:
    """The c of a grid with the best 5-fold cross-validated accuracy; of equals, the least log loss, then the lowest c.

    features: (n, D); labels: (n,) int64. default is returned where a class has a single label, so that some fold would
    have to do without it, or where there is one class. Deterministic.
    """
    values, counts = labels.unique(return_counts=True)
    if len(values) < 2 or counts.min() < 2:
        return default
    classes = int(values.max()) + 1
    scores = []
    for c in sorted(grid):
        predicted = held_out(features, labels, classes, c)
        hits = int((predicted.argmax(1) == labels).sum())
        scores.append((-hits, log_loss(predicted, labels), c))
    return min(scores)[2]


def log_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of -log p of the labels (n,) by probabilities (n, C)."""
    return -probabilities.double().gather(1, labels[:, None]).clamp(min=1e-12).log().mean().item()


def temperature(probabilities: torch.Tensor, labels: torch.Tensor, grid: Sequence[float] = TEMPERATURES) -> float:
    """The temperature of a grid that makes held-out probabilities (n, C) fit labels (n,) int64 best, by log loss.

    probabilities: from held_out; a row whose label has probability 0 (its class was not seen) decides nothing. Of
    equally good temperatures the first is taken.
    """
    losses = [log_loss(at_temperature(probabilities, value), labels) for value in grid]
    return grid[losses.index(min(losses))]


def at_temperature(probabilities: torch.Tensor, value: float) -> torch.Tensor:
    """Probabilities (n, C) to the power 1 / value, each row's sum 1 again: above 1 they are less certain."""
    return (probabilities.double().log() / value).softmax(1).to(probabilities.dtype)


@dataclass(frozen=True)
class SmoothedProbe:
    """What fit_smoothed learned. pool: (N, C) float32 probabilities of the pool; corrected: the same after spreading.

    probe, c: the classifier of smoothed features and its strength. mean: (D,) of the pool's unit rows; features: (N, D)
    these about it, at unit length; levels: of `smooth`. graph, spread: of k neighbours, and of those for spreading.
    """

    pool: torch.Tensor
    corrected: torch.Tensor | None
    probe: Probe
    c: float
    k: int
    mean: torch.Tensor
    features: torch.Tensor
    levels: list[torch.Tensor]
    graph: Graph
    spread: Graph | None
    world: World

    def predict(self, queries: torch.Tensor | np.ndarray, corrected: bool = False) -> torch.Tensor:
        """Probabilities (Q, C) float32 of raw features (Q, D) from outside the pool.

        corrected: half the probe's, half the mean of the neighbours' corrected ones. With a World of several ranks all
        must call it. Raises UserError where correct=False was fitted, a value is not finite or the dimensions differ.
        """
        spread, known = self.spread, self.corrected
        if corrected and spread is None:
            raise UserError("corrected predictions need a probe that was fitted with correct=True")
        if queries.ndim != 2 or queries.shape[1] != len(self.mean):
            raise UserError(f"queries of shape {tuple(queries.shape)}: the pool's {len(self.mean)} columns are needed")
        rows = about(read_rows(queries, 0, len(queries), self.features.device), self.mean)
        wide = max(self.k, SPREAD_NEIGHBOURS) if corrected else self.k
        index, similarity = nearest_neighbours(self.features, wide, queries=rows, world=self.world)
        smoothed = smooth_outside(rows, self.levels, index[:, : self.k], similarity[:, : self.k], self.graph)
        result = self.probe.predict(smoothed)
        if not corrected or spread is None or known is None:
            return result
        average, alone = outside_average(index[:, :SPREAD_NEIGHBOURS], similarity[:, :SPREAD_NEIGHBOURS], spread)
        mixed = (result + times(average, known)) / 2
        return torch.where(torch.from_numpy(alone).to(mixed.device)[:, None], result, mixed)


def fit_smoothed(
    features: torch.Tensor | np.ndarray,
    labels: torch.Tensor | np.ndarray | Sequence[int],
    ids: torch.Tensor | np.ndarray | Sequence[int],
    *,
    classes: int | None = None,
    c: float | None = SMOOTH_C,
    k: int = 10,
    steps: int = 2,
    correct: bool = True,
    world: World | None = None,
    progress: Callable[..., Any] | None = None,
) -> SmoothedProbe:
    """A probe on the pool's smoothed features, from the labels of some of its rows.

    features: (N, D) raw floats of the whole pool. ids: (n,) pool indices; labels: (n,) int64, their classes, below
    `classes` (default: one more than the highest). c: inverse strength of the L2 penalty, None: choose_c. k neighbours
    and `steps` steps of smoothing; correct: also spread labels over the neighbours. world: its ranks share the search
    for neighbours, and all get the same. Raises UserError where ids and labels do not fit the pool or each other.
    """
    world = world or World(0, 1, pool_device(features, None))
    rows_known = check_ids(ids, len(features), "labelled")
    targets = torch.as_tensor(labels).cpu().long()
    if len(targets) != len(rows_known) or len(targets) == 0:
        raise UserError(f"{len(targets)} labels for {len(rows_known)} ids: as many are needed, at least 1")
    order = rows_known.argsort()  # the result does not depend on theirs
    rows_known, targets = rows_known[order], targets[order]
    if k < 1 or steps < 0:
        raise UserError(f"k {k} and steps {steps}: at least 1 neighbour and 0 steps are needed")
    rows = read_rows(features, 0, len(features), world.device)
    mean = normalise(rows).double().mean(0).float()
    rows = about(rows, mean)
    wide = max(k, SPREAD_NEIGHBOURS) if correct else k
    index, similarity = nearest_neighbours(rows, wide, world=world, progress=progress)
    graph = build_graph(index[:, :k], similarity[:, :k])
    smoothed, levels = smooth(rows, graph, steps)
    count = int(targets.max()) + 1 if classes is None else classes
    known = smoothed[rows_known.to(smoothed.device)].cpu()

    def fit() -> tuple[float, Probe]:
        strength = choose_c(known, targets) if c is None else c
        return strength, fit_probe(known, targets, count, strength)

    strength, probe = on_main(world, fit)
    pool = probe.predict(smoothed)
    spread = corrected = None
    if correct:
        spread = build_graph(index[:, :SPREAD_NEIGHBOURS], similarity[:, :SPREAD_NEIGHBOURS])
        corrected = spread_labels(pool, targets, rows_known, spread)
    return SmoothedProbe(pool, corrected, probe, strength, k, mean, rows, levels, graph, spread, world)


def about(rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Rows (Q, D) at unit length, less the mean (D,), at unit length again; where nothing is left, 0."""
    return normalise(normalise(rows) - mean)


def spread_labels(probabilities: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, graph: Graph) -> torch.Tensor:
    """G, (N, C): ten times G = 0.9 A G + 0.1 Y from G = Y, the labelled rows set back to their labels each time.

    Y: probabilities (N, C) with the rows ids (n,) replaced by their labels (n,), one-hot.
    """
    ids, labels = ids.to(probabilities.device), labels.to(probabilities.device)
    start = probabilities.clone()
    start[ids] = 0
    start[ids, labels] = 1
    result = start
    for _ in range(SPREAD_STEPS):
        result = SPREAD_SHARE * times(graph.average, result) + (1 - SPREAD_SHARE) * start
        result[ids] = start[ids]
    return result
