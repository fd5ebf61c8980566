"""Kernel herding: a choice whose mean kernel is that of the pool."""

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.clusters import on_grid, resident_rows, tiles
from data_selection.methods.configs_clusters import HerdingConfig
from data_selection.nearest.pool_reader import pool_device


@full_float32()
def select_herding(
    features: Features,
    budget: int,
    *,
    config: HerdingConfig = HerdingConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """Again and again the image that lowers the alpha-MMD of chosen and pool most; (budget,) int64, in that order.

    With the Gaussian kernel k of unit features and p chosen images, labelled ones among them, that is the largest
    alpha (p + 1) mean k(x, pool) - sum k(x, chosen); of equal ones the lowest index. Source: Chen, Welling and Smola,
    UAI 2010; alpha of Shao et al., NeurIPS 2024 (RDSS). Deviations: p + 1, the exact step, for the first choice needs
    the pool, too; in large pools the mean is over config.sample random images; coordinates are rounded to 1/2048.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    rows = on_grid(resident_rows(features, kept, device, "herding"))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(rows), generator=generator)[: config.sample].sort().values
    mean = mean_kernel(rows, rows[sample.to(device)], config.sigma, progress)
    alpha = 1 - (budget + len(labelled)) ** -0.5 if config.alpha is None else config.alpha
    barred = torch.zeros(len(rows), dtype=torch.bool, device=device)
    known = torch.searchsorted(kept, labelled).to(device)
    near = sum_kernel(rows, rows[known], config.sigma)  # with the chosen
    barred[known] = True
    chosen: list[torch.Tensor] = []  # read at the end: no pick waits for a GPU
    with open_bar(progress, budget, "herding", "image") as bar:
        for turn in range(budget):
            share = alpha * (len(known) + turn + 1)
            score = share * mean - near if len(known) + turn else mean.clone()  # alpha of one image alone is 0
            score[barred] = -torch.inf
            best = score.argmax()[None]
            near += kernel(rows @ rows.index_select(0, best)[0], config.sigma)
            barred.index_fill_(0, best, True)
            chosen.append(best)
            bar.update(1)
    return check_selection(kept[torch.cat(chosen).cpu()], budget, len(features), labelled, excluded)


def kernel(product: torch.Tensor, sigma: float) -> torch.Tensor:
    """exp(-d^2 / (2 sigma^2)) of unit rows with these products, in place."""
    return product.sub_(1).div_(sigma**2).exp_()


def mean_kernel(
    rows: torch.Tensor, sample: torch.Tensor, sigma: float, progress: OpenBar | None = None
) -> torch.Tensor:
    """The mean of k(x, y) over the sample's rows y (m, D) for every row x (n, D): (n,) float64."""
    return sum_kernel(rows, sample, sigma, progress) / len(sample)


def sum_kernel(rows: torch.Tensor, sample: torch.Tensor, sigma: float, progress: OpenBar | None = None) -> torch.Tensor:
    """The sum of k(x, y) over the sample's rows y (m, D) for every row x (n, D): (n,) float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    with open_bar(progress, len(sample), "mean kernel", "image") as bar:
        for some, part in tiles(len(sample), len(rows)):
            total[part] += kernel(sample[some] @ rows[part].T, sigma).sum(0)
            if part.stop == len(rows):
                bar.update(some.stop - some.start)
    return total
