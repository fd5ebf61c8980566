"""Which label-free qualities go with accuracy, over the lists of an experiment."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from data_selection.judging.experiments.cells import Cell
from data_selection.judging.experiments.tables import Table

QUALITIES = ("radius_mean", "radius_95", "sliced", "mmd", "redundancy", "effective")
FEWEST = 3  # lists of a pool and budget: fewer have no rank correlation to speak of


def belief_tables(cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Spearman's rho of each quality and accuracy, a row per pool and evaluation; none without qualities on record.

    rho is taken among the lists (methods x seeds) of one pool and budget, so that budgets do not drive it, and its
    mean over the budgets is told. Distances and redundancy predict accuracy where rho is near -1, the effective number
    where it is near 1.
    """
    groups: dict[tuple[str, str], dict[int, list[tuple[Mapping[str, Any], float]]]] = {}
    for cell in {(cell.pool, cell.evaluation, cell.digest): cell for cell in cells}.values():  # 8 and 10% may be one
        record = records.get(cell.digest, {})
        accuracy = record.get("scores", {}).get(cell.score)
        if record.get("quality") and accuracy is not None:
            budgets = groups.setdefault((cell.pool, cell.evaluation), {})
            budgets.setdefault(cell.budget, []).append((record["quality"], accuracy))
    rows = []
    for (pool, evaluation), budgets in groups.items():
        means = [_mean_rho([_pairs(some, name) for some in budgets.values()]) for name in QUALITIES]
        if any(means):
            rows.append([pool, evaluation, *means])
    title = "Rank correlation of each label-free quality with accuracy, within a budget, mean over budgets (budgets)"
    return [Table(title, ["pool", "evaluation", *QUALITIES], rows)] if rows else []


def _pairs(lists: Sequence[tuple[Mapping[str, Any], float]], name: str) -> list[tuple[float, float]]:
    return [(quality[name], accuracy) for quality, accuracy in lists if quality.get(name) is not None]


def _mean_rho(groups: Sequence[Sequence[tuple[float, float]]]) -> str:
    """The mean of the groups' correlations, and of how many groups; empty where none has one."""
    from scipy.stats import spearmanr  # a second to import

    found = []
    for pairs in groups:
        if len(pairs) >= FEWEST:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of equal values, whose correlation is nan
                found.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
    known = [rho for rho in found if not math.isnan(rho)]
    return f"{sum(known) / len(known):.2f} ({len(known)})" if known else ""
