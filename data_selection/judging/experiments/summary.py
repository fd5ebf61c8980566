"""Means, paired differences with their interval, and labels saved: the numbers of an experiment's tables. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_selection.judging.evaluation import MeanSd, mean_sd

LEVEL = 0.95  # of the interval


class Interval(NamedTuple):
    """Mean of `size` paired differences and the ends of its interval (nan for a single pair)."""

    mean: float
    low: float
    high: float
    size: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + (f" [{self.low:+.2f}, {self.high:+.2f}]" if self.size > 1 else "")

    @property
    def beyond_chance(self) -> bool:
        """Whether 0 is outside of the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Entry:
    """A method at a budget in a pool under an evaluation.

    score: over its seeds. gain: to the baseline seed by seed, None for the baseline itself and where no seed is shared.
    needed: labels that the baseline needs for the same accuracy; bound: "" where it needs so many, ">" where more, its
    largest budget, "<" where fewer, its smallest one.
    """

    pool: str
    evaluation: str
    method: str
    budget: int
    asked: str
    score: MeanSd
    gain: Interval | None = None
    needed: float | None = None
    bound: str = ""

    @property
    def saved(self) -> float | None:
        """The share of the baseline's labels that the method does without, below 1; negative where it needs more."""
        return None if self.needed is None else 1 - self.budget / self.needed


Key = tuple[str, str, str, int]  # pool, evaluation, method, budget


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Interval | None:
    """Mean of values minus others over the seeds that both have, with its 95 % interval by Student's t; None: no seed.

    The interval is mean +- t(0.975, n - 1) sd / sqrt(n), sd that of the n differences; NaN for one.
    """
    shared = [values[seed] - others[seed] for seed in sorted(values) if seed in others]
    if not shared:
        return None
    found = mean_sd(shared)
    from scipy.special import stdtrit  # quick to import, as scipy.stats is not

    half = float(stdtrit(found.size - 1, (1 + LEVEL) / 2)) * found.sd / found.size**0.5
    return Interval(found.mean, found.mean - half, found.mean + half, found.size)


def labels_needed(accuracy: float, budgets: Sequence[int], means: Sequence[float]) -> tuple[float, str]:
    """(labels, bound) that a curve of mean accuracies needs to reach an accuracy.

    budgets: ascending. The curve is made monotone (a fall keeps what was reached before), and read between budgets by
    straight lines over the logarithm of the labels. For an accuracy below the curve its smallest budget is given and
    "<", for one above it the largest and ">"; else the bound is "".
    """
    reached = np.maximum.accumulate(np.asarray(means, dtype=np.float64))
    if accuracy > reached[-1]:
        return float(budgets[-1]), ">"
    if accuracy < reached[0]:
        return float(budgets[0]), "<"
    after = int(np.argmax(reached >= accuracy))
    if after == 0:
        return float(budgets[0]), ""
    low, high = reached[after - 1], reached[after]
    share = (accuracy - low) / (high - low)
    return float(np.exp((1 - share) * np.log(budgets[after - 1]) + share * np.log(budgets[after]))), ""


def summarise(
    values: Mapping[Key, Mapping[int, float]], baseline: str, asked: Mapping[tuple[str, int], str] | None = None
) -> list[Entry]:
    """The Entries of {(pool, evaluation, method, budget): {seed: percent}}, in the order given.

    asked: how the config writes a budget of a pool, where it does not write the number.
    """
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for (pool, evaluation, method, budget), scores in values.items():
        if method == baseline and scores:
            curves.setdefault((pool, evaluation), {})[budget] = mean_sd(scores.values()).mean
    entries = []
    for (pool, evaluation, method, budget), scores in values.items():
        if not scores:
            continue
        score, gain, needed, bound = mean_sd(scores.values()), None, None, ""
        if method != baseline:
            gain = paired(scores, values.get((pool, evaluation, baseline, budget), {}))
            if curve := curves.get((pool, evaluation)):
                budgets = sorted(curve)
                needed, bound = labels_needed(score.mean, budgets, [curve[size] for size in budgets])
        told = (asked or {}).get((pool, budget), str(budget))
        entries.append(Entry(pool, evaluation, method, budget, told, score, gain, needed, bound))
    return entries
