"""Which unit centroid is nearest to each unit row, iteration after iteration: the search that suits a pool.

A faster way is taken where it was measured to take at most two thirds of the plain product's time; the table is in
scripts/benchmarks/README.md.
"""

import torch

from data_selection.nearest.grouped import BLOCK_ROWS, GroupedSearch
from data_selection.nearest.narrow import COARSE_FROM, Screen, narrow_is_faster, nearest_of_few, nearest_unit
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import block_rows

GROUPED_FROM = {True: 200, False: 500}  # units, where narrow_is_faster() and where not
PRODUCT_BYTES = 4 << 20  # of a float32 product on the CPU, which is read three times: what the cache holds
NARROW_ROWS = 2048  # of a coarse product
GROUP_BYTES = 16 << 20  # of a group's product, in the first iteration with all centroids
SAMPLE_ROWS = 16384  # for the principal directions


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
        return torch.cat(values), torch.cat(index)


Search = ProductSearch | GroupedSearch


def make_search(
    pool: UnitPool, spans: list[tuple[int, int]], count: int, full: bool, max_bytes: float, step: int | None
) -> Search:
    """The search that suits a pool and `count` centroids. full: every iteration sees the same rows."""
    if pool.device.type == "cuda":
        return ProductSearch(step or block_rows(3 * count + 4 * pool.dimensions, max_bytes))
    narrow = narrow_is_faster()
    if full and pool.resident is not None and spans and count >= GROUPED_FROM[narrow]:
        dtype = torch.bfloat16 if narrow else torch.float32
        block = step or min(BLOCK_ROWS, block_rows(4 * count, min(max_bytes, GROUP_BYTES)))
        return GroupedSearch(pool, spans, block, dtype, max_bytes)
    if count < COARSE_FROM or not narrow:
        return ProductSearch(step or block_rows(count, min(max_bytes / 3, PRODUCT_BYTES)))
    block = step or min(NARROW_ROWS, block_rows(count + 4 * pool.dimensions, max_bytes))
    return ProductSearch(block, Screen(pool.read(*pool.spans(pool.count)[0])[:SAMPLE_ROWS]))
