"""Facility location and V-optimal design in full matrices: every candidate is tried anew at every pick."""

import torch


def gaussians(rows, others, widths):
    """The sum of Gaussian kernels of unit rows, by their distances; float64."""
    distance = torch.cdist(rows.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return sum((-(distance**2) / (2 * width**2)).exp() for width in widths)


def facility(kernel, weights, budget, labelled=(), barred=()):
    """Candidates (rows of kernel (N, C)) by the weighted sum of the clients' maxima, tried one after another."""
    chosen = list(labelled)
    for _ in range(budget):
        values = [
            (kernel[[*chosen, j]].amax(0) * weights).sum().item() if j not in {*chosen, *barred} else -1.0
            for j in range(len(kernel))
        ]
        chosen.append(max(range(len(values)), key=values.__getitem__))
    return chosen[len(labelled) :]


def mean_variance(rows, weights, labelled, noise):
    """Weighted mean of x' Sigma x over all rows, Sigma the posterior covariance given the labelled rows."""
    known = rows[list(labelled)]
    sigma = torch.linalg.inv(torch.eye(rows.shape[1], dtype=torch.float64) + known.T @ known / noise)
    return (((rows @ sigma) * rows).sum(1) * weights).sum() / weights.sum()


def voptimal(rows, weights, budget, labelled, noise):
    """The rows whose labels leave the least mean variance, each tried by a new inverse."""
    rows, chosen = rows.double(), list(labelled)
    for _ in range(budget):
        values = {
            j: mean_variance(rows, weights, [*chosen, j], noise).item() for j in range(len(rows)) if j not in chosen
        }
        chosen.append(min(values, key=values.get))
    return chosen[len(labelled) :]
