"""Textbook versions of ActiveFT: everything in full matrices, by autograd, loops and sorts."""

import torch
import torch.nn.functional as F


def activeft_loss(rows, centroids, temperature=0.07, balance=1.0, fixed=None):
    """The released objective over the full matrix, as its programs compute it: exp of all pairs, then the maximum.

    rows: (N, D) unit vectors; centroids: (K, D), free; fixed: (L, D) unit centroids in front of them.
    """
    units = F.normalize(centroids, dim=1)
    if fixed is not None:
        units = torch.cat([fixed, units])
    similarity = torch.exp(rows @ units.T / temperature)  # (N, K)
    positive, index = similarity.max(1)
    others = torch.exp(units @ units.T.detach() / temperature).sum(1)  # (K,)
    return -(torch.log(positive) - torch.log(positive + balance * others[index])).mean()


def paper_loss(rows, centroids, temperature=0.07, balance=1.0):
    """The paper's objective: no self term, no positive in the denominator, nothing held fixed."""
    units = F.normalize(centroids, dim=1)
    logits = units @ units.T / temperature
    logits = logits.masked_fill(torch.eye(len(units), dtype=torch.bool), -torch.inf)
    return -(rows @ units.T).amax(1).mean() / temperature + balance * logits.logsumexp(1).mean()


def optimise(rows, start, steps, lr=1e-3, **options):
    """Adam on the released objective; (losses before each step, unit centroids)."""
    centroids = start.clone().requires_grad_()
    adam = torch.optim.Adam([centroids], lr=lr)
    losses = []
    for _ in range(steps):
        loss = activeft_loss(rows, centroids, **options)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses, F.normalize(centroids.detach(), dim=1)


def greedy_assignment(similarity, barred=()):
    """Centroid after centroid takes its most similar free sample, from a full stable sort; similarity: (K, N)."""
    taken, chosen = set(barred), []
    for order in similarity.argsort(dim=1, descending=True, stable=True).tolist():
        chosen.append(next(i for i in order if i not in taken))
        taken.add(chosen[-1])
    return chosen


def farthest_points(rows, budget, first):
    """k-center greedy from `first` over unit rows, by the full distance matrix."""
    distance = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = [first]
    while len(chosen) < budget:
        gap = distance[:, chosen].amin(1)
        gap[chosen] = -1
        chosen.append(gap.argmax().item())
    return chosen
