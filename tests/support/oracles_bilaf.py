"""BiLAF in plain loops: the textbook that honours every config field, and the released program with its faults."""

import numpy as np


def distances(features, normalised=False):
    """(N, N) Euclidean distances in float64, equal rows at exactly 0."""
    x = np.asarray(features, dtype=np.float64)
    if normalised:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        x = np.round(x, 13)  # rows that differ in length only become equal bit by bit
    return np.stack([np.sqrt(np.square(x - row).sum(1)) for row in x]).round(10)  # equal but for rounding: equal


def first_smallest(values, count):
    """Positions of the `count` smallest values, ties to the lowest position."""
    return np.argsort(np.asarray(values), kind="stable")[:count].tolist()


def near_equal(values):
    """Values rounded so that equal distances added up in another order stay equal."""
    return np.round(values, 9)


# ---------------------------------------------------------------------------------------------------------------------
# The released program: spec in, its list out, with repeats; ZeroDivisionError and the like where it fails.


def released_program(features, cores, budget, k=10, remove=0.1, cycle=0.1, penalty=1.1, dist=None):
    """The released boundary selection: features raw (N, D), cores in order, list in block order."""
    x = np.asarray(features, dtype=np.float64)
    to_cores = np.stack([np.sqrt(np.square(x - x[core]).sum(1)) for core in cores], axis=1)  # (N, K)
    own = to_cores.argmin(1)
    classes, blocks = [], []
    for j, core in enumerate(cores):
        members = [i for i in range(len(x)) if own[i] == j]
        blocks.append(np.stack([np.sqrt(np.square(x[members] - x[i]).sum(1)) for i in members]))
        order = released_denoise(blocks[-1], members.index(core), k, remove, cycle)
        blocks[-1] = blocks[-1][np.ix_(order, order)]
        classes.append([members[i] for i in order])
    shares = released_shares([len(members) for members in classes], budget)
    chosen = []
    for j, members in enumerate(classes):
        inter = to_cores[members].copy()
        inter[:, j] = 1e9 + 7
        start = members.index(cores[j])
        chosen += [members[i] for i in released_pick(blocks[j], inter, start, shares[j], penalty)]
    assert set(cores) <= set(chosen)
    return chosen


def released_denoise(dist, core, k, remove, cycle):
    """Local indices kept, in the order of joining; positions in the cluster are taken for positions in the class."""
    n = len(dist)
    if n < 10:
        return list(range(n))
    ring = max(1, int(n * cycle))
    cluster = first_smallest(dist[core], ring)
    for _ in range(1, int(n / ring)):
        inside = set(cluster)
        rest = [i for i in range(n) if i not in inside]
        density = []
        for i in rest:
            places = first_smallest(dist[i][cluster], k)
            density.append(dist[i][places].mean())
        cluster += [rest[i] for i in first_smallest(near_equal(density), ring)]
    return cluster[: int(len(cluster) * (1 - remove))]


def released_shares(sizes, budget):
    """Rounded down; what is left goes to the smallest share, then the largest class."""
    quotas = [size / sum(sizes) for size in sizes]
    shares = [int(quota * budget) for quota in quotas]
    for _ in range(budget - sum(shares)):
        j = min(range(len(sizes)), key=lambda j: (shares[j], -quotas[j], j))
        shares[j] += 1
    return shares


def released_pick(dist, inter, core, budget, penalty):
    """Local indices: the core, then the lowest scores; repeats where the class is too small."""
    n = len(dist)
    intra, rival, away = dist.mean(1), inter.argmin(1), inter.min(1)
    weight = np.ones(inter.shape[1])
    remove = n // budget
    chosen, candidates = [core], np.arange(n)
    while len(chosen) < budget:
        last = chosen[-1]
        candidates = np.sort(candidates)
        candidates = candidates[np.argsort(dist[last][candidates], kind="stable")][remove:]
        if last != core:
            weight[rival[last]] *= penalty
        inter_i, intra_i = away[candidates], intra[candidates]
        scores = (weight[rival[candidates]] * inter_i - intra_i) / np.maximum(inter_i, intra_i)
        scores = near_equal(scores) if inter.shape[1] > 1 else scores  # with one core the differences are of that size
        chosen.append(int(candidates[first_smallest(scores, 1)[0]]))
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# The textbook: any budget, any combination of config fields, distinct ids.


