"""Textbook versions of the methods that look for clusters, balls and typical images: full matrices and loops."""

import numpy as np
import torch
import torch.nn.functional as F


def unit(rows):
    return F.normalize(rows.double(), dim=1)


def rounded(rows):
    """Unit rows with coordinates of 1/2048, float64."""
    return (F.normalize(rows, dim=1) * 2048).round().double() / 2048


def all_distances(rows):
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def typiclust(rows, cluster, budget, neighbours, smallest, labelled=(), excluded=()):
    """Loops over clusters; cluster: {row: number} of all rows that are not excluded."""
    distance = all_distances(unit(rows))
    members = {c: [i for i in cluster if cluster[i] == c] for c in set(cluster.values())}

    def spread(i):
        near = sorted(distance[i, j].item() for j in members[cluster[i]] if j != i)[:neighbours]
        return sum(near) / max(1, len(near))

    taken, chosen = set(labelled), []
    while len(chosen) < budget:
        open_ones = [c for c in members if any(i not in taken for i in members[c])]
        best = min(
            open_ones,
            key=lambda c: (len(members[c]) < smallest, sum(i in taken for i in members[c]), -len(members[c]), c),
        )
        pick = min((i for i in members[best] if i not in taken), key=lambda i: (spread(i), i))
        taken.add(pick)
        chosen.append(pick)
    return chosen


def probcover(rows, budget, delta, turn, labelled=(), excluded=()):
    """Greedy maximum coverage by the whole matrix; of equal rows the first by turn, for each that is not excluded."""
    kept = [i for i in range(len(rows)) if i not in set(excluded) - set(labelled)]
    turn = dict(zip(kept, turn, strict=True))
    inside = (all_distances(rounded(rows)) <= delta).tolist()
    bare, chosen = set(kept), []
    for i in labelled:
        bare -= {j for j in kept if inside[i][j]}
    free = [i for i in kept if i not in labelled]
    while len(chosen) < budget:
        best = max(free, key=lambda i: (sum(inside[i][j] for j in bare), -turn[i]))
        chosen.append(best)
        free.remove(best)
        bare -= {j for j in kept if inside[best][j]}
    return chosen


def largest_pure_radius(rows, cluster, purity):
    """The largest distance d between rows with which a share `purity` of the balls of radius < d are of one cluster."""
    distance, best = all_distances(rounded(rows)), 0.0
    other = cluster[:, None] != cluster[None]
    for radius in distance.unique():
        pure = ~((distance < radius) & other).any(1)
        if pure.double().mean() >= purity - 1e-12:
            best = radius.item()
    return best


def herding(rows, budget, sigma, alpha, labelled=(), excluded=()):
    """Each time the sample with which the alpha-MMD to the pool is smallest, computed anew from the kernel matrix."""
    kept = torch.tensor([i for i in range(len(rows)) if i not in set(excluded) - set(labelled)])
    k = torch.exp((rounded(rows) @ rounded(rows).T - 1) / sigma**2)
    chosen, free = [], [i for i in kept.tolist() if i not in labelled]

    def mmd(ids):
        ids = torch.tensor(ids)
        own = k[ids[:, None], ids].sum() - k[ids, ids].sum() + len(ids)  # rounded rows are not quite of length 1
        return (own / len(ids) ** 2 - 2 * alpha * k[ids[:, None], kept].mean()).item()

    for _ in range(budget):
        chosen.append(min(free, key=lambda i: (mmd([*labelled, *chosen, i]), i)))
        free.remove(chosen[-1])
    return chosen


def zcore(rows, draws, start, exponent):
    """Scores of rows (n, D), float64. draws: [(axes, point)]; start: (n,) first scores."""
    rows, score = rows.double().numpy(), np.array(start, dtype=float)
    for axes, point in draws:
        some = rows[:, axes]
        best = np.abs(some - point).sum(1).argmin()
        score[best] += 1
        loss = np.maximum(np.abs(some - some[best]).sum(1), 1e-6) ** -exponent
        loss[best] = 0
        score -= loss / loss.sum()
    return score


def stratified_shares(cluster, budget, labelled=()):
    """{cluster: draws}: largest remainders of all labels, less those that are there (no bound may bind)."""
    numbers = sorted(set(cluster.values()))
    size = {c: sum(value == c for value in cluster.values()) for c in numbers}
    exact = {c: (budget + len(labelled)) * size[c] / len(cluster) for c in numbers}
    share = {c: int(exact[c]) for c in numbers}
    for c in sorted(numbers, key=lambda c: share[c] - exact[c])[: budget + len(labelled) - sum(share.values())]:
        share[c] += 1
    return {c: share[c] - sum(cluster[i] == c for i in labelled) for c in numbers}


def wasserstein(one, other):
    """Wasserstein-1 distance on a line by the quantile functions of all len(one) x len(other) shares."""
    left = np.repeat(np.sort(one), len(other))
    right = np.repeat(np.sort(other), len(one))
    return np.abs(left - right).mean()


def discrepancy(rows, others, width):
    """MMD by three double sums."""

    def mean_kernel(a, b):
        return np.mean([np.exp(-((x - y) ** 2).sum() / (2 * width**2)) for x in a for y in b])

    return (mean_kernel(rows, rows) + mean_kernel(others, others) - 2 * mean_kernel(rows, others)) ** 0.5
