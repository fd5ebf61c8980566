"""BiLAF's steps within the classes as pure functions: denoise, allocate, pick."""

import heapq

import torch

from data_selection.common.sending import sent
from data_selection.methods.bilaf.classes import Distances, key_base, on_grid
from data_selection.methods.configs import BiLAFConfig

MERGED = 128  # distances per candidate merged at a time: NumPy's partition is fast up to 256
GONE = torch.finfo(torch.float64).max  # key of members that are no candidates any more: after all others
TINY = torch.finfo(torch.float64).tiny


def included_count(sizes: torch.Tensor, config: BiLAFConfig) -> torch.Tensor:
    """Members (K,) that join the growing cluster, of class sizes (K,): all, or whole rings only."""
    ring = ring_size(sizes, config)
    included = sizes if config.ring_end == "all" else ring * (sizes // ring)
    return torch.where(sizes < config.small_class, sizes, included)


def ring_size(sizes: torch.Tensor, config: BiLAFConfig) -> torch.Tensor:
    """floor(ring_share x size), at least 1."""
    return (sizes.double() * config.ring_share).long().clamp(min=1)


def kept_count(sizes: torch.Tensor, config: BiLAFConfig) -> torch.Tensor:
    """Members (K,) that denoising keeps, at least the core. It depends on the class sizes alone."""
    included = included_count(sizes, config)
    if config.rounding == "share":
        kept = included - (included.double() * config.remove_share + 1e-9).long()
    else:
        kept = (included.double() * (1 - config.remove_share)).long()
    return torch.where(sizes < config.small_class, sizes, kept.clamp(min=1))


def denoise(
    pairs: Distances,
    sizes: torch.Tensor,
    core: torch.Tensor,
    kept: torch.Tensor,
    config: BiLAFConfig,
    must: torch.Tensor | None = None,
) -> torch.Tensor:
    """Iterative density-based clustering: grow each class ring by ring from its core, keep what joined first.

    pairs: of G classes of up to n members. sizes, core, kept: (G,) members, local index of the core, members to
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
        for start, stop in pairs.blocks(len(step), pairs.max_bytes / 3, most=MERGED):  # each makes three such tables
            near = _merge_nearest(pairs, rest, near, new[:, start:stop], position[:, start:stop], base)
        rho = _density(pairs, rest, near, joined, base, config)
        take = ring
    required = torch.zeros_like(rank, dtype=torch.bool) if must is None else must.clone()
    required[torch.arange(groups, device=device), core] = True
    late = required & (rank >= kept[:, None])  # labelled before, or a core whose twins have taken its place
    # others make room for them, never one of their own kind
    place = torch.where(required, -1.0, rank).sort(dim=1, stable=True).indices.argsort(dim=1)
    rank = torch.where(late, -1.0, torch.where(place < kept[:, None], rank, torch.inf))
    order = rank.sort(dim=1, stable=True).indices[:, : int(kept.max())]
    return torch.where(torch.arange(order.shape[1], device=device) < kept[:, None], order, core[:, None])


def _merge_nearest(
    pairs: Distances,
    rest: torch.Tensor,
    near: torch.Tensor,
    new: torch.Tensor,
    position: torch.Tensor,
    base: float,
) -> torch.Tensor:
    """The k nearest of each candidate, members `new` (G, W) of the cluster counted in.

    rest: (G, R) candidates. near: (G, R, k) keys, squared distance x base + position in the cluster's list. position:
    (G, W) of the new members, inf for padding. Returns keys like near, in any order.
    """
    count = near.shape[2]
    square = pairs.between(new).gather(2, rest[:, None].expand(-1, new.shape[1], -1))  # (G, W, R)
    keys = near.new_empty(*rest.shape, count + new.shape[1])
    keys[:, :, :count] = near
    torch.add(position[:, None], square.mT, alpha=base, out=keys[:, :, count:])
    return _lowest(keys, count)


def _lowest(keys: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` lowest of keys (..., C) >= 0, in any order; keys change."""
    if keys.device.type != "cpu":
        return keys.topk(count, largest=False, sorted=False).values
    keys.view(torch.int64).numpy().partition(count - 1, axis=-1)  # bits order alike; a third of the time of topk
    return keys[..., :count]


def _density(
    pairs: Distances,
    rest: torch.Tensor,
    near: torch.Tensor,
    joined: torch.Tensor,
    base: float,
    config: BiLAFConfig,
) -> torch.Tensor:
    """rho (G, R) of the candidates: mean distance to the members in near (G, R, k); joined: (G,) the cluster's size."""
    found = near < torch.inf
    if config.neighbours == "position":
        square = pairs.each(rest, near.clamp(max=2.0**53).long() & (int(base) - 1))
    else:
        square = (near / base).floor_()
    square.sqrt_().masked_fill_(~found, 0)
    return on_grid(square.sum(2) / joined.clamp(1, near.shape[2])[:, None])


def allocate(sizes: torch.Tensor, total: int, lower: torch.Tensor, upper: torch.Tensor, rule: str) -> torch.Tensor:
    """How many of `total` samples each class gives.

    sizes: (K,) members after denoising. lower, upper: (K,) bounds, sum(lower) <= total <= sum(upper). Returns (K,)
    int64 that add up to total. B_i = B x |U_i| / sum |U_j| (section 3.3); rule: `remainder`, the largest remainders
    round up; `smallest` (released), all round down and each sample left goes to the class with the smallest share,
    then the largest class. A bound that binds moves its samples to the other classes by the same rule.
    Cost: K log K; one sample at a time, at most about K of them.
    """
    members: list[int] = sizes.tolist()
    whole = sum(members)
    if rule == "remainder":
        count = [size * total // whole for size in members]
        due = [size * total / whole for size in members]
    else:
        count = [int(size / whole * total) for size in members]  # float64, as released
        due = [0.0] * len(members)
    bounds = zip(count, lower.tolist(), upper.tolist(), strict=True)
    count = [min(max(given, low), high) for given, low, high in bounds]
    sign = 1 if sum(count) < total else -1  # hand out to the lowest, or take back from the highest
    bound = (upper if sign > 0 else lower).tolist()

    def turn(j: int) -> tuple[float, int, int]:
        return sign * (count[j] - due[j]), -sign * members[j], j

    heap = [turn(j) for j in range(len(members)) if count[j] != bound[j]]
    heapq.heapify(heap)
    for _ in range(abs(total - sum(count))):
        j = heap[0][2]
        count[j] += sign
        if count[j] == bound[j]:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, turn(j))
    return torch.tensor(count)


def departures(sizes: torch.Tensor, count: torch.Tensor, removal: str) -> tuple[torch.Tensor, torch.Tensor]:
    """How many candidates leave with each choice but the last, and how many are left then: (T, G) each.

    sizes, count: (G,) int64 on the CPU, as in `pick`; T = max(count) - 1. Whichever members leave, their number is
    known beforehand: |U| / B_i, at least 1, of those `remaining` or always of the whole `class`. A class whose samples
    are all chosen goes on as if it had candidates: nothing of it counts.
    """
    left, away, after = sizes, [], []
    for _ in range(int(count.max()) - 1):
        share = (left if removal == "remaining" else sizes) // count
        away.append(share.clamp(min=1))
        left = left - away[-1]
        after.append(left)
    empty = sizes.new_empty(0, len(sizes))
    return torch.stack(away) if away else empty, torch.stack(after) if after else empty


def pick(
    pairs: Distances,
    sizes: torch.Tensor,
    core: torch.Tensor,
    count: torch.Tensor,
    rivals: tuple[torch.Tensor, torch.Tensor],
    config: BiLAFConfig,
    forced: torch.Tensor | None = None,
) -> torch.Tensor:
    """Boundary samples of G classes, one after another, from the core on.

    pairs: of the kept members, in the order of joining. sizes, core, count: (G,) members, local index of the
    core, samples wanted (the core among them, count <= sizes). rivals: (ids, distance), each (G, n, T), the other cores
    that a sample may border on, nearest first. forced: (G, F) local indices of samples chosen before, core first, -1
    where there is none. Returns (G, max count) local indices in the order of choosing.

    After each choice its |U| / B_i nearest candidates leave, and the next is the candidate with the lowest
    min_l (delta^t_l D(x, c_l) - d_intra(x)) / max(D(x, c_l), d_intra(x)), Eq. 7, t_l counting the choices that
    bordered on l; equal scores: the one closest to the last choice. Where no candidate is left (duplicates), those
    removed come back. Cost per class: n^2 for d_intra, n x (log n + T) per choice; memory n x T beside pairs.
    """
    device, (groups, n) = sizes.device, pairs.shape
    rival, distance = rivals
    factor, largest, table = torch.ones_like(distance), torch.empty_like(distance), torch.empty_like(distance)
    local, base = torch.arange(n, dtype=torch.float64, device=device), key_base(n)
    real = local < sizes[:, None]
    alive, free = real.clone(), real.clone()  # candidates; members that are not chosen yet
    intra = pairs.totals(real)
    away, left = departures(sizes.cpu(), count.cpu(), config.removal)
    most = away.amax(1).tolist()
    away, left = sent(device, away, left)
    step = torch.arange(max(most, default=0), device=device)
    last_away = (away - 1)[:, :, None]  # (T, G, 1): which of the nearest is the last one to leave
    spread = left.clamp(min=1) if config.intra == "remaining" else sizes.expand_as(left)
    chosen = torch.full((groups, len(away) + 1), -1, device=device)
    chosen[:, 0] = core
    free.scatter_(1, core[:, None], False)
    for turn in range(1, chosen.shape[1]):
        row = pairs.between(chosen[:, turn - 1, None])[:, 0]  # (G, n) to the last choice
        key = torch.where(alive, torch.add(local, row, alpha=base), GONE)
        nearest, leaving = key.topk(most[turn - 1], dim=1, largest=False)
        alive &= key > nearest.gather(1, last_away[turn - 1])
        if config.intra == "remaining":
            leaves = step[: most[turn - 1]] < away[turn - 1, :, None]
            intra = intra - pairs.sums(leaving, leaves)
        if turn == 1 or config.intra == "remaining":
            mean = on_grid(intra / spread[turn - 1, :, None])[:, :, None]
            torch.maximum(distance, mean, out=largest).clamp_(min=TINY)
        torch.mul(factor, distance, out=table).sub_(mean).div_(largest)
        score, border = table.min(dim=2)  # (G, n); low: close to the border
        open_ = alive & free
        open_ = torch.where(open_.any(1, keepdim=True), open_, free)
        score = torch.where(open_, score, torch.inf)
        best = torch.where(score > score.amin(1, keepdim=True), torch.inf, key).argmin(1, keepdim=True)
        if forced is not None and turn < forced.shape[1]:
            best = torch.where(forced[:, turn, None] >= 0, forced[:, turn, None], best)
        chosen[:, turn] = best[:, 0]
        free.scatter_(1, best, False)
        met = rival.flatten(1).gather(1, best * rival.shape[2] + border.gather(1, best))
        torch.where(rival == met[:, :, None], torch.mul(factor, config.penalty, out=table), factor, out=factor)
    return torch.where(torch.arange(chosen.shape[1], device=device) < count[:, None], chosen, -1)
