"""The nearest unit to each row: coarse products find candidates, float32 and float64 decide between them.

Coarse products are in bfloat16 where the hardware multiplies it faster, and only over the leading principal
directions: by Cauchy and Schwarz the others add at most the product of what is left of both lengths, one more column.

Measured on two Zen 4 cores, in ns per (row, unit) of 384 dimensions: float32 product 4.4, its maximum with index 0.5;
bfloat16 product 2.1, over a third of the directions 0.8; its maximum 0.2, but 0.04 where its bits are taken for int16.
Two to eight units per row pass (1,281,167 x 384 synthetic features, 12,811 units, a fifth of the variance beyond the
directions used). Tried and dropped: int8 (no faster than bfloat16).
"""

import math
import time
import warnings
from collections.abc import Callable
from functools import cache

import torch

from data_selection.nearest.similarity import chunk_rows, exact_dot, joined, product_error, recheck

with warnings.catch_warnings():  # PyTorch says once that these tensors are new; own_dot asks nothing unusual of them
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))

ROUND_UP = 1 + 2.0**-12  # float32 norms stay upper bounds
BFLOAT16_UNIT = 2.0**-8  # largest relative error of one rounding to bfloat16
TIES = 4  # that are compared exactly on CUDA
LOWEST = torch.iinfo(torch.int16).min
FOLDS = 32  # columns that share a maximum
MOST_PAIRS = 64  # per row; beyond them a product over all directions is cheaper
MANY_PAIRS = 1 << 18  # at a time; one needs about 60 bytes
COARSE_FROM = 2048  # units, for which coarse products find what is nearest in two thirds of the time

PairList = tuple[torch.Tensor, torch.Tensor]  # (P,) rows and (P,) columns