def textbook(features, cores, budget, config):
    """BiLAF as methods.configs.BiLAFConfig describes it, in block order (no nesting, nothing labelled or excluded)."""
    dist = distances(features, config.normalised)
    cores, n = list(cores), len(dist)
    own = [min(range(len(cores)), key=lambda j: (dist[i][cores[j]], j)) for i in range(n)]
    for j, core in enumerate(cores):
        own[core] = j
    members = [[i for i in range(n) if own[i] == j] for j in range(len(cores))]
    kept = [textbook_denoise(dist, group, core, config) for group, core in zip(members, cores, strict=True)]
    shares = textbook_shares([len(group) for group in kept], min(budget, sum(map(len, kept))), config.budget_rule)
    blocks = [textbook_pick(dist, group, j, cores, shares[j], config) for j, group in enumerate(kept)]
    chosen = {i for block in blocks for i in block}
    removed = sorted((i for i in range(n) if i not in chosen), key=lambda i: (round(dist[i][cores[own[i]]], 9), i))
    for i in removed[: budget - len(chosen)]:
        blocks[own[i]].append(i)
    return [i for block in blocks for i in block]


def textbook_denoise(dist, members, core, config):
    n = len(members)
    if n < config.small_class:
        return members
    ring = max(1, int(n * config.ring_share))
    target = n if config.ring_end == "all" else ring * (n // ring)
    if config.ring_start == "core":
        cluster = [core]
    else:
        cluster = [members[i] for i in first_smallest([dist[core][i] for i in members], ring)]
    while len(cluster) < target:
        inside = set(cluster)
        rest = [i for i in members if i not in inside]
        density = []
        for i in rest:
            places = first_smallest([dist[i][u] for u in cluster], config.density_number)
            others = [cluster[p] if config.neighbours == "cluster" else members[p] for p in places]
            density.append(np.mean([dist[i][u] for u in others]))
        cluster += [rest[i] for i in first_smallest(near_equal(density), min(ring, target - len(cluster)))]
    if config.rounding == "share":
        count = target - int(target * config.remove_share + 1e-9)
    else:
        count = int(target * (1 - config.remove_share))
    count = max(1, count)
    return cluster[:count] if core in cluster[:count] else [core, *cluster[: count - 1]]


def textbook_shares(sizes, budget, rule):
    """One sample at a time, each class between 1 and its size."""
    if rule == "smallest":
        shares = [int(size / sum(sizes) * budget) for size in sizes]
        rank = [(lambda given, quota=0.0: given)] * len(sizes)
    else:
        shares = [size * budget // sum(sizes) for size in sizes]
        quotas = [size * budget / sum(sizes) for size in sizes]
        rank = [lambda given, quota=quota: given - quota for quota in quotas]
    shares = [min(max(1, share), size) for share, size in zip(shares, sizes, strict=True)]
    while sum(shares) < budget:
        open_ = [j for j in range(len(sizes)) if shares[j] < sizes[j]]
        shares[min(open_, key=lambda j: (rank[j](shares[j]), -sizes[j], j))] += 1
    while sum(shares) > budget:
        open_ = [j for j in range(len(sizes)) if shares[j] > 1]
        shares[max(open_, key=lambda j: (rank[j](shares[j]), -sizes[j], -j))] -= 1
    return shares


def textbook_pick(dist, members, label, cores, budget, config):
    core = cores[label]
    others = [j for j in range(len(cores)) if j != label]
    penalty = dict.fromkeys(range(len(cores)), 1.0)
    chosen, candidates = [core], list(members)

    def away(i, j):
        return dist[i][cores[j]] if others else 1e9 + 7

    def rivals(i):
        nearest = min(others or [label], key=lambda j: (round(away(i, j), 9), j))
        return (others or [label]) if config.opponent == "all" else [nearest]

    def score(i, j, intra):
        largest = max(away(i, j), intra)
        value = (penalty[j] * away(i, j) - intra) / largest if largest > 0 else 0.0
        return round(value, 9) if others else value  # with one core the differences are of that size

    def best_rival(i, intra):
        return min((score(i, j, intra), round(away(i, j), 9), j) for j in rivals(i))

    while len(chosen) < budget:
        last = chosen[-1]
        remove = max(1, len(members if config.removal == "class" else candidates) // budget)
        order = sorted(candidates, key=lambda i: (round(dist[last][i], 9), members.index(i)))
        gone = [i for i in members if i not in set(candidates)] + order[:remove]
        candidates = [i for i in members if i in set(order[remove:])]
        around = (candidates if config.intra == "remaining" else members) or gone[:0]
        intra = {i: sum(dist[i][u] for u in around) / max(1, len(around)) for i in members}
        free = [i for i in order[remove:] if i not in set(chosen)]
        if not free:  # all candidates are gone: those removed come back
            alive = [i for i in order if i not in set(chosen)]
            free = alive + [i for i in members if i not in set(chosen) | set(alive)]
        pick = min(free, key=lambda i: (best_rival(i, intra[i])[0], free.index(i)))
        chosen.append(pick)
        penalty[best_rival(pick, intra[pick])[2]] *= config.penalty
    return chosen
