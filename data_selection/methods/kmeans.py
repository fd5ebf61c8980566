"""The samples nearest to the centres of k-means."""

from collections.abc import Iterator

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.distributed import World
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar
from data_selection.methods.clusters import fit_clusters, resident_rows
from data_selection.methods.configs import KMeansConfig
from data_selection.nearest.assignment import distinct_nearest
from data_selection.nearest.similarity import BLOCK_BYTES, normalise


@full_float32()
def select_kmeans(
    features: Features,
    budget: int,
    *,
    config: KMeansConfig = KMeansConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """The samples nearest to the centres of k-means on unit features, distinct; (budget,) int64, ascending.

    Centres already served by a labelled sample are left out: k-means finds budget + labelled centres, each labelled
    sample takes the one nearest to it. Runs in scikit-learn on the CPU.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    kept = torch.cat([labelled, candidates]).sort().values
    rows = resident_rows(features, kept, torch.device("cpu"), "kmeans")  # (n, D)
    centres = normalise(fit_clusters(rows, budget + len(labelled), config, seed, progress)[0])  # (budget + L, D)
    alone = World(0, 1, torch.device("cpu"))
    if len(labelled):
        known = rows[torch.searchsorted(kept, labelled)]
        nobody = torch.zeros(len(centres), dtype=torch.bool)
        claimed = distinct_nearest(lambda _: [(0, centres)], known, nobody, alone, BLOCK_BYTES)
        free = torch.ones(len(centres), dtype=torch.bool)
        free[claimed] = False
        centres = centres[free]
    barred = torch.ones(len(kept), dtype=torch.bool)
    barred[torch.searchsorted(kept, candidates)] = False

    def blocks(step: int) -> Iterator[tuple[int, torch.Tensor]]:
        return zip(range(0, len(kept), step), rows.split(step), strict=True)

    chosen = kept[distinct_nearest(blocks, centres, barred, alone, BLOCK_BYTES)].sort().values
    return check_selection(chosen, budget, len(features), labelled, excluded)
