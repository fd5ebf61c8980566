"""ZCore: what an image covers in random subspaces, less what its neighbours cover as well."""

import numpy as np
import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.clusters import resident_rows
from data_selection.methods.configs_clusters import ZCoreConfig
from data_selection.nearest.pool_reader import pool_device

AT_ONCE = 2**18  # distances: a core's cache holds them
CLOSEST = 1e-6  # a smaller distance counts as this: copies share a loss


@full_float32()
def select_zcore(
    features: Features,
    budget: int,
    *,
    config: ZCoreConfig = ZCoreConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """The images of the highest scores; (budget,) int64, best first: a smaller budget's list is the beginning.

    Scores start as uniform draws of [0, 1). config.draws times: some coordinates are drawn, and in each a number
    between the pool's minimum and maximum with its median as the most likely (triangular); the image nearest to that
    point by the sum of absolute differences wins 1, and the others lose 1 in all, in proportion to their distance to
    it to the power -config.exponent. Labelled images take part and are not returned.
    Made for 10 % of the pool and more: the highest scores of all belong to images that stand alone. Below that it has
    been worse than a random choice on pools of even classes, and better on long-tailed ones.
    Source: Griffin et al., arXiv 2411.15349. Deviations: unit features of one backbone; the loss is shared by all
    images and not by the nearest 1,000, beyond which it is negligible; 50,000 draws, not a million.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    columns = resident_rows(features, kept, device, "zcore").T.contiguous()  # (D, n)
    score = scores(columns, config, np.random.default_rng(seed), progress)
    score[torch.searchsorted(kept, labelled)] = -torch.inf
    order = score.argsort(descending=True, stable=True)[:budget]
    return check_selection(kept[order], budget, len(features), labelled, excluded)


def scores(
    columns: torch.Tensor, config: ZCoreConfig, generator: np.random.Generator, progress: OpenBar | None = None
) -> torch.Tensor:
    """The score of every image, (n,) float64 on the CPU; columns: (D, n), the coordinates of the images."""
    wide, count = columns.shape
    score = torch.from_numpy(generator.random(count)).to(columns.device)
    low, middle, high = (columns.amin(1).cpu(), columns.median(1).values.cpu(), columns.amax(1).cpu())
    step = max(1, AT_ONCE // count)
    with open_bar(progress, config.draws, "ZCore", "draw") as bar:
        for start in range(0, config.draws, step):
            some = min(step, config.draws - start)
            axes = np.stack([generator.choice(wide, min(config.dimensions, wide), replace=False) for _ in range(some)])
            points = triangular(generator, low.numpy()[axes], middle.numpy()[axes], high.numpy()[axes])
            axis = torch.from_numpy(axes).to(columns.device)
            winner = distance(columns, axis, torch.from_numpy(points).to(columns)).argmin(1)  # (b,)
            score.index_add_(0, winner, torch.ones(some, dtype=score.dtype, device=score.device))
            if count > 1:
                own = columns[axis, winner[:, None]]  # (b, dimensions)
                gap = distance(columns, axis, own).clamp_(min=CLOSEST).scatter_(1, winner[:, None], torch.inf)
                gap /= gap.amin(1, keepdim=True)  # powers of 1 at most: those of copies add up beyond float32 else
                loss = gap.pow_(-2).pow_(config.exponent / 2).scatter_(1, winner[:, None], 0)  # fast
                score -= loss.div_(loss.sum(1, keepdim=True)).sum(0)
            bar.update(some)
    return score.cpu()


def triangular(generator: np.random.Generator, low: np.ndarray, middle: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Draws from low to high with the mode `middle`, of their shape, float64; low may equal high."""
    share = generator.random(low.shape)
    low, middle, high = (np.asarray(edge, np.float64) for edge in (low, middle, high))
    bend = (middle - low) / np.where(high > low, high - low, 1)
    left = low + np.sqrt(share * (high - low) * (middle - low))
    right = high - np.sqrt((1 - share) * (high - low) * (high - middle))
    return np.where(share < bend, left, right)


def distance(columns: torch.Tensor, axes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sums of absolute differences (b, n) of points (b, k) to all images along their axes (b, k) of columns (D, n)."""
    total = columns.new_zeros(len(axes), columns.shape[1])
    for axis, value in zip(axes.T, points.T, strict=True):
        total += (columns[axis] - value[:, None]).abs_()
    return total
