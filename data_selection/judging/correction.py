"""Labels spread over the pool's graph after the probe, and whether the labels themselves say that this helps.

Spreading is the second half of "correct and smooth" (Huang et al., 2021, "Combining Label Propagation and Simple Models
Out-performs Graph Neural Networks"). It gains where classes are about equally large and loses on a long tail, so that
the labels' own imbalance decides, and cross-validation can object.
"""

from typing import NamedTuple

import torch

from data_selection.judging.probe import FOLDS, fit_probe, folds
from data_selection.nearest.graph import Graph, times

SPREAD_STEPS, SPREAD_SHARE = 10, 0.9
UNEVEN = 0.25  # squared coefficient of variation of the classes' sizes from which they count as uneven
SURE = 2.0  # standard deviations of a difference that is not believed to be chance


class Choice(NamedTuple):
    """Whether predictions are corrected by the neighbours' labels, and why."""

    corrected: bool
    reason: str


class HeldOut(NamedTuple):
    """Probabilities of labelled rows by probes that did not see them: (n, C), and the same corrected."""

    plain: torch.Tensor
    corrected: torch.Tensor


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


def held_out_corrected(
    smoothed: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, classes: int, c: float, spread: Graph
) -> HeldOut:
    """What probe.held_out says of the labelled rows, and what comes of it by spreading the other folds' labels.

    smoothed: (N, D), of the pool; ids, labels: (n,) int64 on the CPU. A row is corrected as one from outside the pool:
    half the probe's word, half the mean of its neighbours'.
    """
    fold = folds(labels, min(FOLDS, len(labels)))
    plain = torch.zeros(len(labels), classes, device=smoothed.device)
    corrected = torch.zeros_like(plain)
    for part in fold.unique():
        rest, left = fold != part, fold == part
        probe = fit_probe(smoothed[ids[rest].to(smoothed.device)], labels[rest], classes, c)
        pool = probe.predict(smoothed)
        known = spread_labels(pool, labels[rest], ids[rest], spread)
        plain[left] = pool[ids[left]]
        corrected[left] = (plain[left] + times(spread.average[ids[left].numpy()], known)) / 2
    return HeldOut(plain, corrected)


def unevenness(labels: torch.Tensor) -> float:
    """Squared coefficient of variation of the sizes of the classes that labels (n,) were drawn from, by their counts.

    What equal classes would show by chance is taken off, so that it is 0 on average for these.
    """
    counts = torch.bincount(labels.cpu()).double()
    counts = counts[counts > 0]
    mean = counts.mean()
    chance = 1 / mean * (1 - 1 / len(counts))
    return ((counts / mean - 1).square().mean() - chance).item()


def choose_correction(labels: torch.Tensor, held: HeldOut | None) -> Choice:
    """The Choice by labels (n,) int64 and what was held out of them; None: there are too few to ask."""
    uneven = unevenness(labels)
    if uneven > UNEVEN:
        return Choice(False, f"not corrected by the neighbours: the labels' classes are uneven ({uneven:.2f})")
    if held is None:
        return Choice(True, "corrected by the neighbours: the labels' classes are even, and too few to ask")
    truth = labels.to(held.plain.device)
    before, after = (part.argmax(1) == truth for part in held)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    told = f"cross-validation on {len(labels)} labels: {int(before.sum())} right without, {int(after.sum())} with"
    if lost - gained > SURE * (lost + gained) ** 0.5:
        return Choice(False, f"not corrected by the neighbours: {told}")
    return Choice(True, f"corrected by the neighbours: the labels' classes are even ({told})")
