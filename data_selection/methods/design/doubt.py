"""Methods for the second and later rounds: where a model that has seen the labels is in doubt, and what that covers.

Each takes the probabilities (N, C) that the model gives the pool's rows, calibrated as well as can be.
"""

import warnings

import numpy as np
import torch

from data_selection.common.checks import as_tensor, check_request, check_selection
from data_selection.common.errors import UserError
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar
from data_selection.common.threads import one_sum
from data_selection.methods.configs_design import (
    HalfConfig,
    MarginClustersConfig,
    MarginConfig,
    UncertaintyHerdingConfig,
    WeightedConfig,
)
from data_selection.methods.design.facility import cover_in_turn
from data_selection.methods.design.kernels import Kernel, sampled_distance
from data_selection.methods.design.smoothing import smoothed_rows
from data_selection.methods.design.voptimal import design, embedding
from data_selection.nearest.pool_reader import UnitPool, pool_device, working_memory
from data_selection.nearest.similarity import CHUNK_ROWS

Probabilities = torch.Tensor | np.ndarray


def check_probabilities(probabilities: Probabilities | None, count: int) -> torch.Tensor:
    """Probabilities (N, C) as float32 on the CPU. Raises UserError where there are none, or they do not fit N rows."""
    if probabilities is None:
        raise UserError(
            "this method asks a model, and there are no probabilities: give what a model says of each image of the "
            "pool (probabilities=), or begin without a model by voptimal or activeft"
        )
    table = probabilities.detach() if torch.is_tensor(probabilities) else as_tensor(probabilities)
    if table.ndim != 2 or len(table) != count or table.shape[1] < 1:
        raise UserError(f"probabilities of shape {tuple(table.shape)}: a row for each of the {count} images is needed")
    table = table.float().cpu()
    if not (table.min() >= 0 and (table.sum(1) - 1).abs().max() < 1e-2):
        raise UserError("probabilities must be 0 or above and each row's sum 1: give softmax outputs")
    return table


def margins(probabilities: torch.Tensor) -> torch.Tensor:
    """The largest probability less the second largest of each row, (N,); of one class, that one's."""
    top = probabilities.topk(min(2, probabilities.shape[1]), dim=1).values
    return top[:, 0] - top[:, 1] if top.shape[1] == 2 else top[:, 0]


def by_doubt(margin: torch.Tensor, seed: int) -> torch.Tensor:
    """Places of margins (n,), the smallest first, equal ones in an order drawn by the seed; (n,) int64.

    A model that is sure of nearly all has margins of 1 by the thousand, and a pool's rows often lie class by class.
    """
    turn = torch.randperm(len(margin), generator=torch.Generator().manual_seed(seed))
    return turn[margin[turn].argsort(stable=True)]


def select_margin(
    features: Features,
    budget: int,
    *,
    config: MarginConfig = MarginConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    probabilities: Probabilities | None = None,
) -> torch.Tensor:
    """The samples whose two likeliest classes are closest; (budget,) int64, the least certain first.

    Of equal ones one drawn by the seed comes first. Features are not read. Source: Scheffer et al. 2001.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    margin = margins(check_probabilities(probabilities, len(features)))[candidates]
    chosen = candidates[by_doubt(margin, seed)[:budget]]
    return check_selection(chosen, budget, len(features), labelled, excluded)


@full_float32()
def select_margin_clusters(
    features: Features,
    budget: int,
    *,
    config: MarginClustersConfig = MarginClustersConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    probabilities: Probabilities | None = None,
    smoothed: torch.Tensor | None = None,
) -> torch.Tensor:
    """The least certain sample of each cluster of the least certain ones; (budget,) int64, the least certain first.

    The config.pool * budget samples of smallest margin are clustered by mini-batch k-means on smoothed features
    ((N, D), computed where they are not given), in scikit-learn on the CPU. Where clusters are empty, the smallest
    margins left fill up. Source: Citovsky et al. 2021 ("Batch Active Learning at Scale"), with k-means on the doubtful
    samples in place of agglomerative clusters of the pool.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    margin = margins(check_probabilities(probabilities, len(features)))[candidates]
    doubtful = candidates[by_doubt(margin, seed)[: config.pool * budget]]
    if smoothed is None:
        kept = torch.cat([labelled, candidates]).sort().values
        smoothed = smoothed_rows(features, kept, config.steps, pool_device(features, device), progress)
    if smoothed is None:
        order = doubtful.argsort()
        pool = UnitPool(features, doubtful[order], torch.device("cpu"), float("inf"))
        rows = pool.read(0, pool.count)[order.argsort()]
    else:
        rows = smoothed[doubtful.to(smoothed.device)].cpu()
    from sklearn.cluster import MiniBatchKMeans  # slow to import, and only needed here

    if budget < len(doubtful):
        with warnings.catch_warnings(), one_sum():
            warnings.simplefilter("ignore")  # of fewer distinct rows than clusters: the rest is filled up below
            clusters = MiniBatchKMeans(n_clusters=budget, n_init=1, random_state=seed).fit_predict(rows.numpy())
        first = np.unique(clusters, return_index=True)[1]
    else:
        first = np.arange(budget)
    rest = np.setdiff1d(np.arange(len(doubtful)), first)
    places = np.sort(np.concatenate([first, rest[: budget - len(first)]]))
    return check_selection(doubtful[torch.from_numpy(places)], budget, len(features), labelled, excluded)


