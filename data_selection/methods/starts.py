"""Selection baselines: random, farthest point (k-center greedy), k-means; and two starts for ActiveFT."""

import random
from dataclasses import dataclass

import torch

from data_selection.assignment import distinct_nearest
from data_selection.checks import check_request, check_selection
from data_selection.distributed import World
from data_selection.errors import UserError
from data_selection.pool_reader import UnitPool, pool_device, working_memory
from data_selection.progress import open_bar
from data_selection.similarity import BLOCK_BYTES, normalise

DISTANCES = ("euclidean", "cosine", "product", "KLDiv")


@dataclass(frozen=True)
class RandomConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class FarthestConfig:
    """distance: between unit features, `euclidean`, `cosine` (1 - cos), `product` or `KLDiv` (of softmaxes)."""

    distance: str = "euclidean"

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise UserError(f"distance {self.distance!r} is unknown: use one of {', '.join(DISTANCES)}")


@dataclass(frozen=True)
class KMeansConfig:
    """max_iter: Lloyd or minibatch epochs. batch_size: rows per minibatch; small pools (4 of them) use all rows."""

    max_iter: int = 100
    batch_size: int = 8192

    def __post_init__(self):
        for name in ("max_iter", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")


def select_random(
    features, budget, *, config=RandomConfig(), labelled=(), excluded=(), seed=0, device=None, progress=None
):
    """Draw `budget` samples uniformly without replacement; (budget,) int64 pool indices, ascending."""
    labelled, candidates = check_request(features, budget, labelled, excluded)
    chosen = torch.tensor(random.Random(seed).sample(candidates.tolist(), budget)).sort().values
    return check_selection(chosen, budget, len(features), labelled, excluded)


def select_farthest(
    features, budget, *, config=FarthestConfig(), labelled=(), excluded=(), seed=0, device=None, progress=None
):
    """k-center greedy: again and again the sample farthest from all chosen; (budget,) int64, in order of choice.

    labelled samples count as chosen; without any, the first sample is drawn. Distances are between unit features.
    Source: Sener and Savarese 2018 (the greedy part); the `fps` start of the released ActiveFT.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    chosen = farthest_point(features, budget, candidates, labelled, config.distance, seed, device, progress)
    return check_selection(chosen, budget, len(features), labelled, excluded)


def select_kmeans(
    features, budget, *, config=KMeansConfig(), labelled=(), excluded=(), seed=0, device=None, progress=None
):
    """The samples nearest to the centres of k-means on unit features, distinct; (budget,) int64, ascending.

    Centres already served by a labelled sample are left out: k-means finds budget + labelled centres, each labelled
    sample takes the one nearest to it. Runs in scikit-learn on the CPU.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    kept = torch.cat([labelled, candidates]).sort().values
    pool = UnitPool(features, kept, torch.device("cpu"), float("inf"))
    rows = pool.resident.numpy()  # (n, D)
    from sklearn.cluster import KMeans, MiniBatchKMeans  # slow to import, and only needed here

    small = len(rows) <= 4 * config.batch_size
    options = {"n_clusters": budget + len(labelled), "n_init": 1, "max_iter": config.max_iter, "random_state": seed}
    estimator = KMeans(**options) if small else MiniBatchKMeans(**options, batch_size=config.batch_size)
    with open_bar(progress, 1, "k-means", "fit") as bar:
        centres = normalise(torch.from_numpy(estimator.fit(rows).cluster_centers_))  # (budget + L, D)
        bar.update(1)
    alone = World(0, 1, torch.device("cpu"))
    if len(labelled):
        known = pool.take(torch.searchsorted(kept, labelled))
        nobody = torch.zeros(len(centres), dtype=torch.bool)
        claimed = distinct_nearest(lambda step: [(0, centres)], known, nobody, alone, BLOCK_BYTES)
        free = torch.ones(len(centres), dtype=torch.bool)
        free[claimed] = False
        centres = centres[free]
    barred = torch.ones(len(kept), dtype=torch.bool)
    barred[torch.searchsorted(kept, candidates)] = False

    def blocks(step):
        return ((start, rows) for start, rows in zip(range(0, len(kept), step), pool.resident.split(step)))

    chosen = kept[distinct_nearest(blocks, centres, barred, alone, BLOCK_BYTES)].sort().values
    return check_selection(chosen, budget, len(features), labelled, excluded)


def farthest_point(features, budget, candidates, labelled, distance, seed, device, progress=None, max_bytes=None):
    """The first `budget` candidates of the farthest-point order, (budget,) int64 pool indices in that order.

    candidates, labelled: ascending pool indices; labelled ones count as chosen already. Of equal distances the lowest
    index is taken. For unit vectors `euclidean`, `cosine` and `product` order alike. max_bytes: working memory, None: a
    quarter of what is free.
    """
    device = pool_device(features, device)
    pool = UnitPool(features, torch.cat([labelled, candidates]), device, max_bytes or working_memory(None, device))
    distances = PointDistances(pool, distance)
    gap = torch.full((pool.count,), torch.inf, device=pool.device)  # to the nearest chosen sample
    for position in range(len(labelled)):
        gap = torch.minimum(gap, distances.to(position))
    gap[: len(labelled)] = -torch.inf
    chosen = torch.empty(budget, dtype=torch.int64, device=pool.device)
    first = len(labelled) + random.Random(seed).randrange(len(candidates))
    with open_bar(progress, budget, "farthest point", "image") as bar:
        for turn in range(budget):
            chosen[turn] = first if turn == 0 and len(labelled) == 0 else gap.argmax()
            gap = torch.minimum(gap, distances.to(chosen[turn]))
            gap[chosen[turn]] = -torch.inf
            bar.update(1)
    return candidates[chosen.cpu() - len(labelled)]


def plus_plus(features, budget, candidates, labelled, seed, device, max_bytes=None):
    """A k-means++ start: each next sample is drawn with probability proportional to its squared distance.

    Arguments and result as for farthest_point. Source: Arthur and Vassilvitskii 2007.
    """
    device = pool_device(features, device)
    pool = UnitPool(features, torch.cat([labelled, candidates]), device, max_bytes or working_memory(None, device))
    distances = PointDistances(pool, "euclidean")
    generator = random.Random(seed)
    gap = torch.full((pool.count,), torch.inf, device=pool.device)
    for position in range(len(labelled)):
        gap = torch.minimum(gap, distances.to(position))
    free = torch.arange(pool.count, device=pool.device) >= len(labelled)
    chosen = []
    for _ in range(budget):
        weights = torch.where(free, gap.clamp(min=0, max=4).double(), 0)  # 4: no distance is known yet
        if not weights.any():  # only copies of chosen samples are left
            weights = free.double()
        cumulative = weights.cumsum(0)
        target = cumulative[-1] * generator.random()
        pick = torch.searchsorted(cumulative, target, right=True)  # skips samples of weight 0
        chosen.append(pick)
        free[pick] = False
        gap = torch.minimum(gap, distances.to(pick))
    return candidates[torch.stack(chosen).cpu() - len(labelled)]


class PointDistances:
    """Distances of one pool sample to all others, one pass per sample.

    Every kind has the form own_i + other_g - left_i . right_g; half the squared distance for `euclidean`.
    """

    def __init__(self, pool, kind):
        self.pool, self.kind = pool, kind
        half = torch.cat([rows.square().sum(1) / 2 for rows in self._rows()])
        self.own = half if kind == "euclidean" else torch.zeros_like(half)
        self.other = half if kind == "euclidean" else torch.full_like(half, 1.0 if kind == "cosine" else 0.0)
        if kind == "KLDiv":  # sum p log p - sum p log q, p and q the softmax of sample and chosen one
            self.own = torch.cat([(rows.softmax(1) * rows.log_softmax(1)).sum(1) for rows in self._rows()])

    def _rows(self):
        return (self.pool.read(start, stop) for start, stop in self.pool.spans(self.pool.count))

    def to(self, position):
        """(n,) distances of every sample to the one at `position`."""
        point = self.pool.read(position, position + 1)[0]
        right = point.log_softmax(0) if self.kind == "KLDiv" else point
        left = (rows.softmax(1) if self.kind == "KLDiv" else rows for rows in self._rows())
        return torch.cat([rows @ right for rows in left]).neg_() + self.own + self.other[position]
