"""BiLAF's samples against its cores: pseudo-classes, and the other cores that a sample may border on.

Measured on two Zen 4 cores: assigning 1,281,167 x 384 samples to 6,405 cores takes 34 s with bfloat16 products, 92 s
with float32 alone (from 46,405 samples).
"""

from collections.abc import Callable

import torch

from data_selection.common.distributed import World
from data_selection.common.kinds import Features
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.bilaf.classes import Batch, grid_unit, key_base, rows_at
from data_selection.methods.configs import BiLAFConfig
from data_selection.nearest.narrow import (
    BFLOAT16_UNIT,
    FOLDS,
    ROUND_UP,
    Scratch,
    floor_bits,
    narrow_is_faster,
    pair_dots,
    pairs_above,
)
from data_selection.nearest.similarity import CHUNK_ROWS, normalise, product_error, row_blocks, take_rows

NO_RIVAL = 1e9 + 7  # the distance to "the other cores" where there is one core only, as in the released program
FEW_CORES = 512  # so many are compared with every member in float64 faster than sorted out before
MANY_CORES = 2048  # so many are worth a coarse product before
BLOCK_BYTES = 4 << 20  # for coordinates of pairs or distances to all cores: what the cache holds
MOST_PAIRS = 64  # per row and beyond those asked for; with more, a float32 product is cheaper


