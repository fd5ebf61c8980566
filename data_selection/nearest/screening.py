"""Which unit centroid is nearest to each unit row, iteration after iteration: the search that suits a pool."""

import torch

from data_selection.nearest.grouped import BLOCK_ROWS, GroupedSearch
from data_selection.nearest.narrow import Screen, narrow_is_faster, nearest_of_few, nearest_unit
from data_selection.nearest.pool_reader import UnitPool
from data_selection.nearest.similarity import BLOCK_BYTES, block_rows

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
    limit = max_bytes if pool.device.type == "cuda" else min(max_bytes, BLOCK_BYTES)  # larger ones gain nothing
    block = step or block_rows(3 * count + 4 * pool.dimensions, limit)
    if pool.device.type == "cuda" or count < 64 or not spans:
        return ProductSearch(block)
    if full and pool.resident is not None:
        dtype = torch.bfloat16 if narrow_is_faster() else torch.float32
        block = step or min(BLOCK_ROWS, block_rows(4 * count, min(max_bytes, GROUP_BYTES)))
        return GroupedSearch(pool, spans, block, dtype, max_bytes)
    if not narrow_is_faster():
        return ProductSearch(block)
    block = step or min(NARROW_ROWS, block_rows(count + 4 * pool.dimensions, max_bytes))
    return ProductSearch(block, Screen(pool.read(*pool.spans(pool.count)[0])[:SAMPLE_ROWS]))
