"""The ActiveFT objective by its closed-form gradient: what each centroid feels, without autograd.

Notation: f_i unit features, u_j = c_j / |c_j| unit centroids, t the temperature, b the balance, a(i) the nearest
centroid of sample i, s_i = f_i . u_a(i), S_j = sum over l of exp(u_l . u_j / t).

Released objective: L = -(1/N) sum_i log(P_i / (P_i + b S_a(i))) with P_i = exp(s_i / t), the other centroids in S held
fixed. With z_i = log b + log S_a(i) - s_i / t this is L = (1/N) sum_i softplus(z_i), and dL/dz_i = w_i / N with
w_i = sigmoid(z_i). Since d log S_j / du_j = (1/t) sum_l q_jl u_l with q_jl = exp(u_l . u_j / t) / S_j,

    dL/du_j = (1/(N t)) [ (sum of w_i over a(i) = j) * sum_l q_jl u_l  -  sum of w_i f_i over a(i) = j ]

and through the normalisation dL/dc_j = (g - (g . u_j) u_j) / |c_j| with g = dL/du_j. Every term is a sum over the
samples of one centroid or over centroids: nothing of size pool x centroids. Logarithms of S are taken with the largest
term shifted out, so low temperatures do not overflow.

Paper objective (eq. 5-7): L = -(1/N) sum_i s_i / t + b (1/K) sum_j log sum_{l != j} exp(u_l . u_j / t).
"""

import math
from itertools import combinations_with_replacement, pairwise
from typing import Protocol

import torch
import torch.nn.functional as F

from data_selection.common.distributed import World
from data_selection.methods.configs import ActiveFTConfig
from data_selection.nearest.similarity import chunk_bytes, chunk_rows, row_blocks

REPULSION_BYTES = 32 << 20  # fixed, as all sizes here, so that no rounding depends on the memory limit
TABLE_ROWS = 256  # of float64 tables that are changed in place: what is made on the way stays small
BAGS = 1024  # centroids whose samples are added up at once
TILE_ROWS = 512  # of centroids: a tile of pairs stays in a core's cache


