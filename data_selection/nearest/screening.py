"""Which unit centroid is nearest to each unit row, iteration after iteration: the search that suits a pool.

A faster way is taken where it was measured to take at most two thirds of the plain product's time; the table is in
scripts/benchmarks/README.md.
"""

import torch

from data_selection.nearest.grouped import BLOCK_ROWS, GroupedSearch
from data_selection.nearest.narrow import COARSE_FROM, Narrow, Scratch, narrow_is_faster, nearest_of_few, nearest_unit
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import block_rows, joined

GROUPED_FROM = {True: 200, False: 500}  # units, where narrow_is_faster() and where not
PRODUCT_BYTES = 4 << 20  # of a float32 product on the CPU, which is read three times: what the cache holds
NARROW_ROWS = 2048  # of a coarse product
GROUP_BYTES = 16 << 20  # of a group's product, in the first iteration with all centroids
SAMPLE_ROWS = 16384  # for the principal directions
COLUMNS = (31, 63, 95, 127, 191, 255, 383, 511)  # principal directions to use, or all; one column is added
SHARE = 0.8  # of the variance that those of the first attempt hold
PAIR_COST = 100  # a pair that is looked at singly costs as much as this many in a coarse product


class Screen:
    """How many principal directions of a sample of rows (B, D) to use: more where many pairs pass, fewer where few."""

    def __init__(self, sample: torch.Tensor) -> None:
        sample = sample.double()
        values, directions = torch.linalg.eigh(sample.T @ sample)
        self.basis = directions.flip(1).float()  # (D, D), largest variance first
        dimensions = len(values)
        self.sizes = [size for size in COLUMNS if size < 0.7 * dimensions] + [dimensions]
        share = values.flip(0).cumsum(0) / values.sum()
        self.level = next(k for k, size in enumerate(self.sizes) if share[size - 1] >= SHARE or size == dimensions)
        self.least = 0  # what was too few once is not tried again
        self.low: Narrow | None = None
        self.scratch = Scratch()

    def narrow(self, units: torch.Tensor) -> Narrow:
        """Narrow(units) over as many directions as suit what the last one saw."""
        if self.low is not None:
            pairs = PAIR_COST * self.low.passed / max(1, self.low.seen)
            dense = len(self.low.units) * self.sizes[self.level] / len(self.basis)
            if pairs > dense:
                self.level = self.least = min(self.level + 1, len(self.sizes) - 1)
            elif pairs < dense / 8:
                self.level = max(self.level - 1, self.least)
        size = self.sizes[self.level]
        self.low = Narrow(units, None if size == len(self.basis) else self.basis[:, :size], self.scratch)
        return self.low


class ProductSearch:
    """Every product, in blocks: for CUDA, where nothing may wait for the host, random batches and small pools.

    screen: finds candidates by coarse products, None for float32.
    """

    def __init__(self, step: int, screen: Screen | None = None) -> None:
        self.step, self.screen = step, screen

    def begin(self, units: torch.Tensor) -> None:
        """Take the centroids of this iteration, (K, D) float32."""
        self.units = units
        self.low = self.screen.narrow(units) if self.screen else None

    def nearest(self, rows: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(similarity, index) of the nearest unit for rows (B, D), both (B,); start: place of the first row."""
        if rows.is_cuda:
            parts = [nearest_of_few(some, self.units) for some in rows.split(self.step)]
        else:
            parts = [nearest_unit(some, self.units, self.low) for some in rows.split(self.step)]
        values, index = zip(*parts, strict=True)
        return joined(values), joined(index)


Search = ProductSearch | GroupedSearch


def make_search(
    pool: UnitPool, spans: list[tuple[int, int]], count: int, full: bool, max_bytes: float, step: int | None
) -> Search:
    """The search that suits a pool and `count` centroids. full: every iteration sees the same rows."""
    if pool.device.type == "cuda":
        return ProductSearch(step or block_rows(3 * count + 8 * pool.dimensions, max_bytes))
    narrow = narrow_is_faster()
    if full and pool.resident is not None and spans and count >= GROUPED_FROM[narrow]:
        dtype = torch.bfloat16 if narrow else torch.float32
        block = step or min(BLOCK_ROWS, block_rows(4 * count, min(max_bytes, GROUP_BYTES)))
        return GroupedSearch(pool, spans, block, dtype, max_bytes)
    if count < COARSE_FROM or not narrow:
        return ProductSearch(step or block_rows(count, min(max_bytes / 3, PRODUCT_BYTES)))
    block = step or min(NARROW_ROWS, block_rows(count + 4 * pool.dimensions, max_bytes))
    return ProductSearch(block, Screen(pool.read(*pool.spans(pool.count)[0])[:SAMPLE_ROWS]))
