"""The accuracy to expect on a pool, from held-out answers on labelled images that were not all drawn at random."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from data_selection.common.kinds import Features
from data_selection.judging.findings import Share, interval
from data_selection.judging.quality import nearest_other, rows_to_see, unit_rows

FEWEST_DRAWN = 10  # images drawn at random, with fewer of which nothing can be told


class Estimate(NamedTuple):
    """An accuracy. share: with its interval; drawn: of how many images drawn at random, 0: the labels are weighted.

    right: of these images, or of all labels; effective: equally weighted labels that would tell as much.
    """

    share: Share
    drawn: int
    right: int
    effective: float


def cell_weights(features: Features, ids: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """The share of a pool's rows (N, D) that are nearest to each of its rows `ids` (n,), by cosine; (n,) float64.

    An image stands for its cell: few labels in a crowd count for more than as many at the rim. Up to 20,000 rows are
    looked at, drawn by the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(len(features), generator=generator)[: rows_to_see(len(ids))].sort().values
    _, nearest = nearest_other(unit_rows(features, seen), unit_rows(features, ids))
    return nearest.bincount(minlength=len(ids)).double() / len(nearest)


def estimate(right: torch.Tensor, weights: torch.Tensor, drawn: Sequence[int] | torch.Tensor = ()) -> Estimate:
    """The Estimate by right (n,) bool, of labelled images, each answered by a model that has not seen its label.

    weights: (n,), of the pool that each stands for. drawn: rows of those that were drawn at random; with FEWEST_DRAWN
    of them they alone judge, by Wilson's interval, else all labels by their weights, and by Wilson's interval of as
    many labels as these weights are worth, 1 / sum w^2 (Kish).
    """
    own = torch.as_tensor(drawn, dtype=torch.int64)
    if len(own) >= FEWEST_DRAWN:
        count = int(right[own].sum())
        return Estimate(interval(count, len(own)), len(own), count, float(len(own)))
    shares = weights.double() / weights.sum()
    effective = 1 / float(shares.square().sum())
    value = float((shares * right).sum())
    return Estimate(interval(value * effective, effective), 0, int(right.sum()), effective)
