"""Which unit centroid is nearest to each unit row, iteration after iteration, without most of the products.

A pool that is seen whole in every iteration is grouped: similar rows go together, and a group multiplies only the
centroids that can win one of its rows. M_gl bounds from above by how much centroid l exceeds (if negative: stays
behind) the winner over the rows of group g. Where the product was taken, M_gl is known; else it follows the centroid:
with the rows' mean m, the largest distance r of a row from m and the centroid's move d_l, Cauchy and Schwarz give

    f . d_l  <=  m . d_l + r |d_l|,

and if no row's winning similarity has fallen by more than h, M_gl grows by at most that + h. A centroid with M_gl < 0
is left out. The products are in bfloat16 where that is faster; the few rows that they leave open (another centroid
comes close to the last winner) are decided in float64 (see similarity.py).

Measured (50,000 x 384 features of Fashion-MNIST, K = 1,000): up to 130 of the 1,000 centroids are multiplied in the
first iterations, 80 in the 100th; they leave 40 and 16 % of the rows open, of which 2 and 0.2 % change their winner.
Tried and dropped: float32 products of rows gathered from the pool (a search takes half as long again); a thread for
every group (PyTorch's own threads are slower afterwards); a bound per row instead of per group (products of single rows
cost ten times those of groups); taking every product anew from time to time instead of following each centroid (more of
them); applying Cauchy and Schwarz to blocks of principal directions (no fewer); bounds on angles between centroids
(exclude nothing in 384 dimensions); the same for random batches, whose bounds can't be measured (nothing is excluded on
features without tight clusters).
"""

from functools import reduce
from itertools import pairwise

import torch
import torch.nn.functional as F

from data_selection.nearest.narrow import ROUND_UP, Scratch, own_dot, pair_dots, settle
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import normalise, product_error

MEMBERS = 16  # centroids whose rows make a group: more make fewer and larger products
TABLE_SIZE = 1 << 22  # groups x centroids at most
ROWS, COLUMNS = 128, 32  # sizes of products are multiples: each new pair is compiled first, 1 ms and 0.6 MB
BLOCK_ROWS = 1024  # of one product: its operands stay in the cache
SPARE_ROWS = BLOCK_ROWS // 4  # that `shape` adds to a block at most
FEW_UNITS = 2048  # more take so long that their products' rows need not be held
DOUBT = 2.04  # 2, as a difference has two errors, and a little for what the formulas leave out
OPEN_PAIRS = 1 << 16  # that wait for their decision


