"""Which rows of a pool are the k nearest to each of many rows, exactly, without sorting their products.

Coarse products find all that could be among the k, float64 (see similarity.py) ranks them. The columns of a product are
folded; the k-th largest of the folds' maxima, each of which belongs to another column, is a bound that the k-th
neighbour reaches, so that only a few folds are looked into. Coarse is bfloat16 where the hardware multiplies it faster,
else float32, and the pool's mean is taken off its rows: that moves all products of a row alike, and smaller numbers
round less.

Measured on one Zen 4 core, 24,000 x 384 synthetic features of 200 clusters, k = 15: 4.4 s with bfloat16, 6.3 s without.
"""

import math

import torch

from data_selection.nearest.narrow import BFLOAT16_UNIT, FOLDS, ROUND_UP, Scratch
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import BLOCK_BYTES, CHUNK_ROWS, exact_dot, product_error

MAX_ROWS = 1024  # of a product on the CPU: more gain nothing
ASPECT = 4  # columns per row of a product
PAIRS_PER_ROW = 256  # that may wait for their decision, on average; one needs 20 bytes
EXACT_COST = 256  # to decide a pair takes as long as bfloat16 saves on this many


def rows_at_once(dimensions: int, max_bytes: int, device: torch.device) -> int:
    """Rows b of a product with ASPECT b columns that fits max_bytes together with its operands, at least 1."""
    limit = max_bytes if device.type == "cuda" else min(max_bytes, BLOCK_BYTES)
    operands = 4 * dimensions * (1 + 2.5 * ASPECT)  # bytes per b: rows, and columns as read, centred and rounded
    rows = int((math.sqrt(operands**2 + 32 * ASPECT * limit) - operands) / (16 * ASPECT))  # 8 ASPECT b b: the product
    rows = max(1, min(rows, MAX_ROWS if device.type == "cpu" else 8 * MAX_ROWS))
    return rows - rows % 64 if rows > 64 else rows  # uneven sizes take a third longer


def first_copies(pool: UnitPool, most: int, step: int) -> torch.Tensor:
    """Places of the rows of a pool (N of them) without those equal to `most` earlier ones: ascending int64, CPU.

    Equal rows are found by a hash of their bits and then compared; unequal rows of one hash only keep more of them.
    """
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(1, 1 << 62, (pool.dimensions,), generator=generator).to(pool.device)
    hashes = torch.zeros(pool.count, dtype=torch.int64)
    for start in range(0, pool.count, step):
        rows = pool.read(start, min(pool.count, start + step))
        hashes[start : start + len(rows)] = (rows.view(torch.int32) * factors).sum(1).cpu()
    order = hashes.argsort(stable=True)
    equal = hashes[order].diff() == 0  # (N - 1,) each to the one before it
    for some in equal.nonzero()[:, 0].split(CHUNK_ROWS):
        equal[some] = (pool.take(order[some]) == pool.take(order[some + 1])).all(1).cpu()
    place = torch.arange(pool.count)
    begin = place.clone()
    begin[1:][equal] = 0
    return order[place - begin.cummax(0).values < most].sort().values


