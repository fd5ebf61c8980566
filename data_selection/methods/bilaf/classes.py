"""BiLAF's pseudo-classes in memory: rows of any table, padded batches of classes, distances that tie exactly."""

import contextlib
import math
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F

from data_selection.common.checks import as_tensor
from data_selection.common.errors import UserError
from data_selection.common.kinds import Features
from data_selection.common.threads import one_thread_if
from data_selection.methods.configs import BiLAFConfig
from data_selection.nearest.narrow import Scratch

GRID_BITS = 32  # squared distances are whole numbers of 2^-32 of the class radius squared
CACHE_BYTES = 32 << 20  # a CPU works faster on batches that stay in its cache
SUM_BYTES = 4 << 20  # the same for roots of distances that are held
COPIES = 2  # of a class's float64 coordinates at a time
RIVAL_TABLES = 8  # of 8 bytes for each member and rival core: 6, and blocks of distances beside them, a quarter of all
HALF_ROWS = 256  # rows of one product of the symmetric table
PART_ROWS = 1024  # rows whose squares are added up together


def threads_for(largest: int) -> contextlib.AbstractContextManager[None]:
    """One thread within the block where classes have up to `largest` members and so fit the cache.

    Their thousands of steps are so short that a second thread saves little, and where another program holds its core,
    every step waits for it: 3 s become 15 (10,000 x 384, 50 cores, 500 images).
    """
    return one_thread_if(8 * largest**2 <= CACHE_BYTES)


def rows_at(features: Features, ids: torch.Tensor, device: torch.device, normalised: bool) -> torch.Tensor:
    """Rows of a tensor or memory map by their ids (int64, CPU) as float64 on device, at unit length if normalised."""
    if torch.is_tensor(features):
        rows = features.detach().index_select(0, ids.to(features.device))
    else:
        rows = as_tensor(features[ids.numpy()])
    rows = rows.to(device, torch.float64)
    if not normalised:
        return rows
    rows = F.normalize(rows, dim=-1)
    return rows.mul_(2.0**40).round_().div_(2.0**40)  # so that samples that differ in length alone are equal


def on_grid(values: torch.Tensor) -> torch.Tensor:
    """Rounded to 2^-14 units: sums of equal distances tie whatever the order in which a device adds them up."""
    return (values * 2.0**14).round_() / 2.0**14


@dataclass
class Batch:
    """G classes of up to n members each. Local index = position in the class's ascending list of pool indices.

    labels: (G,) class numbers. ids: (G, n) pool indices on the CPU, padded with the core. sizes: (G,). core: (G,) local
    index of the core. unit: (G, 1, 1) power of two by which coordinates were multiplied. pairs: their distances.
    """

    labels: torch.Tensor
    ids: torch.Tensor
    sizes: torch.Tensor
    core: torch.Tensor
    unit: torch.Tensor
    pairs: "Distances"