@full_float32()
def select_uncertainty_herding(
    features: Features,
    budget: int,
    *,
    config: UncertaintyHerdingConfig = UncertaintyHerdingConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    probabilities: Probabilities | None = None,
) -> torch.Tensor:
    """Facility location by a Gaussian kernel, each row counted by the model's doubt; (budget,) int64, in order.

    The doubt is 1 - margin; the kernel's width is the smallest distance between labelled rows, so that it narrows as
    labels come in (below two labelled rows: the pool's median distance). labelled rows count as chosen. Source: Bae et
    al. 2024, "Uncertainty Herding" (arXiv 2412.20644). Deviations: clients and candidates are random parts of the pool,
    clients only of the rows in doubt; where all doubt is covered each row counts alike, as in MaxHerding.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    doubt = 1 - margins(check_probabilities(probabilities, len(features)))
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    pool = UnitPool(features, kept, device, working_memory(None, device))
    generator = torch.Generator().manual_seed(seed)
    known, free = (torch.searchsorted(kept, ids) for ids in (labelled, candidates))
    width = smallest_distance(pool.take(known)) if len(known) > 1 else sampled_distance(pool, generator)
    kernel, weights = Kernel((max(width, config.least),)), [doubt[kept], torch.ones(pool.count)]
    chosen = cover_in_turn(pool, budget, known, free, kernel, weights, config, generator, progress)
    return check_selection(kept[chosen], budget, len(features), labelled, excluded)


def smallest_distance(rows: torch.Tensor) -> float:
    """The smallest Euclidean distance between two of the unit rows (n, D), n at least 2."""
    best = torch.tensor(-torch.inf, device=rows.device)
    for start in range(0, len(rows), CHUNK_ROWS):
        similarity = rows[start : start + CHUNK_ROWS] @ rows.T
        similarity.diagonal(start).fill_(-torch.inf)
        best = torch.maximum(best, similarity.max())
    return (2 - 2 * best).clamp(min=0).sqrt().item()


@full_float32()
def select_weighted_voptimal(
    features: Features,
    budget: int,
    *,
    config: WeightedConfig = WeightedConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    probabilities: Probabilities | None = None,
    smoothed: torch.Tensor | None = None,
) -> torch.Tensor:
    """V-optimal design for the predictions in doubt; (budget,) int64, in order of choice.

    As select_voptimal without a core, the variance of each row's prediction weighted by 1 - sum_c p_c^2, the chance
    that two draws of its label differ. labelled rows are taken as given. smoothed: (N, D), where known already.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    table = check_probabilities(probabilities, len(features))
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    pool = UnitPool(features, kept, device, working_memory(None, device))
    known, free = (torch.searchsorted(kept, ids) for ids in (labelled, candidates))
    weights = (1 - table.square().sum(1)).clamp(min=config.floor)[kept]
    embed = embedding(features, kept, pool, config, seed, smoothed, progress)
    chosen = design(pool, budget, known, free, embed, weights, config, seed, progress)
    return check_selection(kept[chosen], budget, len(features), labelled, excluded)


@full_float32()
def select_half(
    features: Features,
    budget: int,
    *,
    config: HalfConfig = HalfConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    probabilities: Probabilities | None = None,
    smoothed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Half by weighted V-optimal design, then half by margin over clusters; (budget,) int64, in order of choice.

    config.share of the budget, rounded up, is chosen by the first. smoothed: (N, D), where known already.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    if smoothed is None:
        kept = torch.cat([labelled, candidates]).sort().values
        smoothed = smoothed_rows(features, kept, config.steps, pool_device(features, device), progress)
    first = min(budget, int(np.ceil(config.share * budget)))
    chosen = torch.empty(0, dtype=torch.int64)
    if first:
        chosen = select_weighted_voptimal(
            features,
            first,
            config=config,
            labelled=labelled,
            excluded=excluded,
            seed=seed,
            device=device,
            progress=progress,
            probabilities=probabilities,
            smoothed=smoothed,
        )
    if first < budget:
        taken = torch.cat([labelled, chosen])
        clusters = MarginClustersConfig(pool=config.pool, steps=config.steps)
        rest = select_margin_clusters(
            features,
            budget - first,
            config=clusters,
            labelled=taken,
            excluded=excluded,
            seed=seed,
            device=device,
            progress=progress,
            probabilities=probabilities,
            smoothed=smoothed,
        )
        chosen = torch.cat([chosen, rest])
    return check_selection(chosen, budget, len(features), labelled, excluded)
