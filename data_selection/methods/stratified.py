"""Random choice stratified by the clusters of k-means."""

import random

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar
from data_selection.methods.bilaf.steps import allocate
from data_selection.methods.clusters import fit_clusters, resident_rows
from data_selection.methods.configs_clusters import StratifiedConfig


@full_float32()
def select_stratified(
    features: Features,
    budget: int,
    *,
    config: StratifiedConfig = StratifiedConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """Uniform draws from every cluster of k-means, in proportion to its size; (budget,) int64, ascending.

    Labels in all, those that were there among them, are shared out by the largest remainder. Runs on the CPU. Source:
    stratified sampling with proportional allocation (Neyman 1934), the clusters of the unit features being the strata.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    kept = torch.cat([labelled, candidates]).sort().values
    rows = resident_rows(features, kept, torch.device("cpu"), "stratified")
    count = min(budget + len(labelled), config.clusters)
    _, cluster = fit_clusters(rows, count, config, seed, progress)
    free = torch.ones(len(kept), dtype=torch.bool)
    free[torch.searchsorted(kept, labelled)] = False
    size, known = cluster.bincount(minlength=count), cluster[~free].bincount(minlength=count)
    wanted = allocate(size, budget + len(labelled), known, size, "remainder") - known
    generator, chosen = random.Random(seed), []
    for number, share in enumerate(wanted.tolist()):
        chosen += generator.sample(kept[free & (cluster == number)].tolist(), share)
    return check_selection(sorted(chosen), budget, len(features), labelled, excluded)