class Distances:
    """Squared distances within G classes, whole numbers in float64, so that equal distances are equal bit by bit.

    x: (G, n, D) float64, centred on the core and scaled to the grid. max_bytes bounds every block. held: (G, N, N) of
    the whole classes, or None where they don't fit and are computed on demand. place: (G, n), where the members stand
    in x and held, None: members are all. square: (G, n) squared lengths of x, None: to be computed. shape: (G, n).
    """

    def __init__(
        self,
        x: torch.Tensor,
        max_bytes: float,
        held: torch.Tensor | None = None,
        place: torch.Tensor | None = None,
        square: torch.Tensor | None = None,
    ) -> None:
        self.x, self.max_bytes, self.held, self.place = x, max_bytes, held, place
        self.square = squared_lengths(x) if square is None else square
        self.shape = x.shape[:2] if place is None else place.shape
        self.first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]  # (G, 1) where a class begins
        self.at = None if place is None else self.first + place

    @classmethod
    def build(
        cls, x: torch.Tensor, max_bytes: float, memory: Scratch, square: torch.Tensor | None = None
    ) -> "Distances":
        """Those of x, held in memory (float64) where max_bytes allows."""
        groups, n, _ = x.shape
        pairs = cls(x, max_bytes, square=square)
        if 8 * groups * n**2 > max_bytes:
            return pairs
        pairs.held = held = memory.take(groups, n, n)
        for start in range(0, n, HALF_ROWS):  # above the diagonal; below it a copy costs less
            stop = start + HALF_ROWS
            block = held[:, start:stop, start:]
            pairs._product(x[:, start:stop], pairs.square[:, start:stop], x[:, start:], pairs.square[:, start:], block)
            held[:, stop:, start:stop] = block[:, :, HALF_ROWS:].mT
        return pairs

    def take(self, local: torch.Tensor) -> "Distances":
        """Those of the members local (G, m) alone, in that order; not of a selection again."""
        if self.held is None:
            return Distances(self.rows(local), self.max_bytes)
        return Distances(self.x, self.max_bytes, self.held, local, self.square)

    def rows(self, local: torch.Tensor) -> torch.Tensor:
        """Coordinates (G, m, D) of the members local (G, m)."""
        return _copy_rows(self.x, self.first + local)

    def flat(self, local: torch.Tensor) -> torch.Tensor:
        """(G m,) where the members local (G, m) stand in x.flatten(0, 1)."""
        return (self.first + local).flatten()

    def between(self, rows: torch.Tensor) -> torch.Tensor:
        """(G, R, n) squared distances of members rows (G, R) to all."""
        return self._members(self._table(rows))

    def sums(self, columns: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(G, n) for each member the sum of its distances to the members columns (G, m), times weight (G, m)."""
        weight = weight.double()[:, None]
        blocks = self.blocks(columns.shape[1], SUM_BYTES if self.held is not None else self.max_bytes)
        parts = (weight[:, :, a:b] @ self._table(columns[:, a:b]).sqrt_() for a, b in blocks)  # (G, 1, N) each
        return self._members(reduce(torch.add, parts))[:, 0]

    def totals(self, weight: torch.Tensor) -> torch.Tensor:
        """(G, n) for each member the sum of its distances to all members, times weight (G, n)."""
        groups, n = self.shape
        if self.held is None:
            return self.sums(torch.arange(n, device=weight.device).expand(groups, n), weight)
        weight = weight.double()
        if self.place is not None:  # of whole classes
            weight = weight.new_zeros(self.held.shape[:2]).scatter_add_(1, self.place, weight)
        total = torch.zeros_like(weight)
        for a, b in self.blocks(weight.shape[1], SUM_BYTES):
            root = self.held[:, a:b, a:].sqrt()  # the table is symmetric: what is left of it was added before
            total[:, a:] += (weight[:, None, a:b] @ root)[:, 0]
            total[:, a:b] += (root[:, :, b - a :] @ weight[:, b:, None])[:, :, 0]
        return self._members(total[:, None])[:, 0]

    def each(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(G, R, k) squared distances of members rows (G, R) to their own lists columns (G, R, k); of whole classes."""
        if self.held is not None:
            first = (self.first + rows) * self.held.shape[2]  # (G, R) where a row begins
            return self.held.view(-1).index_select(0, (first[:, :, None] + columns).flatten()).view_as(columns)
        step = max(1, int(self.max_bytes // (24 * len(self.x) * self.x.shape[2])))  # three tables of coordinates
        result = torch.empty(columns.shape, dtype=self.x.dtype, device=self.x.device)
        for some, lists, part in zip(rows.split(step, 1), columns.split(step, 1), result.split(step, 1), strict=True):
            left = self.rows(some)  # (G, r, D)
            for place, other in enumerate(lists.unbind(2)):
                torch.sum((left - self.rows(other)).square_(), -1, out=part[:, :, place])
        return result.round_()

    def blocks(self, count: int, max_bytes: float | None = None, most: int = 1 << 20) -> list[tuple[int, int]]:
        """(start, stop) over `count` rows, `most` at a time, whose distances to all fit max_bytes (None: its own)."""
        width = self.x.shape[1] if self.held is None else self.held.shape[2]
        step = min(most, max(1, int((max_bytes or self.max_bytes) // (8 * len(self.x) * width))))
        return [(start, min(count, start + step)) for start in range(0, count, step)]

    def _table(self, rows: torch.Tensor) -> torch.Tensor:
        """(G, R, N) squared distances of members rows (G, R) to whole classes, a copy."""
        if self.held is None:
            return self._product(self.rows(rows), self.square.gather(1, rows), self.x, self.square)
        return _copy_rows(self.held, self.first + rows if self.at is None else self.at.gather(1, rows))

    def _members(self, values: torch.Tensor) -> torch.Tensor:
        """(G, R, n) of values (G, R, N) of whole classes."""
        if self.place is None:
            return values
        return values.gather(2, self.place[:, None].expand(-1, values.shape[1], -1))

    @staticmethod
    def _product(
        a: torch.Tensor,
        a_square: torch.Tensor,
        b: torch.Tensor,
        b_square: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        product = torch.baddbmm(b_square[:, None, :], a, b.mT, alpha=-2, out=out)  # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
        return product.add_(a_square[:, :, None]).round_()


def _copy_rows(table: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """(G, m, width) rows of a table (G, n, width) by their numbers flat (G, m) in table.flatten(0, 1)."""
    return table.flatten(0, 1).index_select(0, flat.flatten()).reshape(*flat.shape, table.shape[2])


def squared_lengths(x: torch.Tensor) -> torch.Tensor:
    """(G, n) of rows (G, n, D), in parts: the memory of small tables is used again, large ones are cleared anew."""
    return torch.cat([rows.square().sum(1) for rows in x.flatten(0, 1).split(PART_ROWS)]).view(x.shape[:2])


def group_classes(own: torch.Tensor, cores: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Members (M,) sorted by class, ascending inside one, and sizes (cores,); own: (N,), -1 for none."""
    order = own.sort(stable=True).indices
    return order[int((own < 0).sum()) :], torch.bincount(own[own >= 0], minlength=cores)


def check_room(sizes: torch.Tensor, rivals: torch.Tensor, dimensions: int, max_memory: float) -> None:
    """Raise UserError where max_memory, in GB, does not hold a class's coordinates and its tables of rivals.

    sizes: (K,) members. rivals: (K,) other cores that each may border on.
    """
    needed = 8e-9 * sizes * torch.clamp(dimensions + RIVAL_TABLES * rivals, min=COPIES * dimensions)
    if needed.max() > max_memory:
        worst = int(needed.argmax())
        raise UserError(
            f"max_memory {max_memory} GB is too little for a class of {int(sizes[worst])} images, which needs "
            f"{float(needed[worst]):.3g} GB: raise it, or use more cores"
        )


def plan_batches(
    sizes: torch.Tensor,
    rivals: torch.Tensor,
    wanted: torch.Tensor,
    dimensions: int,
    max_bytes: int,
    device: torch.device,
) -> list[list[int]]:
    """Class numbers in lists, classes of like size together, so that a batch's padded arrays keep within max_bytes.

    sizes: (K,). rivals: (K,) other cores that each member may border on. wanted: (K,) bool, classes that need work. The
    ranks share it: max_bytes must be the same on all.
    """
    limit = max_bytes // 4 if device.type == "cuda" else min(CACHE_BYTES, max_bytes // 8)
    batches: list[list[int]] = []
    size = most = 0
    for label in sorted(wanted.nonzero()[:, 0].tolist(), key=lambda label: -int(sizes[label])):
        most = max(most, int(rivals[label]))
        if not batches or 8 * (len(batches[-1]) + 1) * size * (size + 2 * dimensions + RIVAL_TABLES * most) > limit:
            size, most = int(sizes[label]), int(rivals[label])
            batches.append([])
        batches[-1].append(label)
    return batches


def open_batch(
    features: Features,
    classes: list[int],
    members: torch.Tensor,
    sizes: torch.Tensor,
    cores: torch.Tensor,
    config: BiLAFConfig,
    memory: Scratch,
    max_bytes: int,
) -> Batch:
    """The Batch of the classes with these numbers; members and sizes as group_classes gives them."""
    device = memory.memory.device
    starts = sizes.cumsum(0) - sizes
    labels = torch.as_tensor(classes)
    count = sizes[labels]
    local = torch.arange(int(count.max()))  # (n,)
    valid = local < count[:, None]  # (G, n)
    ids = torch.where(valid, members[(starts[labels, None] + local).clamp(max=len(members) - 1)], cores[labels, None])
    core = ((ids == cores[labels, None]) & valid).int().argmax(1)
    x = rows_at(features, ids.reshape(-1), device, config.normalised).reshape(*ids.shape, -1)
    x -= x[torch.arange(len(x)), core][:, None]  # centred: no cancellation far from the origin; padding is zero
    square = squared_lengths(x)
    unit = grid_unit(square.amax(1))[:, None, None]
    square.mul_(unit[:, 0]).mul_(unit[:, 0])
    pairs = Distances.build(x.mul_(unit), max_bytes // 4, memory, square)
    return Batch(labels, ids, count.to(device), core.to(device), unit, pairs)


def grid_unit(largest: torch.Tensor, bits: int = GRID_BITS) -> torch.Tensor:
    """The power of two by which to multiply coordinates so that the squared length `largest` is about 2^bits."""
    exponent = ((bits - largest.log2()) / 2).floor()
    return torch.where(largest > 0, torch.exp2(exponent), 1.0)


def key_base(count: int) -> float:
    """A power of two above count: squared distance * base + position sorts by distance, then by position, exactly."""
    return 2.0 ** math.ceil(math.log2(count + 1))
