"""Blocked similarity kernels: nothing of size pool x references is ever held."""

import numpy as np
import torch
import torch.nn.functional as F

from data_selection.checks import check_finite

BLOCK_BYTES = 64 << 20  # working memory of one block's product


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


def nearest(features, references, *, metric="cosine", device="cpu", max_bytes=BLOCK_BYTES):
    """The nearest reference of every row.

    features: (N, D) tensor or memory map. references: (M, D) tensor. metric: `cosine` (rows and references are
    normalised here) or `euclidean`. Returns (value, index), both (N,) on device: the cosine similarity or the squared
    distance, and 0..M-1; of equal ones the lowest index.
    """
    references = references.to(device, torch.float32)
    if metric == "cosine":
        references = normalise(references)
    elif metric != "euclidean":
        raise ValueError(f"unknown metric {metric!r}: use cosine or euclidean")
    half = references.square().sum(1) / 2  # (M,)
    values, indices = [], []
    for start, stop in row_blocks(len(features), len(references) + references.shape[1], max_bytes):
        rows = read_rows(features, start, stop, device)  # (B, D)
        if metric == "cosine":
            value, index = (normalise(rows) @ references.T).max(1)
        else:  # argmin |r - c|^2 = argmax r.c - |c|^2 / 2
            value, index = torch.addmm(-half, rows, references.T).max(1)
            value = (rows.square().sum(1) - 2 * value).clamp(min=0)
        values.append(value)
        indices.append(index)
    return torch.cat(values), torch.cat(indices)
