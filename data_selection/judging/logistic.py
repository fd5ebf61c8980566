"""Multinomial logistic regression at several strengths of its penalty: one rotation of the features, warm starts.

The solution lies in the span of the rows. Along the axes of their second moments, each in units of its own curvature,
L-BFGS needs tens of steps where it takes hundreds along the features' own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize

from data_selection.common.threads import one_thread_if

MAX_STEPS = 2000
TOLERANCE = 1e-5  # moves no probability by 1e-4
MEMORY = 20  # steps that L-BFGS remembers
BLOCK = 1 << 24  # logits computed at a time
SMALL = 1 << 23  # numbers: 20,000 rows of 384; 1,000 take 0.08 s on one thread of a quiet machine and 0.2 on two
Table = tuple[torch.Tensor, torch.Tensor]


def logistic_path(
    features: torch.Tensor, targets: torch.Tensor, strengths: Sequence[float], tolerance: float = TOLERANCE
) -> list[Table]:
    """(weight (P, D), bias (P,)) for each inverse strength C, in the order given; float64 on the features' device.

    Minimises, over weight and bias, sum_i CE(targets_i, softmax(weight x_i + bias)) + |weight|^2 / (2 C). features:
    (n, D) floats. targets: (n, P), rows of 0 or more that sum to the row's weight in the loss: one-hot, smoothed or
    soft. tolerance: of the gradient in units of the curvature, per square root of a row. Convex and deterministic, from
    the lowest C upwards; the biases sum to 0. Up to SMALL numbers in features it is as fast on one thread as on two.
    """
    with one_thread_if(features.numel() <= SMALL):
        return path_of(features, targets, strengths, tolerance)


def path_of(features: torch.Tensor, targets: torch.Tensor, strengths: Sequence[float], tolerance: float) -> list[Table]:
    """logistic_path, on as many threads as there are."""
    x, t = features.double(), targets.to(features.device).double()
    centre = x.mean(0)
    x = x - centre
    basis = torch.linalg.qr(x.T)[0] if len(x) < x.shape[1] else None  # (D, n): nothing is left outside of it
    if basis is not None:
        x = x @ basis
    turn = torch.linalg.eigh(x.T @ x).eigenvectors
    x, basis = x @ turn, turn if basis is None else basis @ turn
    problem = Problem(x, t, tolerance)
    table = x.new_zeros(t.shape[1], x.shape[1] + 1)
    results = {}
    for c in sorted(set(strengths)):
        table = problem.solve(c, table)
        weight = table[:, :-1] @ basis.T
        bias = table[:, -1] - weight @ centre
        results[c] = weight, bias - bias.mean()
    return [results[c] for c in strengths]


class Problem:
    """Rows x (n, r) with targets t (n, P); a table (P, r + 1) holds weights, then biases."""

    def __init__(self, x: torch.Tensor, t: torch.Tensor, tolerance: float) -> None:
        step = max(1, BLOCK // t.shape[1])
        mass = t.sum(1, keepdim=True)
        self.parts = list(zip(x.split(step), t.split(step), mass.split(step), strict=True))
        self.stop = tolerance * max(1.0, mass.sum().item()) ** 0.5

    def solve(self, c: float, start: torch.Tensor) -> torch.Tensor:
        """The best table for C = c, sought from `start` in units of its curvature."""
        scale = self.curvature(c, start).rsqrt()

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.loss(c, torch.from_numpy(flat).to(start.device).view(start.shape) * scale)
            return value, (slope * scale).flatten().cpu().numpy()

        options = {"maxiter": MAX_STEPS, "maxfun": 2 * MAX_STEPS, "maxcor": MEMORY, "ftol": 0.0, "gtol": self.stop}
        flat = (start / scale).flatten().cpu().numpy()
        found = minimize(objective, flat, jac=True, method="L-BFGS-B", options=options)
        return torch.from_numpy(found.x).to(start.device).view(start.shape) * scale

    def loss(self, c: float, table: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The objective at a table, and its gradient, (P, r + 1)."""
        weight, bias = table[:, :-1], table[:, -1]
        value = weight.square().sum() / (2 * c)
        slope = torch.cat([weight / c, torch.zeros_like(bias)[:, None]], 1)
        for x, t, mass in self.parts:
            logits = torch.addmm(bias, x, weight.T)  # (B, P)
            total = logits.logsumexp(1, keepdim=True)
            value = value + (mass * total).sum() - (t * logits).sum()
            rest = (logits - total).exp_().mul_(mass).sub_(t)
            slope[:, :-1] += rest.T @ x
            slope[:, -1] += rest.sum(0)
        return value.item(), slope

    def curvature(self, c: float, table: torch.Tensor) -> torch.Tensor:
        """The diagonal of the objective's second derivatives at a table, (P, r + 1), above 0."""
        result = torch.full_like(table, 1 / c)
        for x, _, mass in self.parts:
            p = torch.addmm(table[:, -1], x, table[:, :-1].T).softmax(1)
            p = p * (1 - p) * mass
            result[:, :-1] += p.T @ x.square()
            result[:, -1] += p.sum(0)
        return result