class CoreSearch:
    """The cores nearest to any rows: a float32 product, and float64 for the rows that it cannot decide.

    centre: (K, D) float64 cores minus their mean; short vectors round less. mean: (D,) float64.
    """

    def __init__(self, features: Features, cores: torch.Tensor, config: BiLAFConfig, device: torch.device) -> None:
        centre = rows_at(features, cores, device, config.normalised)
        self.mean = centre.mean(0)
        self.centre = centre - self.mean
        self.square = self.centre.square().sum(1)  # (K,)
        self.narrow = self.centre.float()
        self.half = self.narrow.square().sum(1) / 2  # (K,)
        self.reach = self.half.max().mul(2).sqrt()
        self.shift = self.mean.norm().float() * 2.0**-20  # how far rounding moves rows that are far from the origin
        coarse = device.type == "cpu" and len(cores) >= MANY_CORES and narrow_is_faster()
        self.coarse = Coarse(self.narrow, self.half) if coarse else None

    def nearest(self, rows: torch.Tensor, count: int, exact: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(B, count) numbers of the `count` nearest cores; equal distances go to the lowest number.

        rows: (B, D) float32. exact: exact(positions) gives some of the same rows in float64. The first core and which
        cores are among the `count` are decided as in float64; those in between are in the order of float32.
        """
        rows = rows - self.mean.float()
        most = min(count + 1, len(self.half))
        best = self.coarse.nearest(rows, most) if self.coarse else None
        if best is None:  # argmin |r - c|^2 = argmax r.c - |c|^2 / 2
            best = torch.addmm(-self.half, rows, self.narrow.T).topk(most, dim=1)
        value, index = best
        length = rows.square().sum(1).sqrt() + self.reach  # (B,)
        blur = self.reach * (2.0**-18 * length + self.shift)  # (B,) far above the rounding error
        gap = (value[:, :-1] - value[:, 1:])[:, [0, -1]] if value.shape[1] > 1 else value.new_empty(len(rows), 0)
        index = index[:, :count]
        unsure = (gap <= blur[:, None]).any(1).nonzero()[:, 0]
        for part in unsure.split(CHUNK_ROWS):
            index[part] = self._nearest_exact(exact(part) - self.mean, count)
        return index

    def others_of(self, rows: torch.Tensor, own: torch.Tensor, count: int, max_bytes: int) -> torch.Tensor:
        """(B, count) numbers of the nearest cores but the own (B,) to float64 rows (B, D) minus the mean."""
        step = max(1, min(2 * CHUNK_ROWS, max_bytes // (16 * len(self.half))))
        blocks = (rows + self.mean).split(step)
        return others(torch.cat([self.nearest(block.float(), count + 1, block.__getitem__) for block in blocks]), own)

    def _nearest_exact(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """The same of rows (B, D) in float64 minus the mean, in order."""
        centre = self.centre
        square = torch.addmm(self.square, rows, centre.T, alpha=-2) + rows.square().sum(1, keepdim=True)
        unit = grid_unit(square.amax(1, keepdim=True), bits=34)
        key = (square * unit**2).round_() * key_base(len(centre)) + torch.arange(len(centre), device=rows.device)
        return key.topk(count, dim=1, largest=False).indices


class Coarse:
    """The nearest of many cores (K, D): bfloat16 products (see narrow.py) find candidates, float32 compares them."""

    def __init__(self, cores: torch.Tensor, half: torch.Tensor) -> None:
        self.cores, self.half, self.scratch = cores, half, Scratch()
        lift = half.max() - half  # (K,) which keeps the products that matter positive
        short, high = cores.bfloat16(), lift.bfloat16()
        low = (lift - high.float()).bfloat16()
        self.table = torch.cat([short, high[:, None], low[:, None]], 1)  # (K, D + 2)
        self.error = (cores - short.float()).norm(dim=1).max()
        self.reach, self.lift = cores.norm(dim=1).max(), lift.max()

    def nearest(self, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(value, index), (B, count) each, of the highest r.c - |c|^2 / 2 of rows (B, D); None: too many are close."""
        short, length = rows.bfloat16(), rows.norm(dim=1)
        error = (rows - short.float()).norm(dim=1) * self.reach + 1.01 * length * self.error + self.lift * 2.0**-15
        error = ROUND_UP * (error + product_error(self.table.shape[1]) * (length * self.reach + self.lift))  # (B,)
        product = self.scratch.take(len(rows), len(self.table))  # (B, K)
        bits = torch.mm(torch.cat([short, short.new_ones(len(rows), 2)], 1), self.table.T, out=product).view(
            torch.int16
        )
        folds = max(1, min(FOLDS, len(self.table) // (2 * count)))
        width = len(self.table) // folds
        highest = bits[:, : width * folds].view(len(rows), folds, width).amax(1)
        least = highest.topk(count, dim=1).values[:, -1].contiguous().view(torch.bfloat16).float()  # `count` reach it
        floor = floor_bits(least * (1 - BFLOAT16_UNIT), 2 * error)
        pairs = pairs_above(bits, lambda _: floor, (MOST_PAIRS + count) * len(rows))
        if pairs is None:
            return None
        row, order = pairs[0].sort(stable=True)
        core = pairs[1][order]
        found = torch.bincount(row, minlength=len(rows))  # (B,)
        place = torch.arange(len(row)) - (found.cumsum(0) - found)[row]
        index = torch.zeros(len(rows), int(found.max()), dtype=torch.int64)
        value = torch.full(index.shape, -torch.inf)
        index[row, place] = core
        value[row, place] = pair_dots(rows, self.cores, row, core) - self.half[core]
        value, best = value.topk(count, dim=1)
        return value, index.gather(1, best)


def assign(
    features: Features,
    kept: torch.Tensor,
    cores: torch.Tensor,
    config: BiLAFConfig,
    world: World,
    max_bytes: int,
    progress: OpenBar | None = None,
    rivals: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pseudo-class of every sample that is kept: the nearest core, and the `rivals` nearest of the others.

    features: (N, D). kept: (n,) pool indices, ascending; cores: (K,), some of them. max_bytes: alike on all ranks.
    Returns own (N,) int64, -1 where a sample is not kept, and rival (N, T) int32 on the CPU, core numbers
    0..K-1, T = rivals or K - 1 where that is less. Equal distances go to the lowest; a core is always in its own class;
    with one core the rival is that core; of more rivals than one only the set is exact, not the order.
    Source: c(x) = argmin_j D(f_x, f_cj), section 3.3. Cost: N x K x D, in blocks; memory: one block and N x T.
    """
    n, k, device = len(kept), len(cores), world.device
    search = CoreSearch(features, cores, config, device)
    count = min(rivals + 1, k)
    near = torch.zeros(len(features), count, dtype=torch.int32, device=device)
    limit = max(2 * BLOCK_BYTES, 8 * CHUNK_ROWS * (k + features.shape[1])) if device.type == "cpu" else 64 << 20
    blocks = row_blocks(n, k + features.shape[1], min(max_bytes // 8, limit))[world.rank :: world.size]
    with open_bar(progress, n, "BiLAF assign", "row") as bar:
        for start, stop in blocks:
            ids = kept[start:stop]
            rows = take_rows(features, ids, device)  # (B, D)
            rows = normalise(rows) if config.normalised else rows

            def exact(part: torch.Tensor, ids: torch.Tensor = ids) -> torch.Tensor:
                return rows_at(features, ids[part.cpu()], device, config.normalised)

            near[ids.to(device)] = search.nearest(rows, count, exact).int()
            bar.update((stop - start) * world.size)
    near = world.sum_(near).cpu()
    own = torch.full((len(features),), -1)
    own[kept] = near[kept, 0].long()
    own[cores] = torch.arange(k)
    return own, others(near, own)


def others(near: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """near (N, C) without each row's own core, or, where that is not among them, without the last: (N, C - 1).

    One column stays as it is.
    """
    if near.shape[1] == 1:
        return near
    drop = near == own[:, None]
    drop[:, -1] |= ~drop.any(1)
    return near[~drop].reshape(len(near), -1)


def rival_number(count: torch.Tensor, cores: int, config: BiLAFConfig) -> torch.Tensor:
    """(K,) how many of the other cores a class's members may border on, of the samples wanted (K,) of each class.

    1 for the `nearest` opponent. For `all`, count - 1: by then at least one of the nearest was never penalised, and no
    farther core can score lower than it, so that the minimum over them is the minimum over all.
    """
    return torch.ones_like(count) if config.opponent == "nearest" else (count - 1).clamp(1, max(1, cores - 1))


def find_rivals(
    batch: Batch,
    local: torch.Tensor,
    search: CoreSearch,
    rival: torch.Tensor,
    count: torch.Tensor,
    config: BiLAFConfig,
    max_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The other cores that each kept member may border on: (ids, distance in the batch's unit), each (G, n, T).

    local: (G, n) kept members. search: the CoreSearch of these cores. rival: (N, R) the nearest other cores as assign
    gives them. count: (G,) samples wanted. T: the largest rival_number. Nearest first, equal ones by number.
    """
    device, k = local.device, len(search.centre)
    ids = batch.ids.to(device).gather(1, local)  # (G, n)
    if k == 1:
        return torch.zeros_like(ids)[:, :, None], (NO_RIVAL * batch.unit).expand(*ids.shape, 1)
    labels = batch.labels.to(device)
    most = int(rival_number(count, k, config).max())
    own, unit = (each.repeat_interleave(ids.shape[1]) for each in (labels, batch.unit[:, 0, 0]))  # (G n,)
    table, place = batch.pairs.x.flatten(0, 1), batch.pairs.flat(local)

    def rows_of(some: slice) -> torch.Tensor:  # (B, D), made in parts that stay in the cache
        rows = table.index_select(0, place[some]).div_(unit[some, None])
        return rows.add_(search.centre.index_select(0, own[some]))

    if most <= rival.shape[1]:
        near = rival[ids.flatten().cpu()].to(device, torch.int64)  # (G n, R)
    elif k > FEW_CORES:
        near = search.others_of(rows_of(slice(None)), own, most, max_bytes)
    else:
        near = None
    step = max(1, BLOCK_BYTES // (8 * (k if near is None else near[0].numel() * search.centre.shape[1])))
    parts = [
        _nearest_of(search, rows_of(some), own[some], unit[some, None], None if near is None else near[some], most)
        for some in (slice(start, start + step) for start in range(0, len(own), step))
    ]
    numbers, distance = (torch.cat(part).view(*ids.shape, most) for part in zip(*parts, strict=True))
    return numbers, distance


def _nearest_of(
    search: CoreSearch,
    rows: torch.Tensor,
    own: torch.Tensor,
    unit: torch.Tensor,
    near: torch.Tensor | None,
    most: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(numbers, distance), (B, most), of the nearest of the cores near (B, C), None: of all but own (B,), to rows."""
    if near is None:
        square = torch.addmm(search.square, rows, search.centre.T, alpha=-2) + rows.square().sum(1, keepdim=True)
        square.scatter_(1, own[:, None], torch.inf)
    else:
        near = near.sort(dim=1).values
        apart = search.centre.index_select(0, near.flatten()).view(*near.shape, -1).sub_(rows[:, None])  # (B, C, D)
        square = apart.square_().sum(2)
    square = square.mul_(unit**2).round_()
    lowest, column = square.topk(min(most + 1, square.shape[1]), dim=1, largest=False)
    tied = (lowest[:, 1:] == lowest[:, :-1]).any(1).nonzero()[:, 0]  # also with the first one left out
    lowest, column = lowest[:, :most], column[:, :most]
    lowest[tied], order = (part[:, :most] for part in square[tied].sort(dim=1, stable=True))  # the lower number first
    column[tied] = order
    return column if near is None else near.gather(1, column), lowest.clamp_(min=0).sqrt_()
