"""Blocked similarity kernels: nothing of size pool x references is ever held.

Which reference is nearest is decided as if the float32 inputs were multiplied exactly: a float32 product finds the
best one, and every reference that rounding could have put behind it is compared again in float64 (exact_dot). So the
answer does not depend on block size, thread count or hardware, and of equal references the lowest index wins.
"""

import numpy as np
import torch
import torch.nn.functional as F

from data_selection.checks import check_finite

BLOCK_BYTES = 32 << 20  # working memory of one block's product
CHUNK_ROWS = 512  # rows whose products fit a core's cache
FLOAT32_UNIT = 2.0**-24  # largest relative error of one float32 rounding


def block_rows(width, max_bytes=BLOCK_BYTES):
    """Rows of a float32 block of `width` columns that fit max_bytes, at least 1."""
    return max(1, int(max_bytes // (4 * max(1, width))))


def row_blocks(n, width, max_bytes=BLOCK_BYTES):
    """(start, stop) pairs that cover n rows in blocks of at most max_bytes."""
    step = block_rows(width, max_bytes)
    return [(start, min(n, start + step)) for start in range(0, n, step)]


def read_rows(features, start, stop, device="cpu"):
    """Rows start..stop of a tensor, an array or a memory map as a float32 tensor on device; raises on NaN."""
    rows = features[start:stop]
    if not torch.is_tensor(rows):
        rows = torch.from_numpy(np.array(rows, dtype=np.float32))
    rows = rows.to(device, torch.float32)
    check_finite(rows, start)
    return rows


def normalise(rows):
    """Rows at unit length, float32; a row of zeros stays zero."""
    return F.normalize(rows.float(), dim=-1)


def exact_dot(a, b):
    """Row-wise products of two float32 tables (P, D) in float64, (P,).

    The products are exact and each row is added up in the same order whatever its place, so equal rows give equal
    values: ties can be told from near-ties.
    """
    pairs = zip(a.split(CHUNK_ROWS), b.split(CHUNK_ROWS))
    return torch.cat([(some.double() * others).sum(-1) for some, others in pairs])


def product_error(dimensions, magnitude=1.0):
    """Bound of a float32 dot product's error, in any order of summation; magnitude: product of the operands' norms."""
    return 2 * dimensions * FLOAT32_UNIT * magnitude


def nearest(features, references, *, metric="cosine", device="cpu", max_bytes=BLOCK_BYTES):
    """The nearest reference of every row.

    features: (N, D) tensor or memory map. references: (M, D) tensor. metric: `cosine` (rows and references are
    normalised here) or `euclidean`. Returns (value, index), both (N,) on device: the cosine similarity or the squared
    distance, float32, and 0..M-1; of equal ones the lowest index.
    """
    references = references.to(device, torch.float32)
    if metric == "cosine":
        references = normalise(references)
    elif metric != "euclidean":
        raise ValueError(f"unknown metric {metric!r}: use cosine or euclidean")
    offsets = None if metric == "cosine" else references.double().square().sum(1) / 2  # (M,)
    values, indices = [], []
    for start, stop in row_blocks(len(features), 2 * len(references) + 3 * references.shape[1], max_bytes):
        rows = read_rows(features, start, stop, device)  # (B, D)
        if metric == "cosine":
            value, index = best_reference(normalise(rows), references)
        else:  # argmin |r - c|^2 = argmax r.c - |c|^2 / 2
            index = best_reference(rows, references, offsets)[1]
            value = (rows.double() - references[index].double()).square().sum(1)
        values.append(value.float())
        indices.append(index)
    return torch.cat(values), torch.cat(indices)


def best_reference(rows, references, offsets=None, product=None):
    """argmax over references of rows . references - offsets, decided exactly.

    rows: (B, D), references: (M, D) float32 on one device, offsets: (M,) float64 or None. product: rows @ references.T
    where the caller has it already, with -inf for forbidden pairs; overwritten. Returns (value, index): (B,) float64
    and int64, of equal ones the lowest index. On CUDA only the best two of the float32 product are compared again:
    finding how many more are as close would wait for the host.
    """
    product = rows @ references.T if product is None else product  # (B, M)
    scale = 1.0  # norms of unit vectors
    if offsets is not None:
        product -= offsets.float()
        scale = rows.norm(dim=1) * references.norm(dim=1).max() + offsets.max().float()  # (B,)
    slack = 2 * product_error(rows.shape[1] + 1, scale)
    value, index = product.max(1)
    best = _exact(rows, references, offsets, index)
    if len(references) == 1:
        return best, index
    product.scatter_(1, index[:, None], -torch.inf)
    second, rival = product.max(1)
    if rows.is_cuda:
        other = _exact(rows, references, offsets, rival)
        wins = (second > -torch.inf) & ((other > best) | ((other == best) & (rival < index)))
        return torch.where(wins, other, best), torch.where(wins, rival, index)
    close = (second >= value - slack).nonzero()[:, 0]  # rows whose best is not certain
    if len(close):
        row, rival = (product[close] >= (value - slack)[close, None]).nonzero(as_tuple=True)
        recheck(rows, references, offsets, close[row], rival, best, index)
    return best, index


def _exact(rows, references, offsets, index):
    """The exact value of each row against its reference `index`, (B,) float64."""
    value = exact_dot(rows, references[index])
    return value if offsets is None else value - offsets[index]


def recheck(rows, references, offsets, row, rival, best, index, first=0, max_pairs=2048):
    """Let rivals compete exactly; best and index, (B,), are updated in place.

    row, rival: (P,) row numbers and the references that could beat the row's `index`; `first` is added to the rivals'
    numbers where they are noted in `index`.
    """
    for some, others in zip(row.split(max_pairs), rival.split(max_pairs)):
        value = exact_dot(rows[some], references[others])
        if offsets is not None:
            value -= offsets[others]
        top = best.scatter_reduce(0, some, value, "amax")  # (B,) the best value so far
        wins = value == top[some]
        index[top > best] = torch.iinfo(index.dtype).max  # beaten: the lowest of the new winners follows
        index.scatter_reduce_(0, some[wins], others[wins] + first, "amin")
        best.copy_(top)