class GroupedSearch:
    """The search for the resident rows of a pool on the CPU, the same in every iteration.

    spans: (start, stop) of the rows that this process looks at; step: rows of a product at most; dtype: of products;
    max_bytes: of a copy of the rows in this dtype (else they are gathered again and again).
    """

    def __init__(
        self, pool: UnitPool, spans: list[tuple[int, int]], step: int, dtype: torch.dtype, max_bytes: float
    ) -> None:
        assert pool.resident is not None
        self.table, self.spans, self.step, self.dtype = pool.resident, spans, step, dtype
        self.count, self.error = pool.count, product_error(pool.dimensions)
        self.rounding, self.max_bytes = torch.finfo(dtype).eps / 2, max_bytes
        self.units = torch.empty(0, pool.dimensions)  # of the last iteration
        self.chosen, self.gathered, self.narrow = Scratch(dtype), Scratch(dtype), Scratch(dtype)
        self.wide = Scratch(torch.float32)

    def begin(self, units: torch.Tensor) -> None:
        """Find the nearest of the centroids of this iteration, (K, D) float32, for every row."""
        if not len(self.units):
            self._group(units)
        self._follow(units)
        mean = units.new_full((1, len(units)), 1 / len(units)) @ units
        off = reach = torch.zeros(())
        for part, short in zip(units.split(BLOCK_ROWS), self.short.split(BLOCK_ROWS), strict=True):
            centred = part - mean  # what all have in common decides nothing, and smaller numbers round less
            short.copy_(centred)
            reach = torch.maximum(reach, centred.norm(dim=1).max() * ROUND_UP)
            off = torch.maximum(off, centred.sub_(short).norm(dim=1).max() * ROUND_UP)
        reach = reach + off
        blur = self.rows_off * reach + off + 3 * self.error  # (n,) how far the sums of a product can be off
        self.doubt = DOUBT * blur
        held = self.index[self.order]
        wanted = self.margin >= 0
        for group, some in enumerate(wanted):
            self._search(group, some.nonzero()[:, 0])
        self._decide()
        for winners in (held, self.index[self.order]):  # old ones were left out of the maxima
            self.margin[self.group, winners] = 2 * self.error

    def nearest(self, rows: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(similarity, index) of the nearest unit for the rows of the span that begins at `start`."""
        part = slice(start, start + len(rows))
        return self.similarity[part], self.index[part]

    def _group(self, units: torch.Tensor) -> None:
        """Sort the rows into groups by the means of sets of similar centroids, and note what the bounds need."""
        mine = torch.cat([torch.arange(*span) for span in self.spans])  # (n,) places in the pool
        sets = bisect(units, max(MEMBERS, -(-(len(units) ** 2) // TABLE_SIZE)))
        centres = normalise(torch.stack([units[some].mean(0) for some in sets]))
        near = torch.empty_like(mine)  # filled in place: small results kept in between would scatter the large ones
        for some, best in zip(mine.split(BLOCK_ROWS), near.split(BLOCK_ROWS), strict=True):
            best.copy_((self.table.index_select(0, some) @ centres.T).argmax(1))
        order = near.argsort(stable=True)
        self.order, near = mine[order], near[order]
        self.group = near.unique(return_inverse=True)[1]  # no group is empty
        # (N,) each, by place in the pool: the winner, at first any centroid, and its similarity
        self.index, self.similarity = torch.zeros(self.count, dtype=torch.int64), torch.zeros(self.count)
        self.index[self.order] = torch.stack([some[0] for some in sets])[near]
        sizes = torch.bincount(self.group)
        ends = sizes.cumsum(0)
        self.bounds = list(pairwise([0, *ends.tolist()]))
        parts = [slice(start, start + BLOCK_ROWS) for start in range(0, len(near), BLOCK_ROWS)]
        hold = len(units) <= FEW_UNITS and len(near) * self.table.shape[1] * self.dtype.itemsize <= self.max_bytes
        self.low = torch.zeros(len(near) + SPARE_ROWS, self.table.shape[1], dtype=self.dtype) if hold else None
        self.rows_off = torch.empty(len(near))
        self.mean = torch.zeros(len(sizes), self.table.shape[1])  # (G, D)
        for part in parts:
            rows = self.table.index_select(0, self.order[part])
            if self.low is not None:
                self.low[part.start : part.start + len(rows)] = rows
            self.rows_off[part] = (rows - rows.to(self.dtype).float()).norm(dim=1) * ROUND_UP
            self.mean.index_add_(0, self.group[part], rows)
        self.mean.div_(sizes[:, None])
        self.radius = torch.zeros(len(sizes))
        for part in parts:
            distance = (self.table.index_select(0, self.order[part]) - self.mean[self.group[part]]).norm(dim=1)
            self.radius.scatter_reduce_(0, self.group[part], distance * ROUND_UP, "amax")
        self.margin = torch.full((len(sizes), len(units)), torch.inf)  # (G, K)
        self.short = torch.empty(units.shape, dtype=self.dtype)  # the centroids of this iteration, centred
        self.pairs = torch.empty(2, OPEN_PAIRS + max(OPEN_PAIRS, len(units)), dtype=torch.int64)
        self.open = 0  # of the pairs (row, centroid), to be decided
        self.units = units

    def _follow(self, units: torch.Tensor) -> None:
        """Let the bounds follow the centroids, and compute the similarities of the last winners anew."""
        before = self.similarity.clone()
        for start, stop in self.spans:
            part = slice(start, stop)
            self.similarity[part] = own_dot(self.table[part], units, self.index[part])
        fall = torch.full((len(self.mean),), -torch.inf)  # it is less where another one wins
        fall.scatter_reduce_(0, self.group, (before - self.similarity)[self.order], "amax")
        parts = (table.split(BLOCK_ROWS) for table in (units, self.units))
        for now, last, margin in zip(*parts, self.margin.split(BLOCK_ROWS, dim=1), strict=True):
            moves = now - last  # (k, D)
            length = moves.norm(dim=1) * ROUND_UP
            margin.addmm_(self.mean, moves.T).addcmul_(self.radius[:, None], length)
            margin.add_(self.error * (length + 2) + 2.0**-21).add_(fall[:, None])  # similarities and sums are rounded
        self.units = units

    def _search(self, group: int, which: torch.Tensor) -> None:
        """Compare the last winners of a group's rows with the centroids `which`, (C,), and measure their margins.

        The sums of a product are off by `blur`, and it is rounded once more: twice both is the doubt of a difference.
        """
        padded = F.pad(which, (0, shape(len(which), COLUMNS) - len(which)))
        short = torch.index_select(self.short, 0, padded, out=self.chosen.take(len(padded), self.short.shape[1]))
        column = torch.empty(len(self.units), dtype=torch.int64)
        column.index_copy_(0, which, torch.arange(len(which)))
        behind: list[torch.Tensor] = []
        most: list[torch.Tensor] = []
        first, last = self.bounds[group]
        for start in range(first, last, self.step):
            part = slice(start, min(last, start + self.step))
            rows = self.order[part]
            low = self._low(part)
            whole = torch.mm(short, low.T, out=self.narrow.take(len(short), len(low)))
            product = self.wide.take(len(which), part.stop - start)  # (C, B)
            product.copy_(whole[: len(which), : part.stop - start])  # maxima of float32 are found faster
            held = column.index_select(0, self.index.index_select(0, rows))[None]
            winner = product.gather(0, held)[0]
            rival = product.scatter_(0, held, -torch.inf).amax(0)
            top = torch.maximum(winner, rival)
            doubt = torch.add(self.doubt[part], top.abs(), alpha=DOUBT * self.rounding)
            unsure = (rival + doubt >= top).nonzero()[:, 0]
            behind.append(product.sub_(top).amax(1))
            most.append(doubt.max())
            for some in unsure.split(max(1, OPEN_PAIRS // len(which))):
                unit, row = (product.index_select(1, some) >= -doubt[some]).nonzero(as_tuple=True)
                new = self.pairs[:, self.open : self.open + len(row)]
                torch.index_select(rows, 0, some[row], out=new[0])
                torch.index_select(which, 0, unit, out=new[1])
                self.open += len(row)
                if self.open > OPEN_PAIRS:
                    self._decide()
        lead, slack = reduce(torch.maximum, behind), reduce(torch.maximum, most)  # (C,) 0 or below, and a scalar
        self.margin[group].index_copy_(0, which, lead * (1 - 1.02 * self.rounding) + slack)

    def _low(self, part: slice) -> torch.Tensor:
        """Sorted rows of a slice in the products' precision, as many as make their shape: the last ones are any."""
        size = shape(part.stop - part.start, ROWS)
        if self.low is not None:
            return self.low[part.start : part.start + size]
        low = self.gathered.take(size, self.table.shape[1])
        low[: part.stop - part.start] = self.table.index_select(0, self.order[part])
        return low

    def _decide(self) -> None:
        """Let the pairs noted so far compete with the last winners in float64."""
        if self.open:
            row, unit = self.pairs[:, : self.open]
            close = pair_dots(self.table, self.units, row, unit) >= self.similarity[row] - 2 * self.error
            row, unit = row[close].repeat(2), torch.cat([unit[close], self.index[row[close]]])
            best = torch.full((self.count,), -torch.inf, dtype=torch.float64)
            settle(self.table, self.units, row, unit, best, self.index)
            row = row.unique()
            self.similarity[row] = pair_dots(self.table, self.units, row, self.index[row])
        self.open = 0


def shape(count: int, least: int) -> int:
    """The size of a product for `count` rows or columns, at least as many: a power of two or one and a half."""
    step = max(least, (1 << (count - 1).bit_length()) // 4)
    return -(-count // step) * step


def bisect(units: torch.Tensor, members: int) -> list[torch.Tensor]:
    """Index tensors of at most `members` similar units each: halved across the longest extent again and again."""
    whole = [torch.arange(len(units))]
    parts: list[torch.Tensor] = []
    while whole:
        part = whole.pop()
        if len(part) <= members:
            parts.append(part)
            continue
        centred = units[part]
        centred -= centred.mean(0)
        direction = centred[centred.square().sum(1).argmax()]
        for _ in range(3):  # power iteration; which direction comes out changes the speed, never the result
            direction = F.normalize(centred.T @ (centred @ direction), dim=0)
        order = (centred @ direction).argsort(stable=True)
        whole += [part[half] for half in order.tensor_split(2)]
    return parts
