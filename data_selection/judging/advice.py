"""Which method suits a pool and a budget before there is any label, and what to do with the labels then.

The rule follows the tables of configs/README.md: on the demo pool facility location was best up to about 100 labels,
its V-optimal continuation level or better beyond; photographs took no part. On four long-tailed cuts k-means lost
little to the best method of each budget; all four were looked at, so that this half is not tested on another pool. How
uneven a pool is shows in the sizes of its clusters: the bound tells Fashion-MNIST from its long tails. It misses that
of the photographs, and takes digits for one; both lose nothing by it.
"""

from typing import NamedTuple

import torch

from data_selection.common.checks import check_request
from data_selection.common.kinds import Features, Ids
from data_selection.judging.quality import effective_size, unit_rows
from data_selection.methods.bilaf.selection import default_core_number
from data_selection.methods.clusters import fit_clusters
from data_selection.methods.configs import KMeansConfig

CORE = 100  # labels up to which covering the pool is best
CLUSTERS, SAMPLE, FEWEST = 50, 5_000, 500  # of the look at a pool: clusters, images looked at, images needed
EVEN = 0.86  # of the clusters' effective number over theirs: 0.88-0.92 in even pools, less in 14 of 16 uneven ones
LARGE = 0.1  # share of the pool from which on no method was measurably better than random, with a plain probe
TAUGHT = 0.25  # share of the pool with labels from which on the rest of it added nothing


class Advice(NamedTuple):
    """method: a row of METHODS. reason: which rule chose it, and by what. labels: what to do with the labels.

    cores: so many of the budget are best BiLAF's cores, where that is asked for in spite of it.
    """

    method: str
    reason: str
    labels: str
    cores: int


def advise(features: Features, budget: int, *, labelled: Ids = (), excluded: Ids = (), seed: int = 0) -> Advice:
    """The method for `budget` more labels in a pool (N, D), of whose labels so far only the number counts.

    seed: of the images that are looked at. Raises UserError for a request that no method takes.
    """
    known, candidates = check_request(features, budget, labelled, excluded)
    labels, pool = budget + len(known), len(known) + len(candidates)
    share = evenness(features, torch.cat([known, candidates]), seed)
    size = f"{labels} labels of {pool} images"
    if share is not None and share < EVEN:
        method = "kmeans"
        reason = f"{size}, in clusters of uneven size (evenness {share:.2f}, below {EVEN}): as in a long tail, k-means"
    elif labels <= CORE:
        method, reason = "facility", f"{size}, at most {CORE}: facility location, which covers the pool"
    else:
        method, reason = "voptimal", f"{size}, more than {CORE}: facility location goes on as V-optimal design"
    if labels >= LARGE * pool:
        reason += f"; at {LARGE:.0%} of a pool and beyond, expect little more than from a random choice"
    return Advice(method, reason, use_of_labels(labels, pool), default_core_number(pool, budget))


def use_of_labels(labels: int, pool: int) -> str:
    """What to do with so many labels of a pool of so many images."""
    if labels < TAUGHT * pool:
        return (
            "train by deit/main.py --mode auto, which asks the labels whether the images without one teach best by "
            "--mode self-train or by --mode smoothed; on frozen features, fit_smoothed beats a plain probe"
        )
    return "train by deit/main.py --mode lp-ft; with so many labels the other images add nothing"


def evenness(features: Features, ids: torch.Tensor, seed: int = 0) -> float | None:
    """The effective number of 50 clusters of up to 5,000 images among ids (n,), over 50; None for too few images.

    It is 1 where all clusters are of one size.
    """
    if len(ids) < FEWEST:
        return None
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    _, cluster = fit_clusters(unit_rows(features, ids[order[:SAMPLE]].sort().values), CLUSTERS, KMeansConfig(), seed)
    return effective_size(cluster, CLUSTERS) / CLUSTERS
