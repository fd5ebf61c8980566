"""TypiClust: the most typical image of each of the largest clusters without a label."""

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.distributed import World
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar
from data_selection.methods.clusters import fit_clusters, resident_rows
from data_selection.methods.configs_clusters import TypiClustConfig
from data_selection.nearest.graph import nearest_neighbours


@full_float32()
def select_typiclust(
    features: Features,
    budget: int,
    *,
    config: TypiClustConfig = TypiClustConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """From the largest of the clusters with the fewest labels the most typical image; (budget,) int64, in that order.

    k-means of the unit features makes as many clusters as there will be labels, at most config.clusters. Typical is an
    image whose mean distance to its nearest neighbours within the cluster is small; of equal ones the lowest index.
    Source: Hacohen et al., ICML 2022 (TPC-RP). Deviations: how typical an image is does not change when others of its
    cluster are taken, and clusters below config.smallest are used once the others are empty.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    kept = torch.cat([labelled, candidates]).sort().values
    rows = resident_rows(features, kept, torch.device("cpu"), "typiclust")
    count = min(budget + len(labelled), config.clusters)
    _, cluster = fit_clusters(rows, count, config, seed, progress)
    spread = mean_distance(rows, cluster, count, config.nearest, torch.device(device or "cpu"))
    free = torch.ones(len(kept), dtype=torch.bool)
    free[torch.searchsorted(kept, labelled)] = False
    turn = spread.argsort(stable=True)
    turn = turn[cluster[turn].argsort(stable=True)]  # by cluster, then the most typical first
    turn = turn[free[turn]]
    size, known = (cluster.bincount(minlength=count), cluster[~free].bincount(minlength=count))
    left = cluster[free].bincount(minlength=count)
    first = left.cumsum(0) - left  # of each cluster, in turn
    base = len(kept) + 1
    rank = ((size < config.smallest) * base + known) * base - size  # (count,) lowest first
    used = 2 * base * base  # beyond every rank
    chosen = torch.empty(budget, dtype=torch.int64)
    taken = torch.zeros_like(left)
    rank[left == 0] = used
    for place in range(budget):
        best = int(rank.argmin())
        chosen[place] = turn[first[best] + taken[best]]
        taken[best] += 1
        rank[best] = rank[best] + base if taken[best] < left[best] else used
    return check_selection(kept[chosen], budget, len(features), labelled, excluded)


def mean_distance(
    rows: torch.Tensor, cluster: torch.Tensor, count: int, neighbours: int, device: torch.device
) -> torch.Tensor:
    """Mean distance of every unit row (n, D) to its nearest neighbours in its cluster, (n,) float64 on the CPU.

    cluster: (n,) numbers below count. neighbours: so many, or all others of a smaller cluster; 0 for a row alone.
    """
    spread = torch.zeros(len(rows), dtype=torch.float64)
    for members in cluster.argsort(stable=True).split(cluster.bincount(minlength=count).tolist()):
        if len(members) > 1:
            _, similarity = nearest_neighbours(rows[members], neighbours, world=World(0, 1, device))
            spread[members] = (2 - 2 * similarity.cpu().double()).clamp_(min=0).sqrt().mean(1)
    return spread
