"""Orders of a pool that several methods share: farthest points, and k-means++."""

import random
from collections.abc import Iterator

import torch

from data_selection.common.kinds import Device, Features
from data_selection.common.progress import OpenBar, open_bar
from data_selection.nearest.pool_reader import UnitPool, pool_device, working_memory

AT_ONCE = 256  # labelled samples to which distances are one product
WEIGHT_UNITS = 2.0**32  # of a squared distance, which is 4 at most: those of 500 million rows add up to an int64


def farthest_point(
    features: Features,
    budget: int,
    candidates: torch.Tensor,
    labelled: torch.Tensor,
    distance: str,
    seed: int,
    device: Device | None,
    progress: OpenBar | None = None,
    max_bytes: float | None = None,
) -> torch.Tensor:
    """The first `budget` candidates of the farthest-point order, (budget,) int64 pool indices in that order.

    candidates, labelled: ascending pool indices; labelled ones count as chosen already. Of equal distances the lowest
    index is taken. For unit vectors `euclidean`, `cosine` and `product` order alike. max_bytes: working memory, None: a
    quarter of what is free.
    """
    device = pool_device(features, device)
    max_bytes = working_memory(None, device) if max_bytes is None else max_bytes
    pool = UnitPool(features, torch.cat([labelled, candidates]), device, max_bytes)
    distances = PointDistances(pool, distance)
    gap = distances.to_nearest(torch.arange(len(labelled)))  # to the nearest chosen sample
    gap[: len(labelled)] = -torch.inf
    chosen: list[torch.Tensor] = []  # read at the end: no pick waits for a GPU
    first = len(labelled) + random.Random(seed).randrange(len(candidates))
    with open_bar(progress, budget, "farthest point", "image") as bar:
        for turn in range(budget):
            drawn = turn == 0 and len(labelled) == 0
            pick = torch.full((1,), first, device=pool.device) if drawn else gap.argmax()[None]
            chosen.append(pick)
            gap = torch.minimum(gap, distances.to(pick)).index_fill_(0, pick, -torch.inf)
            bar.update(1)
    return candidates[torch.cat(chosen).cpu() - len(labelled)]


def plus_plus(
    features: Features,
    budget: int,
    candidates: torch.Tensor,
    labelled: torch.Tensor,
    seed: int,
    device: Device | None,
    max_bytes: float | None = None,
) -> torch.Tensor:
    """A k-means++ start: each next sample is drawn with probability proportional to its squared distance.

    Arguments and result as for farthest_point. Source: Arthur and Vassilvitskii 2007.
    """
    device = pool_device(features, device)
    max_bytes = working_memory(None, device) if max_bytes is None else max_bytes
    pool = UnitPool(features, torch.cat([labelled, candidates]), device, max_bytes)
    distances = PointDistances(pool, "euclidean")
    generator = random.Random(seed)
    gap = distances.to_nearest(torch.arange(len(labelled)))
    free = torch.arange(pool.count, device=pool.device) >= len(labelled)
    chosen = []
    for _ in range(budget):
        weights = torch.where(free, gap.clamp(min=0, max=4).double() * WEIGHT_UNITS, 0).long()  # 4: not known yet
        weights = torch.where(weights.any(), weights, free.long())  # else only copies of chosen samples are left
        cumulative = weights.cumsum(0)  # of whole numbers: a GPU adds others in any order
        target = torch.minimum((cumulative[-1].double() * generator.random()).long(), cumulative[-1] - 1)
        pick = torch.searchsorted(cumulative, target[None], right=True)  # skips samples of weight 0
        chosen.append(pick)
        free.index_fill_(0, pick, False)
        gap = torch.minimum(gap, distances.to(pick))
    return candidates[torch.cat(chosen).cpu() - len(labelled)]


class PointDistances:
    """Distances of all pool samples to one of them, or to the nearest of some.

    Every kind has the form own_i + other_g - left_i . right_g; half the squared distance for `euclidean`.
    """

    def __init__(self, pool: UnitPool, kind: str) -> None:
        self.pool, self.kind = pool, kind
        half = torch.cat([rows.square().sum(1) / 2 for rows in self._rows()])
        self.own = half if kind == "euclidean" else torch.zeros_like(half)
        self.other = half if kind == "euclidean" else torch.full_like(half, 1.0 if kind == "cosine" else 0.0)
        if kind == "KLDiv":  # sum p log p - sum p log q, p and q the softmax of sample and chosen one
            self.own = torch.cat([(rows.softmax(1) * rows.log_softmax(1)).sum(1) for rows in self._rows()])

    def _rows(self) -> Iterator[torch.Tensor]:
        return (self.pool.read(start, stop) for start, stop in self.pool.spans(self.pool.count))

    def to(self, position: torch.Tensor) -> torch.Tensor:
        """(n,) distances of every sample to the one at `position`, (1,) on the pool's device."""
        point = self.pool.take(position if self.pool.resident is not None else position.cpu())[0]
        right = point.log_softmax(0) if self.kind == "KLDiv" else point
        return torch.cat([rows @ right for rows in self._left()]).neg_() + self.own + self.other[position]

    def to_nearest(self, positions: torch.Tensor) -> torch.Tensor:
        """(n,) distances of every sample to the nearest one at positions (L,) on the CPU, infinity where there is none.

        One pass and one product for many of them, where `to` takes a pass for each.
        """
        gap = torch.full_like(self.own, torch.inf)
        for start in range(0, len(positions), AT_ONCE):
            some = positions[start : start + AT_ONCE]
            points = self.pool.take(some)
            right = (points.log_softmax(1) if self.kind == "KLDiv" else points).T
            other = self.other[some.to(self.own.device)]
            gap = torch.minimum(gap, torch.cat([(other - rows @ right).amin(1) for rows in self._left()]))
        return gap + self.own

    def _left(self) -> Iterator[torch.Tensor]:
        return (rows.softmax(1) if self.kind == "KLDiv" else rows for rows in self._rows())
