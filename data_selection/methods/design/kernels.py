"""Gaussian kernels of unit rows, and the features that approximate them."""

from dataclasses import dataclass

import torch

from data_selection.nearest.pool_reader import UnitPool

SAMPLED = 1_200  # rows whose median distance stands for the pool's
JITTER = 1e-6  # eigenvalues of the landmarks' kernel below this are rounding


def draw(count: int, total: int, generator: torch.Generator) -> torch.Tensor:
    """min(count, total) distinct numbers below total, ascending int64 on the CPU."""
    return torch.randperm(total, generator=generator)[:count].sort().values


def median_distance(rows: torch.Tensor) -> float:
    """Median of the positive Euclidean distances between rows (n, D); 1 where all rows are equal."""
    distance = torch.pdist(rows.cpu().float())
    positive = distance[distance > 1e-4]
    return positive.median().item() if len(positive) else 1.0


def sampled_distance(pool: UnitPool, generator: torch.Generator) -> float:
    """median_distance of some random rows of a pool."""
    return median_distance(pool.take(draw(SAMPLED, pool.count, generator)))


@dataclass(frozen=True)
class Kernel:
    """The sum of Gaussian kernels exp(-d^2 / (2 sigma^2)) of the distance d between unit rows, one for each width."""

    widths: tuple[float, ...]

    def __call__(self, rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """(B, C) float32 of unit rows (B, D) and (C, D)."""
        exponent = (rows @ others.T).sub_(1).clamp_(max=0)  # -d^2 / 2
        result = (exponent / self.widths[0] ** 2).exp_()
        for width in self.widths[1:]:
            result += (exponent / width**2).exp_()
        return result


@dataclass(frozen=True)
class RandomFeatures:
    """Nystroem features of a Gaussian kernel: rows' products approximate it. landmarks: (m, D); matrix: (m, F)."""

    kernel: Kernel
    landmarks: torch.Tensor
    matrix: torch.Tensor

    @classmethod
    def fit(cls, landmarks: torch.Tensor, components: int) -> "RandomFeatures":
        """Of the kernel of half the landmarks' median distance, along its `components` largest eigenvectors there."""
        kernel = Kernel((median_distance(landmarks) / 2,))
        values, vectors = torch.linalg.eigh(kernel(landmarks, landmarks).double())
        values, vectors = values[-components:], vectors[:, -components:]
        kept = values > JITTER
        return cls(kernel, landmarks, (vectors[:, kept] / values[kept].sqrt()).float())

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, F) float32 of unit rows (B, D)."""
        return self.kernel(rows, self.landmarks) @ self.matrix
