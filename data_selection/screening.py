"""Which unit centroid is nearest to each unit row, iteration after iteration, without most of the products.

Screening. In the basis of the pool's principal directions, f . u <= (product of the first p coordinates) + (sum over
blocks of the other coordinates of |f_b| |u_b|) by Cauchy and Schwarz: one product of p + a few columns instead of D
bounds every pair from above. Only pairs whose bound reaches the row's similarity to its present centroid are
multiplied out, in float64 (exact_dot). p grows and shrinks with the number of pairs that pass.
Skipping. The largest bound of a row over the other centroids, plus the most that any centroid has moved since along
this row (again block by block), shows for many rows that nothing can have overtaken: they are not even screened.
The eighth of the centroids that moved farthest (most stand still in the end) is bounded anew instead.
Both are exact: the result is that of best_reference.

Measured on one core, 50,000 x 384 random-convolution features, K = 1,000, in ns per (row, centroid): float32 product
9.5, its maximum 0.9, bfloat16 product 4.4; product of 64 columns 1.9, its maximum 0.1. Rows screened: 100 % in the
10th iteration, 60 % in the 50th, 25 % in the 190th; a third of the centroids as runners costs what it saves. Tried and
dropped: bfloat16 for the first p columns (saves 0.4, needs offsets in three parts), bounds that only use the length of
a centroid's move (98 % of the rows fail them in the first iterations, 70 % in the 50th), candidate lists (gathering a
pair costs as much as 90 dense ones), int8 (no faster than bfloat16).
"""

import torch

from data_selection.similarity import (
    BLOCK_BYTES,
    CHUNK_ROWS,
    best_reference,
    block_rows,
    exact_dot,
    product_error,
    recheck,
)

EDGES = (0, 1, 4, 16, 32, 48, 64, 96, 128)  # p is one of these; also borders of the blocks
SAMPLE_ROWS = 16384  # for the principal directions
PAIR_COST = 30_000  # a pair multiplied out costs as much as this many column products of the dense bound
RETRY = 25  # iterations after which a pool that needed every coordinate is tried with fewer
RUNNERS = 8  # one centroid in so many is a runner
ROUND_UP = 1 + 2.0**-20  # float64 norms stay upper bounds as float32


def own_dot(rows, units, index):
    """Similarity of each row to its unit `index`, (B,) float32; the same bits however rows are cut into blocks."""
    parts = zip(rows.split(CHUNK_ROWS), index.split(CHUNK_ROWS))
    return torch.cat([(units[which] * some).sum(1) for some, which in parts])


def pair_dots(rows, units, row, unit):
    """rows[row] . units[unit] for pairs (P,), float32."""
    parts = zip(row.split(CHUNK_ROWS), unit.split(CHUNK_ROWS))
    return torch.cat([(rows[some] * units[which]).sum(1) for some, which in parts])


class DirectSearch:
    """Every product, in blocks: for CUDA, where it is cheap and nothing may wait for the host, and for small pools."""

    def __init__(self, step):
        self.step = step

    def begin(self, units):
        self.units = units

    def nearest(self, rows, start=None):
        """(similarity, index) of the nearest unit for rows (B, D), both (B,): float32 and int64."""
        index = torch.cat([best_reference(some, self.units)[1] for some in rows.split(self.step)])
        return own_dot(rows, self.units, index), index


