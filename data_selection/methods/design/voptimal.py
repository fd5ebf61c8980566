"""V-optimal design: the images whose labels make a linear model's predictions on the whole pool most certain."""

from collections.abc import Callable

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.configs_design import CUT, DesignConfig, FacilityConfig, VOptimalConfig
from data_selection.methods.design.facility import cover
from data_selection.methods.design.kernels import RandomFeatures, draw
from data_selection.methods.design.smoothing import smoothed_rows
from data_selection.nearest.pool_reader import UnitPool, pool_device, working_memory

LOOKED, FALL = 16, 1e3  # picks between two looks whether q has fallen so far that rounding of the first shows
BLOCK = 4096  # rows whose features are computed together; never depends on memory, so results do not either

Embed = Callable[[torch.Tensor], torch.Tensor]  # positions in the pool (B,), ascending -> features (B, F)


@full_float32()
def select_voptimal(
    features: Features,
    budget: int,
    *,
    config: VOptimalConfig = VOptimalConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    smoothed: torch.Tensor | None = None,
) -> torch.Tensor:
    """A core by facility location, then V-optimal design; (budget,) int64, in order of choice.

    The design is that of Bayesian linear regression on random features of the rows and of the rows smoothed over the
    pool's graph: each pick lowers the predictions' mean variance over the pool most (Yu et al. 2006, "Active Learning
    via Transductive Experimental Design", greedily). labelled rows count as chosen, for the core too. smoothed: (N, D),
    where they are known already. Working memory is bounded, but for smoothing.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    pool = UnitPool(features, kept, device, working_memory(None, device))
    first = min(budget, max(0, config.core - len(labelled)))
    known, free = (torch.searchsorted(kept, ids) for ids in (labelled, candidates))
    chosen = torch.empty(0, dtype=torch.int64)
    if first:
        chosen = cover(pool, first, known, free, FacilityConfig(), seed, progress)
    if first < budget:
        free = free[~torch.isin(free, chosen)]
        known = torch.cat([known, chosen])
        embed = embedding(features, kept, pool, config, seed, smoothed, progress)
        weights = torch.ones(len(kept))
        chosen = torch.cat([chosen, design(pool, budget - first, known, free, embed, weights, config, seed, progress)])
    return check_selection(kept[chosen], budget, len(features), labelled, excluded)


def embedding(
    features: Features,
    kept: torch.Tensor,
    pool: UnitPool,
    config: DesignConfig,
    seed: int,
    smoothed: torch.Tensor | None,
    progress: OpenBar | None,
) -> Embed:
    """The random features of the pool's rows and, where config.steps says so, of its smoothed rows.

    features: (N, D); kept: (n,) which of them the pool holds. smoothed: (N, D) or None: not known yet.
    """
    landmarks = draw(config.landmarks, pool.count, torch.Generator().manual_seed(seed))
    plain = RandomFeatures.fit(pool.take(landmarks), config.components)
    if smoothed is None:
        smoothed = smoothed_rows(features, kept, config.steps, pool.device, progress)
    if smoothed is None:
        return lambda places: plain(pool.take(places))
    table = smoothed

    def take(places: torch.Tensor) -> torch.Tensor:
        return table[kept[places].to(table.device)].to(pool.device)

    averaged = RandomFeatures.fit(take(landmarks), config.components)
    return lambda places: torch.cat([plain(pool.take(places)), averaged(take(places))], 1) / 2**0.5


def design(
    pool: UnitPool,
    budget: int,
    labelled: torch.Tensor,
    candidates: torch.Tensor,
    embed: Embed,
    weights: torch.Tensor,
    config: DesignConfig,
    seed: int,
    progress: OpenBar | None,
) -> torch.Tensor:
    """The candidates that lower the weighted mean variance most, one by one: positions in the pool (budget,) int64.

    labelled, candidates: positions; weights: (n,) of the pool's rows, not negative.
    """
    total, sums = weights.double().sum().item(), torch.zeros((), dtype=torch.float64, device=pool.device)
    with open_bar(progress, pool.count, "random features", "image") as bar:
        for places in torch.arange(pool.count).split(BLOCK):
            rows = embed(places)  # (B, F)
            share = (weights[places].double() / total).float().to(rows.device)
            sums = sums + (rows.T @ (rows * share[:, None])).double()
            bar.update(len(places))
    generator = torch.Generator().manual_seed(seed)
    candidates = candidates[draw(max(config.candidates, CUT * budget), len(candidates), generator)]
    rows = torch.cat([embed(places) for places in candidates.split(BLOCK)])
    known = torch.cat([embed(places) for places in labelled.sort().values.split(BLOCK)]) if len(labelled) else rows[:0]
    plan = VOptimal(rows, sums, known, config.noise)
    chosen = []
    with open_bar(progress, budget, "V-optimal design", "image") as bar:
        for _ in range(budget):
            chosen.append(plan.pick())  # read at the end: no pick waits for a GPU
            bar.update(1)
    return candidates[torch.cat(chosen).cpu()]


class VOptimal:
    """Greedy V-optimal design of Bayesian linear regression with unit prior.

    rows: (n, F) float32, the candidates'; moment: (F, F) float64, M, the pool's mean outer product; known: (L, F), rows
    that have labels; noise: lambda. With Sigma the weights' covariance, p_j = phi_j' Sigma phi_j is the variance of a
    prediction, and q_j = phi_j' Sigma M Sigma phi_j over lambda + p_j what a label of it takes off tr(M Sigma), the
    mean variance. Both are followed from pick to pick in products of float32, whose errors stay while q falls, by
    orders of magnitude where noise is small: then they are computed anew.
    """

    def __init__(self, rows: torch.Tensor, moment: torch.Tensor, known: torch.Tensor, noise: float) -> None:
        self.rows, self.moment, self.noise = rows, moment, noise
        outer = known.double().T @ known.double()
        self.sigma = torch.linalg.inv(torch.eye(len(moment), dtype=torch.float64, device=rows.device) + outer / noise)
        self.free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        self.picked = 0
        self.compute()

    def compute(self) -> None:
        """p and q of every candidate, (n,) float64, from Sigma alone."""
        self.p, self.q = (self.forms(some) for some in (self.sigma, self.sigma @ self.moment @ self.sigma))
        self.level = self.q.max()

    def forms(self, matrix: torch.Tensor) -> torch.Tensor:
        """phi_j' A phi_j of every candidate, (n,) float64, for A (F, F)."""
        return torch.cat([((some @ matrix.float()) * some).sum(1).double() for some in self.rows.split(BLOCK)])

    def pick(self) -> torch.Tensor:
        """Number (1,) of the candidate whose label helps most, of equal ones the first; its label is taken as given."""
        if self.picked and self.picked % LOOKED == 0 and bool(FALL * self.q.max() < self.level):
            self.compute()
        self.picked += 1
        gain = (self.q / (self.noise + self.p.clamp(min=0))).masked_fill(~self.free, -torch.inf)
        best = gain.argmax()[None]
        self.free.index_fill_(0, best, False)
        row = self.rows.index_select(0, best)[0].double()
        u = self.sigma @ row
        half = self.moment @ u
        scale = self.noise + row @ u
        a, b = (self.rows @ torch.stack([u, self.sigma @ half], 1).float()).double().unbind(1)
        self.p -= a.square() / scale
        self.q += a.square() * (u @ half) / scale**2 - 2 * a * b / scale
        self.sigma -= torch.outer(u, u) / scale
        return best