class Search:
    """Looks up the k nearest rows in a pool, whose row j is called places[j].

    step: rows of a product, which has ASPECT as many columns. narrow: find candidates by bfloat16 products, until so
    many rows are alike that it does not pay.
    """

    def __init__(self, pool: UnitPool, places: torch.Tensor, k: int, step: int, narrow: bool) -> None:
        self.pool, self.places, self.k, self.step = pool, places.to(pool.device), k, step
        self.most = max(PAIRS_PER_ROW, 4 * k) * step
        parts = [(start, min(pool.count, start + ASPECT * step)) for start in range(0, pool.count, ASPECT * step)]
        self.parts = parts
        self.mean = torch.stack([pool.read(*part).double().sum(0) for part in parts]).sum(0).div(pool.count).float()
        self.reach = max((pool.read(*part) - self.mean).norm(dim=1).max().item() for part in parts) * ROUND_UP
        self.widen(torch.bfloat16 if narrow else torch.float32)

    def widen(self, dtype: torch.dtype) -> None:
        """Take products in dtype from now on."""
        self.scratch = Scratch(dtype, self.pool.device)
        blur = 0.0 if dtype == torch.float32 else 3.02 * BFLOAT16_UNIT  # both operands and the product are rounded
        self.slack = 2.02 * (product_error(self.pool.dimensions) + blur) * self.reach

    def find(self, rows: torch.Tensor, own: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(index, similarity), (B, k) each, for unit rows (B, D); own: (B,) what each is called in the pool itself."""
        pairs = self.candidates(rows, own)
        narrow = self.scratch.memory.dtype != torch.float32
        if narrow and (pairs is None or pairs.shape[1] > len(rows) * (self.k + self.pool.count / EXACT_COST)):
            self.widen(torch.float32)
        if pairs is None:  # so many that memory counts
            parts = [slice(None)] if narrow else [slice(0, len(rows) // 2), slice(len(rows) // 2, None)]
            done = [self.find(rows[part], None if own is None else own[part]) for part in parts]
            return torch.cat([index for index, _ in done]), torch.cat([similarity for _, similarity in done])
        row, place = pairs
        chunks = zip(row.split(CHUNK_ROWS), place.split(CHUNK_ROWS), strict=False)
        dots = [exact_dot(rows.index_select(0, some), self.pool.take(others.cpu())) for some, others in chunks]
        value = torch.cat(dots)
        order = place.argsort()
        order = order[value[order].argsort(descending=True, stable=True)]
        order = order[row[order].argsort(stable=True)]  # by row, then similarity, then place
        counts = torch.bincount(row, minlength=len(rows))
        best = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(self.k, device=rows.device)]  # (B, k)
        return self.places[place[best]], value[best].float()

    def candidates(self, rows: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor | None:
        """(row, place in the pool), (2, P), of all pairs that could be among the row's k, or None: very many."""
        short = rows.to(self.scratch.memory.dtype)
        top = rows.new_full((len(rows), self.k), -torch.inf)  # see close_pairs
        pairs = torch.zeros(2, 0, dtype=torch.int64, device=rows.device)
        values = rows.new_zeros(0)
        for start, stop in self.parts:
            columns = (self.pool.read(start, stop) - self.mean).to(short.dtype)
            product = torch.mm(short, columns.T, out=self.scratch.take(len(rows), len(columns)))  # (B, C)
            if own is not None:
                names = self.places[start : start + len(columns)]
                seat = torch.searchsorted(names, own).clamp_(max=len(names) - 1)
                mine = (names[seat] == own).nonzero()[:, 0]
                product[mine, seat[mine]] = -torch.inf
            most = self.most if len(rows) > 1 else columns.numel()  # one row is always answered
            top, found = close_pairs(product, top, self.slack, most)
            if found is None:
                return None
            row, column = found
            values = torch.cat([values, product[row, column].float()])
            pairs = torch.cat([pairs, torch.stack([row, column + start])], 1)
            if len(values) > self.most:
                close = values >= top[pairs[0], -1] - self.slack
                pairs, values = pairs[:, close], values[close]
                if len(values) > self.most and len(rows) > 1:
                    return None
        return pairs[:, values >= top[pairs[0], -1] - self.slack]


def close_pairs(
    product: torch.Tensor, top: torch.Tensor, slack: float, most: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """(top, pairs): top renewed; (row, column), (P,) each, of the entries that fall short of their row's by < slack.

    product: (B, C). top: (B, k) the largest maxima of folds so far, so that k columns at least reach the last of them.
    pairs is None where more than `most` folds or entries pass.
    """
    k, columns = top.shape[1], product.shape[1]
    folds = max(1, min(FOLDS, columns // max(16, 4 * k)))
    width = columns // folds
    folded = product[:, : width * folds].unflatten(1, (folds, width))
    highest = torch.cat([folded.amax(1), product[:, width * folds :]], 1).float()  # the last stand for themselves
    top = torch.cat([top, highest], 1).topk(k).values
    floor = top[:, -1:].clamp(min=-3) - slack  # (B, 1) above -inf, so that no row meets itself
    passing = highest >= floor
    if int(passing.sum()) > most:
        return top, None
    row, column = passing.nonzero(as_tuple=True)
    many = column < width
    within = folded[row[many], :, column[many]] >= floor[row[many]]  # (P, folds)
    if int(within.sum()) > most:
        return top, None
    place, fold = within.nonzero(as_tuple=True)
    single = column[~many] + width * (folds - 1)
    columns_found = torch.cat([column[many][place] + fold * width, single])
    return top, (torch.cat([row[many][place], row[~many]]), columns_found)
