"""The nearest unit to each row: bfloat16 or float32 products find candidates, float64 decides between close ones.

Measured on two Zen 4 cores, in ns per (row, unit) of 384 dimensions: float32 product 4.4, its maximum with index 0.5;
bfloat16 product 2.1, its maximum with index 0.9, but 0.2 where its bits are taken for int16. Tried and dropped:
bounds from the leading principal directions (64 columns instead of 384, but where a fifth of the variance lies beyond
them, checking the pairs that pass costs more than is saved) and int8 (no faster than bfloat16).
"""

import time
from functools import cache

import torch

from data_selection.similarity import CHUNK_ROWS, product_error, recheck

ROUND_UP = 1 + 2.0**-12  # float32 norms stay upper bounds
BFLOAT16_UNIT = 2.0**-9  # largest relative error of one rounding to bfloat16
LOWEST = torch.iinfo(torch.int16).min
FOLDS = 16  # groups of columns that share a maximum


def nearest_unit(rows, units, low=None):
    """The nearest of the unit rows (K, D) to every row (B, D): (similarity, index), (B,) float32 and int64.

    low: Narrow(units), to find candidates in bfloat16; None: in float32. The index is that of exact arithmetic, of
    equal units the lowest. For tensors on the CPU: it waits for the number of close pairs.
    """
    if low is None:
        product = rows @ units.T  # (B, K)
        row, unit = pairs_above(product, lambda top: top - 2 * product_error(rows.shape[1]))
    else:
        row, unit = low.pairs(rows)
    index = torch.zeros(len(rows), dtype=torch.int64)
    settle(rows, units, row, unit, torch.full((len(rows),), -torch.inf, dtype=torch.float64), index)
    return own_dot(rows, units, index), index


def pairs_above(product, floor_of):
    """(row, column), (P,) each, of the entries of product (B, K) that reach their row's floor.

    floor_of: from the row maxima (B,) to the floors (B,). The columns are folded first, as comparing all of them with
    the floors costs ten times a maximum.
    """
    folds = FOLDS if product.shape[1] >= FOLDS**2 else 1
    width = product.shape[1] // folds
    whole = width * folds
    folded = product[:, :whole].view(len(product), folds, width)
    highest = folded.amax(1)  # (B, width)
    rest = product[:, whole:]
    top = highest.amax(1)
    floor = floor_of(top if whole == product.shape[1] else torch.maximum(top, rest.amax(1)))
    row, column = (highest >= floor[:, None]).nonzero(as_tuple=True)
    place, fold = (folded[row, :, column] >= floor[row, None]).nonzero(as_tuple=True)
    last_row, last = (rest >= floor[:, None]).nonzero(as_tuple=True)
    columns = column[place] + fold * width
    return torch.cat([row[place], last_row]), torch.cat([columns, last + whole])


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

    def pairs(self, rows, best=None, barred=None):
        """Pairs (row, unit), (P,) each, that could be the row's best and reach `best` (B,); barred: (B, K) bool.

        Of positive bfloat16 numbers, the larger one also has the larger bits as int16, and integers compare faster.
        """
        short = rows.bfloat16()
        blur = (rows - short.float()).norm(dim=1) * ROUND_UP  # (B,)
        error = blur * self.reach + 1.01 * (self.error + product_error(rows.shape[1], self.reach + self.error))
        bits = (short @ self.table.T).view(torch.int16)  # (B, K)
        if barred is not None:
            bits.masked_fill_(barred, LOWEST)

        def floor_of(top):
            value = top.view(torch.bfloat16).float()
            return floor_bits(value if best is None else torch.maximum(value, best - rows @ self.mean), error)

        return pairs_above(bits, floor_of)


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


def settle(rows, units, row, unit, best, index, first=0):
    """Let the pairs (row, unit), (P,), compete exactly; best and index, (B,) float64 and int64, change in place.

    best: similarity of each row's winner so far, -inf where there is none; first: added to the units' numbers.
    """
    value = pair_dots(rows, units, row, unit)
    top = best.float().scatter_reduce(0, row, value, "amax")
    near = value >= top[row] - 2 * product_error(rows.shape[1])  # the others have lost in float32
    recheck(rows, units, None, row[near], unit[near], best, index, first)


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
