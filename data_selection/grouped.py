"""Which unit centroid is nearest to each unit row, iteration after iteration, without most of the products.

A pool that is seen whole in every iteration is grouped: similar rows go together, and a group multiplies only the
centroids that can win one of its rows. M_gl bounds from above by how much centroid l exceeds (if negative: stays
behind) the winner over the rows of group g. Where the product was taken, M_gl is known; else it follows the centroid:
with the rows' mean m, the largest distance r of a row from m and the centroid's move d_l, Cauchy and Schwarz give

    f . d_l  <=  m . d_l + r |d_l|,

and if no row's winning similarity has fallen by more than h, M_gl grows by at most that + h. A centroid with M_gl < 0
is left out. The result is that of float64 (see similarity.py).

Measured (50,000 x 384 features of Fashion-MNIST, K = 1,000): 200 of the 1,000 centroids are multiplied in the first
iterations, 75 in the 100th. Tried and dropped: a bound per row instead of per group (products of single rows cost ten
times those of groups); taking every product anew from time to time instead of following each centroid (more of them);
applying Cauchy and Schwarz to blocks of principal directions (no fewer); bounds on angles between centroids (exclude
nothing in 384 dimensions); the same for random batches, whose bounds can't be measured (nothing is excluded on features
without tight clusters).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F

from data_selection.narrow import nearest_unit, own_dot
from data_selection.similarity import normalise, product_error

MEMBERS = 16  # centroids whose rows make a group: more make fewer and larger products
TABLE_SIZE = 1 << 22  # groups x centroids at most
BLOCK_ROWS = 1024  # of one product: its operands stay in the cache
FALL = 0.002  # how much more the winners' similarities may fall in an iteration before a group is looked at twice


class GroupedSearch:
    """The search for the resident rows of a pool on the CPU, the same in every iteration.

    spans: (start, stop) of the rows that this process looks at; step: rows of a product at most.
    """

    def __init__(self, pool, spans, step):
        self.table, self.step = pool.resident, step
        ends = torch.tensor([stop - start for start, stop in spans]).cumsum(0).tolist()
        self.first = {start: end - (stop - start) for (start, stop), end in zip(spans, ends)}
        self.places = torch.cat([torch.arange(*span) for span in spans])  # (n,) in the pool
        self.error = product_error(pool.dimensions)
        self.units = None

    def begin(self, units):
        """Find the nearest of the centroids of this iteration, (K, D) float32, for every row."""
        if self.units is None:
            self._group(units)
        else:
            self._follow(units - self.units)
        self.units, before = units, self.top.clone()
        wanted = self.margin >= torch.minimum(-self.fall.clamp(min=0) - FALL, self.margin.amax(1))[:, None]
        todo = range(len(self.blocks))
        while len(todo):
            for group in todo:
                self._search(group, wanted[group].nonzero()[:, 0])
            self.fall = torch.full_like(self.fall, -torch.inf).scatter_reduce_(0, self.group, before - self.top, "amax")
            missed = (self.margin >= -self.fall[:, None]) & ~wanted
            todo = missed.any(1).nonzero()[:, 0].tolist()
            wanted |= missed
        self.margin = torch.where(wanted, self.measured, self.margin + self.fall[:, None])
        self.margin[self.group, self.found] = 2 * self.error
        close = (self.second >= self.top - 2 * self.error).nonzero()[:, 0]  # rounding could have put them there
        for some in close.split(BLOCK_ROWS) if len(close) else ():
            self.own[some], self.found[some] = nearest_unit(self.table.index_select(0, self.rows[some]), units)
        self.index = torch.empty_like(self.found).index_copy_(0, self.order, self.found)
        self.similarity = torch.empty_like(self.own).index_copy_(0, self.order, self.own)

    def nearest(self, rows, start):
        """(similarity, index) of the nearest unit for the rows of the span that begins at `start`."""
        part = slice(self.first[start], self.first[start] + len(rows))
        return self.similarity[part], self.index[part]

    def _group(self, units):
        """Sort the rows into groups by the means of sets of similar centroids, and note what the bounds need."""
        members = max(MEMBERS, -(-(len(units) ** 2) // TABLE_SIZE))
        centres = normalise(torch.stack([units[part].mean(0) for part in bisect(units, members)]))
        parts = [self.table.index_select(0, some) @ centres.T for some in self.places.split(BLOCK_ROWS)]
        near = torch.cat([part.argmax(1) for part in parts]).unique(return_inverse=True)[1]  # (n,) no group is empty
        self.order = near.argsort(stable=True)  # (n,) row at each sorted place
        self.group, self.rows = near[self.order], self.places[self.order]
        sizes = torch.bincount(near)
        ends = sizes.cumsum(0)
        self.blocks = [
            [(first, min(end, first + self.step)) for first in range(start, end, self.step)]
            for start, end in pairwise([0, *ends.tolist()])
        ]
        self.mean = F.embedding_bag(self.rows, self.table, ends - sizes, mode="mean")  # (G, D)
        self.radius = torch.zeros(len(sizes))
        for some, group in zip(self.rows.split(BLOCK_ROWS), self.group.split(BLOCK_ROWS)):
            distance = (self.table.index_select(0, some) - self.mean[group]).norm(dim=1)
            self.radius.scatter_reduce_(0, group, distance, "amax")
        # (n,) each, sorted: the best two products, and own_dot of the winner
        self.top, self.second, self.own = torch.full((3, len(near)), -torch.inf)
        self.found = torch.empty(len(near), dtype=torch.int64)  # the winners
        self.margin = torch.full((len(sizes), len(units)), torch.inf)  # (G, K)
        self.measured, self.fall = torch.empty_like(self.margin), torch.zeros(len(sizes))

    def _follow(self, moves):
        """Let the bounds follow the centroids, moves (K, D)."""
        length = moves.norm(dim=1)  # (K,)
        rounding = self.error * length + 2.0**-21
        self.margin += self.mean @ moves.T + self.radius[:, None] * length + rounding

    def _search(self, group, which):
        """Note the best two of the centroids `which`, (C,) ascending, for a group's rows, and measure their margins."""
        chosen = self.units.index_select(0, which)
        behind = torch.full((len(which),), -torch.inf)
        for start, stop in self.blocks[group]:
            rows = self.table.index_select(0, self.rows[start:stop])
            product = rows @ chosen.T  # (B, C)
            top, place = product.max(1)
            self.own[start:stop] = own_dot(rows, chosen, place)
            product.scatter_(1, place[:, None], -torch.inf)
            self.top[start:stop], self.found[start:stop] = top, which[place]
            self.second[start:stop] = product.amax(1)
            behind = torch.maximum(behind, product.sub_(top[:, None]).amax(0))
        self.measured[group, which] = behind + 2 * self.error


def bisect(units, members):
    """Index tensors of at most `members` similar units each: halved across the longest extent again and again."""
    whole, parts = [torch.arange(len(units))], []
    while whole:
        part = whole.pop()
        if len(part) <= members:
            parts.append(part)
            continue
        centred = units[part] - units[part].mean(0)
        direction = centred[centred.square().sum(1).argmax()]
        for _ in range(3):  # power iteration; which direction comes out changes the speed, never the result
            direction = F.normalize(centred.T @ (centred @ direction), dim=0)
        order = (centred @ direction).argsort(stable=True)
        whole += [part[half] for half in order.tensor_split(2)]
    return parts
