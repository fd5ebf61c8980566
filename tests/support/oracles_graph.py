"""Smoothed features and the probes on them in full matrices and plain loops, in float64."""

import math

import numpy as np
from sklearn.linear_model import LogisticRegression


def unit(rows):
    """Rows at unit length, rows of zeros as they are."""
    rows = np.asarray(rows, dtype=np.float64)
    length = np.sqrt(np.square(rows).sum(1, keepdims=True))
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def ranked(rows, asking, k, itself):
    """(index, product) of the k rows with the largest products by a full sort, equal ones in their order; (Q, k) each.

    itself: the rows ask for each other.
    """
    found = []
    for i, row in enumerate(asking):
        product = (rows * row).sum(1)
        order = [j for j in np.argsort(-product, kind="stable") if not itself or j != i][:k]
        found.append((order, product[order]))
    return np.array([order for order, _ in found]), np.array([product for _, product in found])


def neighbours(pool, k, queries=None):
    """(index, cosine) of the k nearest rows of the pool, (Q, k) each."""
    return ranked(unit(pool), unit(pool if queries is None else queries), k, queries is None)


def gap(cosine):
    """Cosine distance; copies are at 0 whatever rounding says."""
    return 0.0 if 1 - cosine < 1e-6 else 1 - cosine


def log_weight(cosine, tau, other):
    """Of one edge, by the distance and both ends' distances to their last neighbours."""
    if cosine == 0:
        return -math.inf
    return -2 * gap(cosine) / math.sqrt(max(tau, 1e-6) * max(other, 1e-6))


def shared(logs):
    """Weights of sum 1 by their logarithms, or zeros where all are -inf."""
    largest = max(logs)
    if largest == -math.inf:
        return np.zeros(len(logs))
    weights = np.array([math.exp(value - largest) for value in logs])
    return weights / weights.sum()


def average(pool, k):
    """(A, tau): the dense matrix (N, N), by one edge after another."""
    index, cosine = neighbours(pool, k)
    tau = [gap(row[-1]) for row in cosine]
    edges = np.full((len(index), len(index)), -math.inf)
    for i, row in enumerate(index):
        for j, value in zip(row, cosine[i], strict=False):
            edges[i, j] = log_weight(value, tau[i], tau[j])
    edges = np.maximum(edges, edges.T)
    for i in range(len(edges)):
        if edges[i].max() == -math.inf:
            edges[i, i] = 0
    return np.stack([shared(row) for row in edges]), tau


def smoothed(pool, k, steps):
    """All of Z_0..Z_steps, none brought to unit length."""
    matrix, _ = average(pool, k)
    levels = [np.asarray(pool, dtype=np.float64)]
    for _ in range(steps):
        levels.append(levels[-1] / 2 + matrix @ levels[-1] / 2)
    return levels


def shares(query, pool, k, tau):
    """(neighbours, their shares) of one row from outside; all shares are 0 where no edge is left."""
    index, cosine = neighbours(pool, k, query[None])
    index, cosine = index[0], cosine[0]
    return index, shared([log_weight(c, gap(cosine[-1]), tau[j]) for j, c in zip(index, cosine, strict=False)])


def smoothed_outside(queries, pool, k, steps):
    """U of each row from outside, at unit length."""
    _, tau = average(pool, k)
    levels, rows = smoothed(pool, k, steps), []
    for query in np.asarray(queries, dtype=np.float64):
        index, share = shares(query, pool, k, tau)
        row = query
        for level in levels[:-1]:
            row = row / 2 + share @ level[index] / 2 if share.any() else row
        rows.append(row)
    return unit(np.stack(rows))


def centred(rows, pool):
    """Unit rows about the mean of the pool's unit rows, at unit length."""
    return unit(unit(rows) - unit(pool).mean(0))


def logistic(features, labels, classes, c, asked):
    """Probabilities (Q, classes) of rows `asked` by scikit-learn; a class without a label has none."""
    result = np.zeros((len(asked), classes))
    if len(set(labels)) == 1:
        result[:, labels[0]] = 1
        return result
    model = LogisticRegression(C=c, tol=1e-9, max_iter=10000).fit(features, labels)
    result[:, model.classes_] = model.predict_proba(asked)
    return result


def spread(start, matrix, labels, ids, rounds=10):
    """Labels spread over the graph from probabilities `start` (N, C), the labelled rows reset after every round."""
    y = start.copy()
    for i, label in zip(ids, labels, strict=False):
        y[i] = np.arange(y.shape[1]) == label
    g = y.copy()
    for _ in range(rounds):
        g = 0.9 * matrix @ g + 0.1 * y
        for i in ids:
            g[i] = y[i]
    return g


def everything(pool, labels, ids, queries, classes, c=30.0, k=10, steps=2):
    """(lrZ of the pool, csZ of the pool, lrZ of the queries, csZ of the queries)."""
    x, q = centred(pool, pool), centred(queries, pool)
    z, u = unit(smoothed(x, k, steps)[-1]), smoothed_outside(q, x, k, steps)
    model = (z[list(ids)], list(labels), classes, c)
    own, asked = logistic(*model, z), logistic(*model, u)
    matrix, tau = average(x, 15)
    g = spread(own, matrix, labels, ids)
    mixed = []
    for row, probability in zip(q, asked, strict=False):
        index, share = shares(row, x, 15, tau)
        mixed.append(probability / 2 + share @ g[index] / 2 if share.any() else probability)
    return own, g, asked, np.stack(mixed)