class ScreenedSearch:
    """Screening, and skipping where rows return in every iteration (count: their number; None for random batches)."""

    def __init__(self, sample, count, step):
        dimensions = sample.shape[1]
        directions = torch.linalg.eigh(sample.double().T @ sample.double())[1]
        self.basis = directions.flip(1)  # (D, D) float64, largest variance first
        self.edges = [edge for edge in EDGES if edge < dimensions]
        self.edges += [edge for edge in (160, 224, 320, 512, 768) if edge < dimensions] + [dimensions]
        self.level = max(k for k, edge in enumerate(self.edges) if edge <= min(64, dimensions // 2))
        self.top = max(k for k, edge in enumerate(self.edges) if edge <= min(128, dimensions // 2))
        self.step = step
        self.slack = 2 * product_error(dimensions + len(self.edges))  # rounding of the bound and of own_dot
        self.before = self.index = None
        if count is not None:
            self.index = torch.full((count,), -1)
            self.bound = torch.full((count,), torch.inf)  # over all centroids but the row's own
            self.table = torch.empty(count, self.edges[self.top])  # coordinates
            self.norms = torch.empty(count, len(self.edges) - 1)  # of the blocks
        self.screened = self.passed = self.iteration = 0
        self.wide = False

    def begin(self, units):
        """Take the centroids of this iteration, (K, D) float32."""
        self._adapt(len(units))
        rotated = units.double() @ self.basis
        self.units, norms = units, self._block_norms(rotated)
        columns = self.edges[self.level]
        self.reference = torch.cat([rotated[:, :columns].float(), norms[:, self.level :]], 1).T  # (p + blocks, K)
        if self.index is not None:
            self._measure_moves(rotated - (rotated if self.before is None else self.before))
            self.before = rotated

    def nearest(self, rows, start):
        """(similarity, index) of the nearest unit for rows (B, D), both (B,); start: place of the first row."""
        if self.index is None and self.wide:
            index = torch.cat([best_reference(some, self.units)[1] for some in rows.split(self.step)])
            return own_dot(rows, self.units, index), index
        place = slice(start, start + len(rows))
        if self.index is None or self.index[start] < 0:
            rotated = rows.double() @ self.basis
            table, norms = rotated[:, : self.edges[self.top]].float(), self._block_norms(rotated)
            index = self._guess(table, norms)
            if self.index is not None:
                self.table[place], self.norms[place], self.index[place] = table, norms, index
        else:
            table, norms, index = self.table[place], self.norms[place], self.index[place]
        similarity = own_dot(rows, self.units, index)
        bound = None
        active = torch.arange(len(rows))
        if self.index is not None:
            bound, index = self.bound[place], self.index[place]
            active = self._overtaken(table, norms, similarity - self.slack, index, bound)
        for some in active.split(self.step):
            self._screen(some, rows, table, norms, similarity, index, bound)
        return similarity, index.clone()

    def _measure_moves(self, moves):
        """Note how far the centroids moved since the last iteration: (K, D) differences in the basis.

        The few that moved farthest are the runners, whose bounds are computed anew; `drift` holds for the others.
        """
        reach = self._block_norms(moves)  # (K, blocks)
        self.runners = reach.sum(1).argsort(descending=True, stable=True)[: len(reach) // RUNNERS]
        self.runner_place = torch.full((len(reach),), -1)
        self.runner_place[self.runners] = torch.arange(len(self.runners))
        others = self.runner_place < 0
        self.drift = reach[others].amax(0)  # (blocks,)
        first = moves[others, 0].float()  # the first coordinate holds most of a row: its sign is worth keeping
        self.up, self.down = first.amax() * ROUND_UP, -first.amin() * ROUND_UP

    def _overtaken(self, table, norms, floor, index, bound):
        """Rows whose nearest centroid may have changed, (A,); brings `bound` (B,) of the others up to date."""
        first = table[:, 0]
        along = torch.where(first > 0, first * self.up, -first * self.down)
        bound += along + norms[:, 1:] @ self.drift[1:]
        quiet = (bound < floor).nonzero()[:, 0]
        if len(quiet) < len(bound) / 4:  # the runners' bounds would cost more than they save
            return torch.arange(len(bound))
        runner = self._bounds(table[quiet], norms[quiet], self.reference[:, self.runners])  # (q, runners)
        place = self.runner_place[index[quiet]]
        mine = (place >= 0).nonzero()[:, 0]
        runner[mine, place[mine]] = -torch.inf
        bound[quiet] = torch.maximum(bound[quiet], runner.amax(1))
        return (bound >= floor).nonzero()[:, 0]

    def _screen(self, some, rows, table, norms, similarity, index, bound):
        """Screen rows `some` and let the pairs that pass compete; similarity, index and bound change in place."""
        own, floor = index[some], similarity[some] - self.slack
        product = rows[some] @ self.units.T if self.wide else self._bounds(table[some], norms[some])  # (b, K)
        product.scatter_(1, own[:, None], -torch.inf)
        highest = product.amax(1)
        close = (highest >= floor).nonzero()[:, 0]
        self.screened += len(some)
        if len(close):
            passing = product[close] >= floor[close, None]
            if not self.wide:
                pairs = int(passing.sum())
                self.passed += pairs
                if pairs * PAIR_COST > passing.numel() * rows.shape[1]:  # the whole product is cheaper, and tighter
                    product = (rows[some[close]] @ self.units.T).scatter_(1, own[close, None], -torch.inf)
                    highest[close] = product.amax(1)
                    passing = product >= floor[close, None]
            row, rival = passing.nonzero(as_tuple=True)
            changed = self._compete(rows, some[close][row], rival, similarity, index)
            highest[torch.isin(some, changed)] = torch.inf  # bounds nothing: the old centroid is a rival now
        if bound is not None:
            bound[some] = highest

    def _compete(self, rows, row, rival, similarity, index):
        """Multiply the pairs (row, rival) out; returns the rows whose unit changed, similarity and index updated."""
        near = pair_dots(rows, self.units, row, rival) >= similarity[row] - self.slack
        row, rival = row[near], rival[near]  # in float32 no loser; what is left is decided exactly
        which, place = row.unique(return_inverse=True)
        some, winner = rows[which], index[which]
        best = exact_dot(some, self.units[winner])
        recheck(some, self.units, None, place, rival, best, winner)
        changed = winner != index[which]
        which = which[changed]
        index[which] = winner[changed]
        similarity[which] = own_dot(rows[which], self.units, index[which])
        return which

    def _guess(self, table, norms):
        """The unit with the highest bound, a first candidate to measure the others by, (B,)."""
        pairs = zip(table.split(self.step), norms.split(self.step))
        return torch.cat([self._bounds(some, lengths).max(1)[1] for some, lengths in pairs])

    def _bounds(self, table, norms, reference=None):
        """Upper bounds of the similarities, (b, K), but for rounding."""
        reference = self.reference if reference is None else reference
        return torch.cat([table[:, : self.edges[self.level]], norms[:, self.level :]], 1) @ reference

    def _block_norms(self, rotated):
        """Lengths of the blocks of coordinates, rounded up, (B, blocks) float32."""
        pairs = zip(self.edges, self.edges[1:])
        return torch.stack([rotated[:, first:last].norm(dim=1) for first, last in pairs], 1).float() * ROUND_UP

    def _adapt(self, count):
        """More columns where the pairs that passed cost more than half the bound's product, fewer below an eighth.

        `wide`: the first coordinates do not tell the centroids apart, so all are used; tried again now and then.
        """
        self.iteration += 1
        if self.wide:
            self.wide = self.iteration % RETRY != 0
        elif self.screened:
            pairs = PAIR_COST * self.passed / self.screened
            dense = count * self.edges[self.level]
            if pairs > dense / 2 and self.level == self.top:
                self.wide = dense + pairs > count * self.basis.shape[0]
            elif pairs > 4 * dense:
                self.level = self.top
            elif pairs > dense / 2:
                self.level = min(self.level + 1, self.top)
            elif pairs < dense / 8:
                self.level = max(self.level - 1, 2)
        self.screened = self.passed = 0


def make_search(pool, spans, count, full, max_bytes, step):
    """The search that suits a pool and `count` centroids. full: every iteration sees the same rows."""
    limit = max_bytes if pool.device.type == "cuda" else min(max_bytes, BLOCK_BYTES)  # larger ones gain nothing
    block = step or block_rows(3 * count + 4 * pool.dimensions, limit)
    if pool.device.type == "cuda" or pool.dimensions < 64 or count < 64 or not spans:
        return DirectSearch(block)
    sample = pool.read(spans[0][0], min(spans[0][1], spans[0][0] + SAMPLE_ROWS))
    return ScreenedSearch(sample, pool.count if full else None, block)
