"""k-means of a pool and exact distances between its rows, for the methods that hold all of it in memory."""

import warnings
from collections.abc import Iterator

import torch

from data_selection.common.distributed import current_world
from data_selection.common.errors import UserError
from data_selection.common.kinds import Features
from data_selection.common.progress import OpenBar, open_bar
from data_selection.common.threads import one_sum
from data_selection.methods.configs import KMeansConfig
from data_selection.nearest.pool_reader import UnitPool, own_memory

COPIES = 2.2  # of the pool's unit rows that the methods take at most: the rows, and what is made of them
GRID = 2.0**11  # steps of a coordinate
TILE = (1024, 4096)  # rows and columns of a product: 16 MB


def resident_rows(features: Features, ids: torch.Tensor, device: torch.device, method: str) -> torch.Tensor:
    """Unit rows (n, D) float32 at pool indices ids (n,), in memory; features: (N, D).

    Every rank keeps a copy. Raises UserError, with the memory that would be needed, where they do not fit; on NaN.
    """
    needed = COPIES * 4 * len(ids) * features.shape[1]
    world = current_world(device)
    free = world.least(own_memory(device))  # all look before the first one takes any
    each = f" for each of {world.size} processes" if world.size > 1 else ""
    if needed > free:
        raise UserError(
            f"{method} keeps the unit features of {len(ids)} images in memory and needs {needed / 1e9:.3g} GB, but "
            f"{free / 1e9:.3g} GB are free{each}: free some, or choose a method that reads blocks, such as activeft"
        )
    pool = UnitPool(features, ids, device, float("inf"))
    return pool.read(0, pool.count)


def fit_clusters(
    rows: torch.Tensor, count: int, config: KMeansConfig, seed: int, progress: OpenBar | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means of rows (n, D) by scikit-learn on the CPU: (centres (count, D) float32, cluster of each row (n,) int64).

    On one thread, as the lists of a seed may not depend on how many there are.
    Pools of more than four minibatches are fitted by minibatches. Of fewer distinct rows than clusters some are empty.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # slow to import, and only needed here

    small = len(rows) <= 4 * config.batch_size
    options = {"n_clusters": count, "n_init": 1, "max_iter": config.max_iter, "random_state": seed}
    estimator = KMeans(**options) if small else MiniBatchKMeans(**options, batch_size=config.batch_size)
    with open_bar(progress, 1, "k-means", "fit") as bar, one_sum():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Number of distinct clusters")  # every caller fills up what is empty
            estimator.fit(rows.cpu().numpy())
        bar.update(1)
    return torch.from_numpy(estimator.cluster_centers_), torch.from_numpy(estimator.labels_).long()


def on_grid(rows: torch.Tensor) -> torch.Tensor:
    """Unit rows (n, D) with their coordinates rounded to 1/2048, which moves a product of two by about 1e-4.

    float32 holds every product of such rows, and every sum on the way to it, exactly. So neither tiles, threads nor
    the device decide what lies on which side of a bound, and an edge counted once can be taken back.
    """
    return rows.mul(GRID).round_().div_(GRID)


def tiles(count: int, columns: int, step: tuple[int, int] = TILE) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) slices that cover a table of count x columns."""
    for start in range(0, count, step[0]):
        for left in range(0, columns, step[1]):
            yield slice(start, min(count, start + step[0])), slice(left, min(columns, left + step[1]))
