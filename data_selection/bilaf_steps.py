"""The four steps of BiLAF as pure functions: assign, denoise, allocate, pick. config: bilaf.BiLAFConfig."""

import heapq

import torch

from data_selection.bilaf_classes import grid_unit, key_base, on_grid, rank_and_size, rows_at, sum_over_ranks
from data_selection.progress import open_bar
from data_selection.similarity import normalise, read_rows, row_blocks

NO_RIVAL = 1e9 + 7  # the distance to "the other cores" where there is one core only, as in the released program


def assign(features, cores, config, device, max_bytes, progress=None):
    """Pseudo-class of every sample: the nearest core, and the nearest of the others (its rival).

    features: (N, D). cores: (K,) pool indices. Returns (own, rival), each (N,) int64 on the CPU with values 0..K-1;
    equal distances go to the lowest; a core is always in its own class; with one core the rival is that core.
    Source: c(x) = argmin_j D(f_x, f_cj), section 3.3. Cost: N x K x D, in blocks; memory: one block.

    Blocks are float32 products; rows whose first places are closer than float32 can tell are measured again in
    float64, so the result is that of float64.
    """
    n, k = len(features), len(cores)
    centre = rows_at(features, cores, device, config.normalised)  # (K, D) float64
    mean = centre.mean(0)
    centre = centre - mean  # short vectors round less
    narrow = centre.float()
    half = narrow.square().sum(1) / 2  # (K,)
    reach = half.max().mul(2).sqrt()
    near = torch.zeros(n, 2, dtype=torch.int64, device=device)
    rank, size = rank_and_size()
    blocks = row_blocks(n, k + features.shape[1], min(max_bytes // 8, 64 << 20))[rank::size]
    with open_bar(progress, n, "BiLAF assign", "row") as bar:
        for start, stop in blocks:
            rows = read_rows(features, start, stop, device)
            rows = (normalise(rows) if config.normalised else rows) - mean.float()  # (B, D)
            value, index = torch.addmm(-half, rows, narrow.T).topk(min(3, k), dim=1)
            near[start:stop] = index[:, [0, min(1, k - 1)]]
            blur = 2.0**-18 * reach * (rows.square().sum(1).sqrt() + reach)  # (B,) far above the rounding error
            unsure = (value[:, :-1] - value[:, 1:] < blur[:, None]).any(1).nonzero()[:, 0] + start
            for part in unsure.split(max(1, max_bytes // (64 * k))):
                near[part] = _exact_nearest(rows_at(features, part.cpu(), device, config.normalised) - mean, centre)
            bar.update((stop - start) * size)
    near = sum_over_ranks(near).cpu()
    own = near[:, 0].clone()
    own[cores] = torch.arange(k)
    return own, torch.where(near[:, 0] == own, near[:, 1], near[:, 0])


def _exact_nearest(rows, centre):
    """(B, 2) indices of the two nearest centres of rows (B, D) in float64, ties to the lowest."""
    square = torch.addmm(centre.square().sum(1), rows, centre.T, alpha=-2) + rows.square().sum(1, keepdim=True)
    unit = grid_unit(square.amax(1, keepdim=True), bits=34)
    key = (square * unit**2).round_() * key_base(len(centre)) + torch.arange(len(centre), device=rows.device)
    return key.topk(min(2, len(centre)), dim=1, largest=False).indices[:, [0, -1]]


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
    device, (groups, n) = sizes.device, pairs.square.shape
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
        rho, take = pairs.to_all(core[:, None])[:, 0], ring
    joined = torch.zeros_like(ring)
    while True:
        take = torch.minimum(take, target - joined)  # (G,)
        width = int(take.max())
        rho = rho.masked_fill(torch.arange(rest.shape[1], device=device) >= left[:, None], torch.inf)
        place = rho.sort(dim=1, stable=True).indices[:, :width]  # positions in rest, best first
        step = torch.arange(width, device=device)
        joins = step < take[:, None]  # (G, W)
        new = rest.gather(1, place)
        rank.scatter_(1, new, torch.where(joins, (joined[:, None] + step).double(), rank.gather(1, new)))
        position = torch.where(joins, (joined[:, None] + step).double(), torch.inf)  # in the cluster's list
        joined, left = joined + take, left - take
        if not (joined < target).any():
            break
        gone = torch.zeros_like(rest, dtype=torch.bool).scatter_(1, place, joins)
        stay = gone.sort(dim=1, stable=True).indices[:, : int(left.max())]
        rest, near = rest.gather(1, stay), near.gather(1, stay[:, :, None].expand(-1, -1, near.shape[2]))
        near, rho = _update_density(pairs, rest, near, new, position, joined, base, config)
        take = ring
    required = torch.zeros_like(rank, dtype=torch.bool) if must is None else must.clone()
    required[torch.arange(groups, device=device), core] = True
    rank = torch.where(required & (rank >= kept[:, None]), -1.0, rank)  # twins of the core may have taken its place
    order = rank.sort(dim=1, stable=True).indices[:, : int(kept.max())]
    return torch.where(torch.arange(order.shape[1], device=device) < kept[:, None], order, core[:, None])


def _update_density(pairs, rest, near, new, position, joined, base, config):
    """Merge the members `new` (G, W) into each candidate's k nearest and return (near, rho).

    near: (G, R, k) keys, squared distance x base + position in the cluster's list. position: (G, W), inf for padding.
    """
    k = near.shape[2]
    merged, means = [], []
    for start, stop in pairs.blocks(rest.shape[1], 2 * (new.shape[1] + 3 * k)):
        rows = rest[:, start:stop]
        keys = torch.add(position[:, None, :], pairs.between(rows, new), alpha=base)  # (G, R', W)
        keys = torch.cat([near[:, start:stop], keys], dim=2).topk(k, dim=2, largest=False).values
        found = torch.isfinite(keys)
        square = torch.where(found, (keys / base).floor(), 0)
        if config.neighbours == "position":
            place = torch.where(found, keys - square * base, 0).long()
            square = torch.where(found, pairs.each(rows, place), 0)
        merged.append(keys)
        means.append(square.sqrt().sum(2) / joined.clamp(1, k)[:, None])
    return torch.cat(merged, dim=1), on_grid(torch.cat(means, dim=1))


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
    device, (groups, n) = sizes.device, pairs.square.shape
    group = torch.arange(groups, device=device)
    rival, distance = rivals
    factor = torch.ones_like(distance)
    real = torch.arange(n, device=device) < sizes[:, None]
    alive, taken = real.clone(), torch.zeros_like(real)
    taken[group, core] = True
    intra, left = _intra_sum(pairs, real), sizes.clone()
    chosen = torch.full((groups, int(count.max())), -1, device=device)
    chosen[:, 0] = core
    for turn in range(1, chosen.shape[1]):
        row = pairs.to_all(chosen[:, turn - 1, None])[:, 0].masked_fill(~alive, torch.inf)  # (G, n) to the last choice
        order = row.sort(dim=1, stable=True).indices
        remove = (sizes // count).clamp(min=1) if config.removal == "class" else (left // count).clamp(min=1)
        leaving = order[:, : int(remove.max())]
        leaves = (torch.arange(leaving.shape[1], device=device) < remove[:, None]) & alive.gather(1, leaving)
        alive.scatter_(1, leaving, alive.gather(1, leaving) & ~leaves)
        left = left - leaves.sum(1)
        if config.intra == "remaining":
            intra = intra - _sum_to(pairs, leaving, leaves)
        spread = left.clamp(min=1) if config.intra == "remaining" else sizes
        score, border = _boundary_score(factor, distance, on_grid(intra / spread[:, None]))
        free = alive & ~taken
        free = torch.where(free.any(1, keepdim=True), free, real & ~taken)
        best = score.masked_fill(~free, torch.inf).gather(1, order).argmin(1, keepdim=True)
        best = order.gather(1, best)[:, 0]
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


def _intra_sum(pairs, real):
    """(G, n) sum of the distances to all real members."""
    n = real.shape[1]
    every = torch.arange(n, device=real.device).expand(len(real), n)
    weight = real.double()[:, :, None]
    return torch.cat([(pairs.to_all(every[:, a:b]).sqrt() @ weight)[:, :, 0] for a, b in pairs.blocks(n, 2 * n)], dim=1)


def _sum_to(pairs, columns, weight):
    """(G, n) sum of the distances to the members columns (G, m) where weight (G, m) is true."""
    n = pairs.square.shape[1]
    every = torch.arange(n, device=columns.device).expand(len(columns), n)
    weight = weight.double()[:, :, None]
    blocks = pairs.blocks(n, 2 * columns.shape[1])
    return torch.cat([(pairs.between(every[:, a:b], columns).sqrt() @ weight)[:, :, 0] for a, b in blocks], dim=1)


def find_rivals(batch, local, features, cores, rival, count, config, max_bytes):
    """The other cores that each kept member may border on: (ids, distance in the batch's unit), each (G, n, T).

    local: (G, n) kept members. rival: (N,) the nearest other core. count: (G,) samples wanted. T = 1 for the `nearest`
    opponent. For `all`, T = max(count) - 1: by then at least one of the T nearest was never penalised, and no farther
    core can score lower than it, so the minimum over T is the minimum over all.
    """
    device, k = local.device, len(cores)
    ids = batch.ids.to(device).gather(1, local)
    x = batch.pairs.rows(local)  # (G, n, D)
    nearest = rival.to(device)[ids][:, :, None]
    if k == 1:
        return nearest, (NO_RIVAL * batch.unit).expand(nearest.shape)
    centre = rows_at(features, cores, device, config.normalised)
    own = centre[batch.labels.to(device)][:, None]  # (G, 1, D)
    most = min(k - 1, int(count.max()) - 1)
    if config.opponent == "nearest" or most <= 1:
        away = (centre[nearest[:, :, 0]] - own) * batch.unit - x
        return nearest, away.square().sum(-1, keepdim=True).round_().sqrt_()
    centre = centre - centre.mean(0)  # short vectors round less
    own = centre[batch.labels.to(device)]  # (G, D)
    apart = torch.addmm(centre.square().sum(1), own, centre.T, alpha=-2) + own.square().sum(1, keepdim=True)
    apart = (apart[:, None] * batch.unit**2).scatter_(2, batch.labels.to(device)[:, None, None], torch.inf)  # (G, 1, K)
    step = max(1, int(max_bytes // (64 * k * len(x))))
    parts = [_nearest_rivals(block, own, centre, apart, batch.unit, most) for block in x.split(step, dim=1)]
    return tuple(torch.cat(part, dim=1) for part in zip(*parts))


def _nearest_rivals(x, own, centre, apart, unit, most):
    """(ids, distance) of the `most` nearest centres of x (G, R, D), given relative to `own`; ties to the lowest."""
    dot = x @ centre.T - (x @ own[:, :, None])  # (G, R, K), x.(c - own)
    square = torch.addcmul(apart + x.square().sum(-1, keepdim=True), dot, unit, value=-2).round_()
    ids = square.topk(most, dim=2, largest=False).indices.sort(dim=2).values
    square, order = square.gather(2, ids).sort(dim=2, stable=True)
    return ids.gather(2, order), square.clamp_(min=0).sqrt_()
