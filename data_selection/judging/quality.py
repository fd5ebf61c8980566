"""What a choice is worth as far as features alone tell: how near, how even and how like the pool it is."""

from typing import NamedTuple

import torch

from data_selection.common.checks import check_ids
from data_selection.common.errors import UserError
from data_selection.common.kinds import Features, Ids
from data_selection.nearest.similarity import normalise, row_blocks, take_rows

SAMPLE = 20_000  # pool images that are looked at
PRODUCTS = 4e8  # of these and the chosen ones: fewer images are looked at where the choice is large
FEWEST = 1_000
KERNEL_SAMPLE = 2_000  # images of either side in the MMD, whose cost is their number squared
ALIKE = 2e-3  # distance of unit rows that are equal but for the rounding of float32
SLICES = 64  # directions of the sliced distance


class Quality(NamedTuple):
    """Measures of a choice between unit features; distances are Euclidean, 0 to 2.

    radius_mean, radius_95: distance of a pool image to the nearest chosen one, its mean and 95th percentile.
    sliced: mean Wasserstein-1 distance of pool and choice along random directions. mmd: maximum mean discrepancy of
    both, Gaussian kernel. redundancy: mean cosine similarity of a chosen image to the nearest other one, nan for one
    image. effective: 1 / sum of squared shares of the pool that are nearest to each chosen image: the number of
    images that would serve equal shares. chosen, pool: images of each. looked_at: of the pool, all or drawn.
    """

    radius_mean: float
    radius_95: float
    sliced: float
    mmd: float
    redundancy: float
    effective: float
    chosen: int
    pool: int
    looked_at: int

    def __str__(self) -> str:
        drawn = "" if self.looked_at == self.pool else f" (by {self.looked_at} images drawn from {self.pool})"
        return (
            f"distance to the nearest of the {self.chosen} images {self.radius_mean:.3f} on average, "
            f"{self.radius_95:.3f} for 95 %; effective number {self.effective:.1f}; redundancy {self.redundancy:.3f}; "
            f"from the pool: sliced Wasserstein {self.sliced:.4f}, MMD {self.mmd:.4f}{drawn}"
        )

    @property
    def doubt(self) -> str:
        """What makes the features themselves doubtful, in a sentence; "" where nothing does."""
        if self.radius_95 >= ALIKE or self.chosen > self.pool / 2:
            return ""
        return (
            f"95 % of the {self.pool} images have the features of one of the {self.chosen} chosen, as if they were all "
            "alike: look at the images, and at the weights that embedded them"
        )


def quality(features: Features, ids: Ids, *, excluded: Ids = (), seed: int = 0) -> Quality:
    """Quality of the pool images ids (B,) for the pool features (N, D), a float tensor, array or memory map.

    excluded: rows that are no part of the pool. Looks at up to 20,000 pool images, fewer where the choice is so large
    that this would take long; seed draws them and the directions. Raises UserError for features that are not finite,
    and where there are no ids, or some that repeat or are outside the pool.
    """
    ids = check_ids(ids, len(features), "subset")
    if not len(ids):
        raise UserError("the subset is empty: at least one image is needed to judge it by")
    generator = torch.Generator().manual_seed(seed)
    wanted = max(FEWEST, min(SAMPLE, int(PRODUCTS / len(ids))))
    free = torch.ones(len(features), dtype=torch.bool)
    free[check_ids(excluded, len(features), "excluded")] = False
    kept = free.nonzero()[:, 0]
    sample = kept[torch.randperm(len(kept), generator=generator)[:wanted].sort().values]
    chosen, pool = unit_rows(features, ids), unit_rows(features, sample)
    similarity, nearest = nearest_other(pool, chosen)
    radius = distance_of(similarity)
    asked = torch.randperm(len(ids), generator=generator)[:wanted]
    other, _ = nearest_other(chosen[asked], chosen, asked)
    few = min(KERNEL_SAMPLE, len(pool)), min(KERNEL_SAMPLE, len(ids))
    some = [
        torch.randperm(len(rows), generator=generator)[:count] for rows, count in zip((pool, chosen), few, strict=True)
    ]
    return Quality(
        radius.mean().item(),
        radius.quantile(0.95).item(),
        sliced_wasserstein(pool, chosen, directions(SLICES, pool.shape[1], generator)),
        mean_discrepancy(pool[some[0]], chosen[some[1]]),
        other.double().mean().item() if len(ids) > 1 else float("nan"),
        effective_size(nearest, len(ids)),
        len(ids),
        len(kept),
        len(pool),
    )


def unit_rows(features: Features, ids: torch.Tensor) -> torch.Tensor:
    """Unit rows (n, D) float32 on the CPU at pool indices ids (n,). Raises UserError on NaN or infinity."""
    return normalise(take_rows(features, ids))


def nearest_other(
    rows: torch.Tensor, chosen: torch.Tensor, own: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(largest cosine similarity, its place) of unit rows (n, D) to the chosen (B, D), (n,) each.

    own: (n,) the place of each row among the chosen, which is left out.
    """
    parts = []
    for start, stop in row_blocks(len(rows), len(chosen)):
        product = rows[start:stop] @ chosen.T
        if own is not None:
            product.scatter_(1, own[start:stop, None], -torch.inf)
        parts.append(product.max(1))
    return torch.cat([values for values, _ in parts]), torch.cat([places for _, places in parts])


def distance_of(similarity: torch.Tensor) -> torch.Tensor:
    """Euclidean distances of unit rows with these cosine similarities, float64."""
    return (2 - 2 * similarity.double()).clamp_(min=0).sqrt()


def effective_size(nearest: torch.Tensor, count: int) -> float:
    """1 / sum of w^2 over the shares w of rows that have each of `count` images as their nearest; nearest: (n,)."""
    shares = nearest.bincount(minlength=count).double() / len(nearest)
    return (1 / shares.square().sum()).item()


def directions(count: int, dimensions: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform random unit vectors, (count, dimensions)."""
    return normalise(torch.randn(count, dimensions, generator=generator))


def sliced_wasserstein(rows: torch.Tensor, others: torch.Tensor, along: torch.Tensor) -> float:
    """Mean over the directions `along` (S, D) of the Wasserstein-1 distance of two projected tables (n, D), (m, D)."""
    values, order = torch.cat([along @ rows.T, along @ others.T], 1).sort(1)  # (S, n + m)
    own = order < len(rows)
    ahead = torch.where(own, len(others), -len(rows)).cumsum(1)  # whole numbers: a GPU adds others in any order
    share = ahead[:, :-1].abs().double() / (len(rows) * len(others))  # by how much one has more below
    return (share * values.diff(dim=1)).sum(1).mean().item()


def mean_discrepancy(rows: torch.Tensor, others: torch.Tensor) -> float:
    """Maximum mean discrepancy of two tables of unit rows (n, D), (m, D), the biased estimate (Gretton et al. 2012).

    The kernel is Gaussian, as wide as the median distance of two of `rows`.
    """
    inner = rows @ rows.T
    width = distance_of(inner[~torch.eye(len(rows), dtype=torch.bool)]).median().item() if len(rows) > 1 else 0.0
    scale = max(width, 1e-6) ** 2

    def mean_of(product: torch.Tensor) -> float:
        return product.sub(1).div_(scale).exp_().double().mean().item()

    return max(0.0, mean_of(inner) + mean_of(others @ others.T) - 2 * mean_of(rows @ others.T)) ** 0.5