class Objective(Protocol):
    """The terms for one set of unit centroids (K, D); memory: (K, D) float64, for the gradient."""

    def __init__(self, units: torch.Tensor, config: ActiveFTConfig, world: World, memory: torch.Tensor) -> None: ...

    def sample_terms(self, similarity: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and weight w_i of samples with this similarity to their centroid `index`, both (B,)."""

    def centroid_terms(self, weights: torch.Tensor) -> tuple[float | torch.Tensor, torch.Tensor]:
        """Loss and gradient (K, D) of the repulsion beyond the samples' loss; weights: (K,) sums of w_i, over N.

        Can be called once: the gradient takes the place of what it is made from.
        """


class Released:
    """The released objective's terms."""

    def __init__(self, units: torch.Tensor, config: ActiveFTConfig, world: World, memory: torch.Tensor) -> None:
        self.temperature, self.balance = config.temperature, config.balance
        # (K,), (K, D): log S_j, sum_l q_jl u_l
        self.log_sum, self.mean = repulsion(units, config.temperature, world, memory)

    def sample_terms(self, similarity: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.log_sum[index] - similarity / self.temperature
        if self.balance != 1:
            z = z + torch.log(z.new_tensor(self.balance))
        return F.softplus(z), torch.sigmoid(z)

    def centroid_terms(self, weights: torch.Tensor) -> tuple[float | torch.Tensor, torch.Tensor]:
        return 0.0, self.mean.mul_(weights[:, None] / self.temperature)


class Paper:
    """The paper's objective: no self term, no positive in the denominator, every centroid counts the same."""

    def __init__(self, units: torch.Tensor, config: ActiveFTConfig, world: World, memory: torch.Tensor) -> None:
        self.temperature, self.balance = config.temperature, config.balance
        self.log_sum, self.mean = repulsion(units, config.temperature, world, memory, paper=True)

    def sample_terms(self, similarity: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -similarity / self.temperature, torch.ones_like(similarity)

    def centroid_terms(self, weights: torch.Tensor) -> tuple[float | torch.Tensor, torch.Tensor]:
        scale = self.balance / len(self.log_sum)
        if len(self.log_sum) == 1:  # nothing repels a single centroid
            return 0.0, torch.zeros_like(self.mean)
        return scale * self.log_sum.sum(), self.mean.mul_(scale / self.temperature)


OBJECTIVES: dict[str, type[Objective]] = {"released": Released, "paper": Paper}


def repulsion(
    units: torch.Tensor, temperature: float, world: World, memory: torch.Tensor, paper: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """log S_j (K,) and the centroids' pull on each other (K, D), both float64; tiles are shared out over the ranks.

    units: (K, D) float32 unit centroids; memory: (K, D) float64, for the pull. Released: sum_l q_jl u_l. Paper: l = j
    is left out, and since nothing is held fixed, u_j also appears in every other S_l: sum over l of (q_jl + q_lj) u_l.
    """
    mean = memory.zero_()
    if paper:
        return paper_repulsion(units, temperature, world, mean)
    sums = mean.new_zeros(len(units))
    size = chunk_rows(units, TILE_ROWS, len(units))
    parts = [slice(start, start + size) for start in range(0, len(units), size)]
    tiles = list(combinations_with_replacement(parts, 2))
    for rows, columns in tiles[world.rank :: world.size]:
        weights = (units[rows] @ units[columns].T).div_(temperature)
        weights = weights.sub_(1 / temperature).exp_()  # l = j is the largest term of unit vectors: nothing overflows
        sums[rows] += weights.sum(1)
        mean[rows] += weights @ units[columns]
        if rows != columns:  # the pairs are symmetric
            sums[columns] += weights.sum(0)
            mean[columns] += weights.T @ units[rows]
    world.sum_(sums)
    log_sum, mean = sums.log() + 1 / temperature, world.sum_(mean).div_(sums[:, None])
    zero = units.square().sum(1) < 0.5  # that shift loses rows of zeros
    if units.is_cuda:  # where nobody waits for their number: such a row has the logit 0 with all
        mean.copy_(torch.where(zero[:, None], units.mean(0).double(), mean))
        return log_sum.masked_fill_(zero, math.log(len(units))), mean
    for rows in zero.nonzero()[:, 0].split(TABLE_ROWS):
        logits = (units[rows] @ units.T).div_(temperature)
        log_sum[rows], mean[rows] = logits.logsumexp(1).double(), (logits.softmax(1) @ units).double()
    return log_sum, mean


def paper_repulsion(
    units: torch.Tensor, temperature: float, world: World, mean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As repulsion, for the paper's objective; without l = j the shift depends on the row, so rows stay whole."""
    log_sum = mean.new_zeros(len(units))
    blocks = row_blocks(len(units), 2 * len(units), chunk_bytes(units.device, REPULSION_BYTES))[
        world.rank :: world.size
    ]
    for start, stop in blocks:
        log_sum[start:stop] = other_logits(units, start, stop, temperature).logsumexp(1)
    world.sum_(log_sum)
    for start, stop in blocks if len(units) > 1 else ():
        logits = other_logits(units, start, stop, temperature)
        mine = log_sum[start:stop, None].float()
        mean[start:stop] = ((logits - mine).exp() + (logits - log_sum.float()).exp()) @ units
    return log_sum, world.sum_(mean)


def other_logits(units: torch.Tensor, start: int, stop: int, temperature: float) -> torch.Tensor:
    """u_j . u_l / t for rows j of start..stop, (B, K); -inf for l = j."""
    logits = (units[start:stop] @ units.T).div_(temperature)
    logits.diagonal(start).fill_(-torch.inf)
    return logits


def add_segment_sums(
    sums: torch.Tensor, masses: torch.Tensor, rows: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> None:
    """Add weights_i * rows_i to its centroid's row of sums (K, D), and the weights to masses (K,), both in place.

    rows: (B, D), index: (B,) 0..K-1, weights: (B,) float64. float32 within the call, in the order of the rows, whatever
    the number of threads; float64 between calls.
    """
    order = index.argsort(stable=True)
    offsets = torch.searchsorted(index[order], torch.arange(len(sums), device=index.device))
    masses += F.embedding_bag(order, weights[:, None], offsets, mode="sum")[:, 0]  # index_add_: in any order on a GPU
    short = weights[order].to(rows.dtype)
    bags_at_once = len(sums) if rows.is_cuda else BAGS  # to cut the samples, the host must know where
    cuts = offsets[bags_at_once::bags_at_once]
    ends = [0, *(cuts.tolist() if len(cuts) else ()), len(rows)]
    parts = zip(sums.split(bags_at_once), offsets.split(bags_at_once), pairwise(ends), strict=True)
    for some, bags, (first, last) in parts:
        part = slice(first, last)
        some += F.embedding_bag(order[part], rows, bags - first, mode="sum", per_sample_weights=short[part])


def through_normalisation(gradient: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """dL/dc from dL/du, both (K, D), in place: the part along u drops out, the rest is divided by |c|."""
    step = chunk_rows(gradient, TABLE_ROWS)
    for part, values in zip(gradient.split(step), centroids.split(step), strict=True):
        norm = values.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        units = values / norm
        part.sub_(units.mul_((part * units).sum(1, keepdim=True))).div_(norm)
    return gradient
