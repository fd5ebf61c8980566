"""The nearest unit to each row: bfloat16 or float32 products find candidates, float64 decides between close ones.

Measured on two Zen 4 cores, in ns per (row, unit) of 384 dimensions: float32 product 4.4, its maximum with index 0.5;
bfloat16 product 2.1, its maximum with index 0.9, but 0.2 where its bits are taken for int16. Tried and dropped:
bounds from the leading principal directions (64 columns instead of 384, but where a fifth of the variance lies beyond
them, checking the pairs that pass costs more than is saved) and int8 (no faster than bfloat16).
"""

import time
from functools import cache

import torch

from data_selection.similarity import CHUNK_ROWS, exact_dot, product_error, recheck

ROUND_UP = 1 + 2.0**-12  # float32 norms stay upper bounds
BFLOAT16_UNIT = 2.0**-9  # largest relative error of one rounding to bfloat16
LOWEST = torch.iinfo(torch.int16).min


def nearest_unit(rows, units, low=None):
    """The nearest of the unit rows (K, D) to every row (B, D): (similarity, index), (B,) float32 and int64.

    low: Narrow(units), to find candidates in bfloat16; None: in float32. The index is that of exact arithmetic, of
    equal units the lowest. For tensors on the CPU: it waits for the number of close pairs.
    """
    index, row, rival = wide_candidates(rows, units) if low is None else low.candidates(rows)
    similarity = own_dot(rows, units, index)
    settle(rows, units, row, rival, similarity, index)
    return similarity, index


def wide_candidates(rows, units, product=None):
    """(index, row, rival): each row's best in float32, (B,), and the pairs (P,) that rounding could have put behind it.

    product: rows @ units.T where the caller has it; the best of each row is overwritten.
    """
    product = rows @ units.T if product is None else product  # (B, K)
    top, index = product.max(1)
    floor = top - 2 * product_error(rows.shape[1])
    product.scatter_(1, index[:, None], -torch.inf)
    return index, *pairs_above(product, floor, product.amax(1))


def pairs_above(product, floor, highest):
    """(row, column), (P,) each, of the entries of product (B, K) at or above their row's floor; highest: row maxima."""
    close = (highest >= floor).nonzero()[:, 0]
    row, column = (product[close] >= floor[close, None]).nonzero(as_tuple=True)
    return close[row], column


class Narrow:
    """Unit rows (K, D) rounded to bfloat16 about their mean, and how far a product with them can be off.

    The mean's part of a product is the same for every unit, so it can't change which is nearest; without it the
    numbers, and with them the errors, are smaller.
    """

    def __init__(self, units):
        self.mean = units.mean(0)
        centred = units - self.mean
        self.table = centred.bfloat16()  # (K, D)
        self.error = (centred - self.table.float()).norm(dim=1).max() * ROUND_UP
        self.reach = centred.norm(dim=1).max() * ROUND_UP

    def product(self, rows):
        """(bits, error): rows @ table.T, (B, K), as bits, and a bound (B,) of its error but for its last rounding.

        Of positive bfloat16 numbers, the larger one also has the larger bits as int16, and integers compare faster.
        """
        short = rows.bfloat16()
        blur = (rows - short.float()).norm(dim=1) * ROUND_UP  # (B,)
        error = blur * self.reach + 1.01 * (self.error + product_error(rows.shape[1], self.reach + self.error))
        return (short @ self.table.T).view(torch.int16), error

    def candidates(self, rows):
        """As wide_candidates."""
        bits, error = self.product(rows)
        top, index = bits.max(1)
        floor = floor_bits(top.view(torch.bfloat16).float(), error)
        bits.scatter_(1, index[:, None], LOWEST)
        return index, *pairs_above(bits, floor, bits.amax(1))

    def above(self, rows, best, barred=None):
        """Pairs (row, unit), (P,) each, that could be the row's best and reach `best` (B,); barred: (B, K) bool."""
        bits, error = self.product(rows)
        if barred is not None:
            bits.masked_fill_(barred, LOWEST)
        top = bits.amax(1)
        floor = floor_bits(torch.maximum(top.view(torch.bfloat16).float(), best - rows @ self.mean), error)
        return pairs_above(bits, floor, top)


def floor_bits(values, error):
    """int16 bits that a product has at least if it may exceed `values` (B,), both off by `error` and the last rounding.

    LOWEST, which all reach, where that is not positive: bits of negative numbers are in the wrong order, but below
    those of all positive ones.
    """
    floor = (values - 2 * error - 2 * BFLOAT16_UNIT * values.abs()) * (1 - 2 * BFLOAT16_UNIT)
    return torch.where(floor > 0, floor.bfloat16().view(torch.int16), LOWEST)


def own_dot(rows, units, index):
    """Similarity of each row to its unit `index`, (B,) float32; the same bits however rows are cut into blocks."""
    parts = zip(rows.split(CHUNK_ROWS), index.split(CHUNK_ROWS))
    return torch.cat([units.index_select(0, which).mul_(some).sum(1) for some, which in parts])


def pair_dots(rows, units, row, unit):
    """rows[row] . units[unit] for pairs (P,), float32."""
    parts = zip(row.split(CHUNK_ROWS), unit.split(CHUNK_ROWS))
    return torch.cat([own_dot(rows.index_select(0, some), units, which) for some, which in parts])


def settle(rows, units, row, rival, similarity, index):
    """Let the pairs (row, rival), (P,), compete exactly; similarity and index, (B,), change in place."""
    if not len(row):
        return
    near = pair_dots(rows, units, row, rival) >= similarity[row] - 2 * product_error(rows.shape[1])
    row, rival = row[near], rival[near]  # in float32 no losers; what is left is decided exactly
    which, place = row.unique(return_inverse=True)
    some, winner = rows[which], index[which]
    best = exact_dot(some, units[winner])
    recheck(some, units, None, place, rival, best, winner)
    index[which] = winner
    similarity[which] = own_dot(some, units, winner)


@cache
def narrow_is_faster():
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
