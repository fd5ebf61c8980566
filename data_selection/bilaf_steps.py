"""BiLAF's steps within the classes as pure functions: denoise, allocate, pick. config: bilaf.BiLAFConfig.

Tried and dropped: NumPy's partition of the nearest members' keys in place of topk (no faster as a whole).
"""

import heapq

import torch

from data_selection.bilaf_classes import key_base, on_grid


def included_count(sizes, config):
    """Members (K,) that join the growing cluster, of class sizes (K,): all, or whole rings only."""
    ring = ring_size(sizes, config)
    included = sizes if config.ring_end == "all" else ring * (sizes // ring)
    return torch.where(sizes < config.small_class, sizes, included)


def ring_size(sizes, config):
    """floor(ring_share x size), at least 1."""
    return (sizes.double() * config.ring_share).long().clamp(min=1)


def kept_count(sizes, config):
    """Members (K,) that denoising keeps, at least the core. It depends on the class sizes alone."""
    included = included_count(sizes, config)
    if config.rounding == "share":
        kept = included - (included.double() * config.remove_share + 1e-9).long()
    else:
        kept = (included.double() * (1 - config.remove_share)).long()
    return torch.where(sizes < config.small_class, sizes, kept.clamp(min=1))


def denoise(pairs, sizes, core, kept, config, must=None):
    """Iterative density-based clustering: grow each class ring by ring from its core, keep what joined first.

    pairs: Pairs of G classes of up to n members. sizes, core, kept: (G,) members, local index of the core, members to
    keep. must: (G, n) bool, members kept in any case (the core always is). Returns (G, max kept) local indices in the
    order of joining, padded with the core.
    rho(x) = mean distance to the k nearest samples of the cluster (section 3.3); each ring takes the lowest, equal ones
    by local index. Cost per class: n^2 x D for the distances; memory: n x (ring + k) beside pairs.
    """
    device, (groups, n) = sizes.device, pairs.shape
    local = torch.arange(n, device=device).expand(groups, n)
    target = torch.where(sizes < config.small_class, 0, included_count(sizes, config))  # (G,) members that will join
    ring = ring_size(sizes, config)
    base = key_base(n)
    rank = torch.full((groups, n), float(n), dtype=torch.float64, device=device)
    rank = torch.where((sizes < config.small_class)[:, None], local.double(), rank)  # untouched: ascending order

    rest, left = local, torch.where(target > 0, sizes, 0)  # candidates (G, R) ascending, how many of them are real
    near = torch.full((groups, n, config.density_number), torch.inf, dtype=torch.float64, device=device)
    if config.ring_start == "core":
        rho = torch.where(local == core[:, None], -1.0, 0.0).double()
        take = torch.ones_like(ring)
    else:
        rho, take = pairs.between(core[:, None])[:, 0], ring
    joined = torch.zeros_like(ring)
    while True:
        take = torch.minimum(take, target - joined)  # (G,)
        rho = rho.masked_fill(torch.arange(rest.shape[1], device=device) >= left[:, None], torch.inf)
        step = torch.arange(int(take.max()), device=device)
        place = rho.sort(dim=1, stable=True).indices[:, : len(step)]  # positions in rest, best first
        joins = step < take[:, None]  # (G, W)
        new = rest.gather(1, place)
        position = torch.where(joins, (joined[:, None] + step).double(), torch.inf)  # in the cluster's list
        rank.scatter_(1, new, torch.where(joins, position, rank.gather(1, new)))
        joined, left = joined + take, left - take
        if not (joined < target).any():
            break
        gone = torch.zeros_like(rest, dtype=torch.bool).scatter_(1, place, joins)
        stay = gone.sort(dim=1, stable=True).indices[:, : int(left.max())]
        rest, near = rest.gather(1, stay), near.gather(1, stay[:, :, None].expand(-1, -1, near.shape[2]))
        for start, stop in pairs.blocks(len(step)):
            near = _merge_nearest(pairs, rest, near, new[:, start:stop], position[:, start:stop], base)
        rho = _density(pairs, rest, near, joined, base, config)
        take = ring
    required = torch.zeros_like(rank, dtype=torch.bool) if must is None else must.clone()
    required[torch.arange(groups, device=device), core] = True
    rank = torch.where(required & (rank >= kept[:, None]), -1.0, rank)  # twins of the core may have taken its place
    order = rank.sort(dim=1, stable=True).indices[:, : int(kept.max())]
    return torch.where(torch.arange(order.shape[1], device=device) < kept[:, None], order, core[:, None])


def _merge_nearest(pairs, rest, near, new, position, base):
    """The k nearest of each candidate, members `new` (G, W) of the cluster counted in.

    rest: (G, R) candidates. near: (G, R, k) keys, squared distance x base + position in the cluster's list. position:
    (G, W) of the new members, inf for padding. Returns keys like near.
    """
    square = pairs.between(new).gather(2, rest[:, None].expand(-1, new.shape[1], -1))  # (G, W, R)
    keys = torch.add(position[:, :, None], square, alpha=base).mT
    return torch.cat([near, keys], dim=2).topk(near.shape[2], dim=2, largest=False).values


def _density(pairs, rest, near, joined, base, config):
    """rho (G, R) of the candidates: mean distance to the members in near (G, R, k); joined: (G,) the cluster's size."""
    found = torch.isfinite(near)
    square = torch.where(found, (near / base).floor(), 0)
    if config.neighbours == "position":
        place = torch.where(found, near - square * base, 0).long()
        square = torch.where(found, pairs.each(rest, place), 0)
    return on_grid(square.sqrt_().sum(2) / joined.clamp(1, near.shape[2])[:, None])


def allocate(sizes, total, lower, upper, rule):
    """How many of `total` samples each class gives.

    sizes: (K,) members after denoising. lower, upper: (K,) bounds, sum(lower) <= total <= sum(upper). Returns (K,)
    int64 that add up to total. B_i = B x |U_i| / sum |U_j| (section 3.3); rule: `remainder`, the largest remainders
    round up; `smallest` (released), all round down and each sample left goes to the class with the smallest share,
    then the largest class. A bound that binds moves its samples to the other classes by the same rule.
    Cost: K log K; one sample at a time, at most about K of them.
    """
    sizes, lower, upper = sizes.tolist(), lower.tolist(), upper.tolist()
    whole = sum(sizes)
    if rule == "remainder":
        count = [size * total // whole for size in sizes]
        order = [lambda given, size=size: given - size * total / whole for size in sizes]
    else:
        count = [int(size / whole * total) for size in sizes]  # float64, as released
        order = [lambda given: given] * len(sizes)
    count = [min(max(given, low), high) for given, low, high in zip(count, lower, upper)]
    sign = 1 if sum(count) < total else -1  # hand out to the lowest, or take back from the highest
    bound = upper if sign > 0 else lower
    heap = [(sign * order[j](count[j]), -sign * sizes[j], j) for j in range(len(sizes)) if count[j] != bound[j]]
    heapq.heapify(heap)
    for _ in range(abs(total - sum(count))):
        j = heap[0][2]
        count[j] += sign
        if count[j] == bound[j]:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (sign * order[j](count[j]), -sign * sizes[j], j))
    return torch.tensor(count)


def pick(pairs, sizes, core, count, rivals, config, forced=None):
    """Boundary samples of G classes, one after another, from the core on.

    pairs: Pairs of the kept members, in the order of joining. sizes, core, count: (G,) members, local index of the
    core, samples wanted (the core among them, count <= sizes). rivals: (ids, distance), each (G, n, T), the other cores
    that a sample may border on, nearest first. forced: (G, F) local indices of samples chosen before, core first, -1
    where there is none. Returns (G, max count) local indices in the order of choosing.

    After each choice its |U| / B_i nearest candidates leave, and the next is the candidate with the lowest
    min_l (delta^t_l D(x, c_l) - d_intra(x)) / max(D(x, c_l), d_intra(x)), Eq. 7, t_l counting the choices that
    bordered on l; equal scores: the one closest to the last choice. Where no candidate is left (duplicates), those
    removed come back. Cost per class: n^2 for d_intra, n x (log n + T) per choice; memory n x T beside pairs.
    """
    device, (groups, n) = sizes.device, pairs.shape
    group = torch.arange(groups, device=device)
    rival, distance = rivals
    factor = torch.ones_like(distance)
    real = torch.arange(n, device=device) < sizes[:, None]
    alive, taken = real.clone(), torch.zeros_like(real)
    taken[group, core] = True
    local, base = torch.arange(n, dtype=torch.float64, device=device), key_base(n)
    intra, left = pairs.sums(torch.arange(n, device=device).expand(groups, n), real), sizes.clone()
    chosen = torch.full((groups, int(count.max())), -1, device=device)
    chosen[:, 0] = core
    for turn in range(1, chosen.shape[1]):
        row = pairs.between(chosen[:, turn - 1, None])[:, 0]  # (G, n) to the last choice
        key = torch.add(local, row, alpha=base).masked_fill_(~alive, torch.inf)
        remove = ((sizes if config.removal == "class" else left) // count).clamp(min=1)
        nearest, leaving = key.topk(int(remove.max()), dim=1, largest=False)
        last = nearest.gather(1, remove[:, None] - 1)
        alive &= key > last
        if config.intra == "remaining" or config.removal == "remaining":
            leaves = (nearest <= last) & nearest.isfinite()
            left = left - leaves.sum(1)
        if config.intra == "remaining":
            intra = intra - pairs.sums(leaving, leaves)
        spread = left.clamp(min=1) if config.intra == "remaining" else sizes
        score, border = _boundary_score(factor, distance, on_grid(intra / spread[:, None]))
        free = alive & ~taken
        free = torch.where(free.any(1, keepdim=True), free, real & ~taken)
        score.masked_fill_(~free, torch.inf)
        key.clamp_(max=torch.finfo(torch.float64).max)
        best = key.masked_fill_(score > score.amin(1, keepdim=True), torch.inf).argmin(1)
        if forced is not None and turn < forced.shape[1]:
            best = torch.where(forced[:, turn] >= 0, forced[:, turn], best)
        chosen[:, turn] = best
        taken[group, best] = True
        met = rival[group, best, border[group, best]]
        factor = torch.where(rival == met[:, None, None], factor * config.penalty, factor)
    return torch.where(torch.arange(chosen.shape[1], device=device) < count[:, None], chosen, -1)


def _boundary_score(factor, distance, intra):
    """Score (G, n) and the position (G, n) of the rival that gives it; low means close to the border."""
    intra = intra[:, :, None]
    largest = torch.maximum(distance, intra).clamp(min=torch.finfo(torch.float64).tiny)
    return ((factor * distance - intra) / largest).min(dim=2)
