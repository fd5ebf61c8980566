"""Which method suits a pool and a budget before there is any label, and what to do with the labels then.

The rule was fitted on the demo pool: facility location was best up to about 100 labels, its V-optimal continuation
level or better beyond. On photographs, digits and long-tailed cuts it was not below random choice beyond noise at any
budget (configs/README.md). An earlier rule sent pools of uneven clusters to ActiveFT, which loses to both at 250 labels
of each of those long tails.
"""

from typing import NamedTuple

from data_selection.common.checks import check_request
from data_selection.common.kinds import Features, Ids

CORE = 100  # labels up to which covering the pool is best
LARGE = 0.1  # share of the pool from which on no method was measurably better than random, with a plain probe
TAUGHT = 0.25  # share of the pool with labels from which on the rest of it added nothing


class Advice(NamedTuple):
    """method: a row of METHODS. reason: which rule chose it, and by what. labels: what to do with the labels."""

    method: str
    reason: str
    labels: str


def advise(features: Features, budget: int, *, labelled: Ids = (), excluded: Ids = ()) -> Advice:
    """The method for `budget` more labels in a pool (N, D), of whose labels so far only the number counts.

    Raises UserError for a request that no method takes.
    """
    known, candidates = check_request(features, budget, labelled, excluded)
    labels, pool = budget + len(known), len(known) + len(candidates)
    size = f"{labels} labels of {pool} images"
    if labels <= CORE:
        method, reason = "facility", f"{size}, at most {CORE}: facility location, which covers the pool"
    else:
        method, reason = "voptimal", f"{size}, more than {CORE}: facility location goes on as V-optimal design"
    if labels >= LARGE * pool:
        reason += f"; at {LARGE:.0%} of a pool and beyond, expect little more than from a random choice"
    return Advice(method, reason, use_of_labels(labels, pool))


def use_of_labels(labels: int, pool: int) -> str:
    """What to do with so many labels of a pool of so many images."""
    if labels < TAUGHT * pool:
        return (
            "train by deit/main.py --mode self-train, where the images without a label teach as well; "
            "on frozen features, fit_smoothed beats a plain probe"
        )
    return "train by deit/main.py --mode lp-ft; with so many labels the other images add nothing"
