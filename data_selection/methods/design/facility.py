"""Facility location: the images that are most like the rest of the pool, each row counted by its nearest one."""

from collections.abc import Callable, Sequence

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.configs_design import (
    CUT,
    SERVED,
    FacilityConfig,
    MaxHerdingConfig,
    UncertaintyHerdingConfig,
)
from data_selection.methods.design.kernels import Kernel, draw, sampled_distance
from data_selection.nearest.pool_reader import UnitPool, pool_device, working_memory
from data_selection.nearest.similarity import block_rows, chunk_bytes

REFRESHED = 64  # candidates whose gain is computed together
STEPS = 32  # on a GPU between two looks at how many are chosen


@full_float32()
def select_facility(
    features: Features,
    budget: int,
    *,
    config: FacilityConfig = FacilityConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """Greedy maximum of sum_i max_j K(x_i, x_j) over clients i and chosen j; (budget,) int64, in order of choice.

    K is the sum of Gaussian kernels of several widths between unit rows (Nemhauser et al. 1978 for the greedy; Minoux
    1978 for its lazy form, which gives the same list). Clients and, in large pools, candidates are random rows; no
    client is excluded, labelled rows count as chosen. Once no candidate adds anything the rest is drawn at random.
    Working memory is bounded; a memory map is read in blocks.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    pool = UnitPool(features, kept, device, working_memory(None, device))
    known, free = (torch.searchsorted(kept, ids) for ids in (labelled, candidates))
    chosen = kept[cover(pool, budget, known, free, config, seed, progress)]
    return check_selection(chosen, budget, len(features), labelled, excluded)


@full_float32()
def select_maxherding(
    features: Features,
    budget: int,
    *,
    config: MaxHerdingConfig = MaxHerdingConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """MaxHerding (Bae et al. 2024, "Generalized Coverage for More Robust Low-Budget Active Learning"); as facility.

    Facility location with one Gaussian kernel. Deviations: its width is the pool's median distance and not 1, and
    clients are a random part of a large pool.
    """
    return select_facility(
        features,
        budget,
        config=config,
        labelled=labelled,
        excluded=excluded,
        seed=seed,
        device=device,
        progress=progress,
    )


def cover(
    pool: UnitPool,
    budget: int,
    labelled: torch.Tensor,
    candidates: torch.Tensor,
    config: FacilityConfig,
    seed: int,
    progress: OpenBar | None,
) -> torch.Tensor:
    """Positions in the pool of select_facility's choice, (budget,); labelled, candidates: ascending positions."""
    generator = torch.Generator().manual_seed(seed)
    width = config.width * sampled_distance(pool, generator)
    kernel = Kernel(tuple(width / 2**halved for halved in range(config.scales)))
    weights = [torch.ones(pool.count)]
    return cover_in_turn(pool, budget, labelled, candidates, kernel, weights, config, generator, progress)


def cover_in_turn(
    pool: UnitPool,
    budget: int,
    labelled: torch.Tensor,
    candidates: torch.Tensor,
    kernel: Kernel,
    weights: Sequence[torch.Tensor],
    config: FacilityConfig | UncertaintyHerdingConfig,
    generator: torch.Generator,
    progress: OpenBar | None,
) -> torch.Tensor:
    """Positions (budget,) that Cover chooses among random candidates for random clients, in order of choice.

    weights: (n,) each, of the pool's rows, not negative, those of 0 no clients. The first count until no candidate adds
    anything, then the next, and after all of them the rest is drawn at random: in a cover that is complete all gains
    are 0, and the order of the pool would choose.
    """
    order = torch.randperm(pool.count, generator=generator)
    candidates = candidates[draw(max(config.candidates, CUT * budget), len(candidates), generator)]
    last = candidates[torch.randperm(len(candidates), generator=generator)]
    count, chosen = max(config.clients, SERVED * (len(labelled) + budget)), labelled[:0]
    with open_bar(progress, budget, "facility location", "image") as bar:
        for each in weights:
            clients = order[each[order] > 0][:count].sort().values
            if len(clients) and len(chosen) < budget:
                known = torch.cat([labelled, chosen]).sort().values
                free = candidates[~torch.isin(candidates, chosen)]  # else rounding could make one add something
                turn = Cover(pool, free, pool.take(clients), each[clients].to(pool.device), kernel, known, progress)
                chosen = torch.cat([chosen, turn.choose(budget - len(chosen), bar.update)])
                del turn  # before the next one takes as much memory
    return torch.cat([chosen, last[~torch.isin(last, chosen)][: budget - len(chosen)]])


class Cover:
    """Greedy maximum of sum_i w_i max_j K(client_i, chosen_j), j a candidate, one by one.

    candidates, labelled: ascending positions in the pool, the second count as chosen. clients: (C, D) unit rows;
    weights: (C,), not negative. The candidates' kernels (n, C) are kept where half of the free memory's quarter holds
    them, and computed again and again where not.
    """

    def __init__(
        self,
        pool: UnitPool,
        candidates: torch.Tensor,
        clients: torch.Tensor,
        weights: torch.Tensor,
        kernel: Kernel,
        labelled: torch.Tensor,
        progress: OpenBar | None = None,
    ) -> None:
        self.pool, self.candidates, self.clients, self.kernel = pool, candidates, clients, kernel
        if pool.resident is not None:  # else rows are read by the host
            self.candidates = candidates.to(pool.device)
        self.weights = weights.double()
        self.best = torch.zeros(len(clients), device=pool.device)  # of each client, its kernel with the nearest chosen
        step = block_rows(len(clients), chunk_bytes(pool.device))
        for start in range(0, len(labelled), step):
            known = kernel(pool.take(labelled[start : start + step]), clients)
            self.best = torch.maximum(self.best, known.amax(0))
        shape = (len(candidates), len(clients))
        fits = 4 * shape[0] * shape[1] <= working_memory(None, pool.device) / 2
        self.table = torch.empty(shape, device=pool.device) if fits else None
        self.bound = torch.empty(len(candidates), dtype=torch.float64, device=pool.device)  # of each one's gain
        self.fresh = torch.zeros_like(self.bound, dtype=torch.bool)  # bounds that are gains now
        with open_bar(progress, len(candidates), "kernels", "image") as bar:
            for start in range(0, len(candidates), step):
                part = slice(start, start + step)
                rows = kernel(pool.take(self.candidates[part]), clients)
                if self.table is not None:
                    self.table[part] = rows
                self.bound[part] = self.gains(rows)
                bar.update(len(rows))

    def gains(self, rows: torch.Tensor) -> torch.Tensor:
        """What candidates of these kernels (b, C) would add, (b,) float64."""
        return (rows - self.best).clamp_(min=0).double() @ self.weights

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Kernels (b, C) of candidates by their numbers (b,)."""
        if self.table is not None:
            return self.table[numbers]
        return self.kernel(self.pool.take(self.candidates[numbers.to(self.candidates.device)]), self.clients)

    def choose(self, budget: int, told: Callable[[int], object]) -> torch.Tensor:
        """The positions of at most `budget` candidates, in order of choice: fewer where no other adds anything.

        told: is called with how many more are chosen.
        """
        chosen = torch.empty(budget + 1, dtype=torch.int64, device=self.bound.device)  # the last: of no choice
        count, before, more = torch.zeros(1, dtype=torch.int64, device=self.bound.device), 0, True
        while before < budget and more:
            for _ in range(1 if self.bound.device.type == "cpu" else STEPS):
                self.step(chosen, count)
            now, more = torch.cat([count, (self.bound > 0).any()[None]]).tolist()
            now = min(budget, now)
            told(now - before)
            before = now
        return self.candidates.cpu()[chosen[:before].cpu()]

    def step(self, chosen: torch.Tensor, count: torch.Tensor) -> None:
        """Renew the largest bounds, and choose the candidate that adds most, of equal ones the first, if it is certain.

        Gains only shrink: one that is the largest of all bounds, computed for the present choice, is the largest gain.
        chosen: (budget + 1,), count: (1,) how many are chosen, both changed. The host waits for nothing.
        """
        bound, fresh = self.bound, self.fresh
        stale = bound.masked_fill(fresh, -torch.inf).topk(min(REFRESHED, len(bound))).indices.sort().values
        done = fresh[stale] | bound[stale].isinf()  # of the few that are left some
        bound[stale] = torch.where(done, bound[stale], self.gains(self.rows(stale)))
        fresh[stale] = True
        top = bound.max()
        certain = ((top > 0) & (fresh | (bound < top)).all())[None]
        pick = bound.argmax()[None]
        chosen[torch.where(certain, count, len(chosen) - 1).clamp_(max=len(chosen) - 1)] = pick
        count += certain
        bound[pick] = torch.where(certain, -torch.inf, top)
        fresh &= ~certain
        self.best = torch.where(certain, torch.maximum(self.best, self.rows(pick)[0]), self.best)