def nearest_unit(
    rows: torch.Tensor, units: torch.Tensor, low: "Narrow | None" = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of the unit rows (K, D) to every row (B, D): (similarity, index), (B,) float32 and int64.

    low: Narrow(units), to find candidates by coarse products; None: by float32 products. The index is that of float64
    products (exact_dot), of equal ones the lowest. For tensors on the CPU: it waits for the number of close pairs.
    """
    if low is None:
        return nearest_of_product(rows, units)
    pairs = low.pairs(rows)
    if pairs is None:  # so many are close that memory counts
        values, columns = zip(*(nearest_unit(half, units, low) for half in rows.tensor_split(2)), strict=True)
        return torch.cat(values), torch.cat(columns)
    row, unit = pairs
    index = torch.zeros(len(rows), dtype=torch.int64)
    settle(rows, units, row, unit, torch.full((len(rows),), -torch.inf, dtype=torch.float64), index)
    return own_dot(rows, units, index), index


def nearest_of_product(rows: torch.Tensor, units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """nearest_unit by a float32 product: only the rows whose two best are close are looked at again."""
    product = rows @ units.T  # (B, K)
    value, index = product.max(1)
    floor = value - 2 * product_error(rows.shape[1])
    unsure = (product.scatter_(1, index[:, None], -torch.inf).amax(1) >= floor).nonzero()[:, 0]
    for some in unsure.split(max(1, MANY_PAIRS // len(units))):
        row, unit = (product[some] >= floor[some, None]).nonzero(as_tuple=True)
        row, unit = torch.cat([row, torch.arange(len(some))]), torch.cat([unit, index[some]])
        best, winner = torch.full((len(some),), -torch.inf, dtype=torch.float64), torch.zeros_like(some)
        settle(rows[some], units, row, unit, best, winner)
        index[some] = winner
    return own_dot(rows, units, index), index


def nearest_of_few(rows: torch.Tensor, units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As nearest_unit, without waiting for the device: the best few of a float32 product are compared exactly.

    So an index could only be wrong where more than TIES units are equally near but for rounding. TF32 must be off, as
    it is unless a program allows it.
    """
    few = (rows @ units.T).topk(min(TIES, len(units)), dim=1).indices  # (B, TIES)
    copies = rows[:, None].expand(-1, few.shape[1], -1).flatten(0, 1)
    value = exact_dot(copies, units.index_select(0, few.flatten())).view_as(few)
    index = few.masked_fill(value < value.amax(1, keepdim=True), len(units)).amin(1)
    return own_dot(rows, units, index), index


def wide_pairs(
    rows: torch.Tensor, units: torch.Tensor, best: torch.Tensor | None = None, barred: torch.Tensor | None = None
) -> PairList | None:
    """As Narrow.pairs, from float32 products."""
    product = rows @ units.T  # (B, K)
    if barred is not None:
        product.masked_fill_(barred, -torch.inf)

    def floor_of(guess: torch.Tensor) -> torch.Tensor:
        top = entries(product, guess).clamp_(min=-2)  # above -inf, so that no barred pair passes
        return (top if best is None else torch.maximum(top, best)) - 2 * product_error(rows.shape[1])

    return pairs_above(product, floor_of, MANY_PAIRS if len(rows) > 1 else None)


def pairs_above(
    product: torch.Tensor, floor_of: Callable[[torch.Tensor], torch.Tensor], most: int | None
) -> PairList | None:
    """(row, column), (P,) each, of the entries of product (B, K) that reach their row's floor.

    floor_of: from the columns of the rows' maxima (B,) to the floors (B,). most: None is returned where more pass.
    The columns are folded first: to compare all of them with the floors costs ten times as much as a maximum.
    """
    folds = FOLDS if product.shape[1] >= 16 * FOLDS else 1
    width = product.shape[1] // folds
    folded = product[:, : width * folds].view(len(product), folds, width)
    rest = product[:, width * folds :]
    highest = folded.amax(1)  # (B, width)
    floor = floor_of(argmax(product, folded, highest, rest))
    passing = highest >= floor[:, None]
    if most is not None and int(passing.sum()) > most:
        return None
    row, column = passing.nonzero(as_tuple=True)
    place, fold = (folded[row, :, column] >= floor[row, None]).nonzero(as_tuple=True)
    if most is not None and len(place) > most:
        return None
    last_row, last = (rest >= floor[:, None]).nonzero(as_tuple=True)
    return torch.cat([row[place], last_row]), torch.cat([column[place] + fold * width, last + width * folds])


def argmax(product: torch.Tensor, folded: torch.Tensor, highest: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Column of each row's maximum, (B,), by way of the maxima of the folds."""
    row = torch.arange(len(product), device=product.device)
    column = highest.argmax(1)
    column += folded[row, :, column].argmax(1) * highest.shape[1]
    if rest.shape[1]:
        value, last = rest.max(1)
        column = torch.where(value > entries(product, column), last + folded[0].numel(), column)
    return column


def entries(product: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """product[i, column[i]], (B,)."""
    return product.gather(1, column[:, None])[:, 0]


class Narrow:
    """Unit rows (K, D) rounded to bfloat16 about their mean, and how far a product with them can be off.

    The mean's part of a product is the same for every unit, so it can't change which is nearest; without it the
    numbers, and with them the errors, are smaller. basis: (D, p) orthonormal directions to use, None for all.
    """

    def __init__(
        self, units: torch.Tensor, basis: torch.Tensor | None = None, scratch: "Scratch | None" = None
    ) -> None:
        self.units, self.basis, self.mean = units, basis, units.mean(0)
        self.scratch = Scratch() if scratch is None else scratch
        self.whole: Narrow | None = None
        self.seen, self.passed = 0, 0
        parts, tail = self._split(units - self.mean)
        short = parts.bfloat16()
        self.error = (parts - short.float()).norm(dim=1).max() * ROUND_UP
        self.reach = parts.norm(dim=1).max() * ROUND_UP
        self.table = torch.cat([short, tail], 1)  # (K, p + 1)

    def _split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(parts, tail): coordinates (B, p) along the basis and the length of the rest, (B, 1) bfloat16, rounded up."""
        if self.basis is None:
            return rows, rows.new_zeros(len(rows), 0).bfloat16()
        parts = rows @ self.basis
        rest = (rows.square().sum(1) - parts.square().sum(1)).clamp_(min=0)
        rest += 2 * product_error(rows.shape[1])  # the squares of both are off by no more
        return parts, (rest.sqrt() * (1 + 2 * BFLOAT16_UNIT)).bfloat16()[:, None]

    def pairs(
        self, rows: torch.Tensor, best: torch.Tensor | None = None, barred: torch.Tensor | None = None
    ) -> PairList | None:
        """Pairs (row, unit), (P,) each, that could be the row's best and reach `best` (B,), or None: very many.

        barred: (B, K) bool, pairs left out (but for rows that have no others). One row is always answered. Of positive
        bfloat16 numbers, the larger one also has the larger bits as int16, and integers compare faster.
        """
        parts, tail = self._split(rows)
        short = parts.bfloat16()
        blur = (parts - short.float()).norm(dim=1) * ROUND_UP  # (B,)
        error = blur * self.reach + 1.01 * self.error + 3 * product_error(rows.shape[1])
        product = self.scratch.take(len(rows), len(self.table))  # (B, K)
        bits = torch.mm(torch.cat([short, tail], 1), self.table.T, out=product).view(torch.int16)
        if barred is not None:
            bits.masked_fill_(barred, LOWEST)

        def floor_of(guess: torch.Tensor) -> torch.Tensor:
            value = own_dot(rows, self.units, guess)
            return floor_bits((value if best is None else torch.maximum(value, best)) - rows @ self.mean, error)

        if self.basis is None:
            return pairs_above(bits, floor_of, MANY_PAIRS if len(rows) > 1 else None)
        pairs = pairs_above(bits, floor_of, MOST_PAIRS * len(rows))
        self.seen += len(rows)
        self.passed += MOST_PAIRS * len(rows) if pairs is None else len(pairs[0])
        if pairs is None:  # these directions do not tell the units apart
            self.whole = self.whole or Narrow(self.units, scratch=self.scratch)
            return self.whole.pairs(rows, best, barred)
        return pairs


class Scratch:
    """Memory for one table after another: to get it anew costs as much as the product that is written to it."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None) -> None:
        self.memory = torch.empty(0, dtype=dtype, device=device)

    def take(self, *shape: int) -> torch.Tensor:
        """An uninitialised table; the one taken before is gone."""
        count = math.prod(shape)
        if len(self.memory) < count:
            self.memory = self.memory.new_empty(count)
        return self.memory[:count].view(shape)


def floor_bits(values: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """int16 bits that a product has at least if it may exceed `values` (B,), known but for `error` and a last rounding.

    LOWEST, which all reach, where that is not positive: bits of negative numbers are in the wrong order, but below
    those of all positive ones.
    """
    floor = (values - error) * (1 - 2 * BFLOAT16_UNIT)
    return torch.where(floor > 0, floor.bfloat16().view(torch.int16), LOWEST)


def own_dot(rows: torch.Tensor, units: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Similarity of each row to its unit `index`, (B,) float32; the same bits however rows are cut into blocks."""
    if rows.is_cuda:
        step = chunk_rows(rows)
        parts = zip(rows.split(step), index.split(step), strict=True)
        return joined([units.index_select(0, which).mul_(some).sum(1) for some, which in parts])
    wanted = torch.sparse_csr_tensor(
        torch.arange(len(rows) + 1), index, rows.new_zeros(len(rows)), (len(rows), len(units)), check_invariants=False
    )  # one entry in each row of the product; this reads every row once and writes nothing else
    return torch.sparse.sampled_addmm(wanted, rows, units.T, beta=0.0).values()


def pair_dots(rows: torch.Tensor, units: torch.Tensor, row: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """rows[row] . units[unit] for pairs (P,), float32."""
    value = units.new_empty(len(row))  # filled in place: small results kept in between would scatter the large ones
    tables = (table.split(chunk_rows(rows)) for table in (row, unit, value))
    for some, which, part in zip(*tables, strict=True):
        part.copy_(own_dot(rows.index_select(0, some), units, which))
    return value


def settle(
    rows: torch.Tensor,
    units: torch.Tensor,
    row: torch.Tensor,
    unit: torch.Tensor,
    best: torch.Tensor,
    index: torch.Tensor,
    first: int = 0,
) -> None:
    """Let the pairs (row, unit), (P,), compete in float64; best and index, (B,) float64 and int64, change in place.

    best: similarity of each row's winner so far, -inf where there is none; first: added to the units' numbers.
    """
    value = pair_dots(rows, units, row, unit)
    top = best.float().scatter_reduce(0, row, value, "amax")
    near = value >= top[row] - 2 * product_error(rows.shape[1])  # the others have lost in float32
    recheck(rows, units, row[near], unit[near], best, index, first)


@cache
def narrow_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 clearly faster than float32; measured once (a few milliseconds)."""
    rows = torch.ones(512, 384)
    seconds = {}
    for table in (rows, rows.bfloat16()):
        laps = []
        for _ in range(4):  # the first one prepares
            began = time.perf_counter()
            table @ table.T
            laps.append(time.perf_counter() - began)
        seconds[table.dtype] = min(laps)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]
