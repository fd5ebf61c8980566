"""Unit vectors and exact comparisons of their products.

Which reference is nearest is decided in float64: float32 (or coarser) products find the candidates, and all that
rounding could have put behind the best are compared by exact_dot, which adds the coordinates' exact products up in one
fixed order. So the answer does not depend on block size or thread count, and of equal references the lowest index wins
(different references whose products agree to 16 digits are told apart by that order of summation).
"""

import numpy as np
import torch

from data_selection.common.checks import as_tensor, check_finite
from data_selection.common.kinds import Device, Features

BLOCK_BYTES = 32 << 20  # working memory of one block's product
CHUNK_ROWS = 512  # rows whose products fit a core's cache
GPU_CHUNK_BYTES = 256 << 20  # a GPU wants few and large operations instead
FLOAT32_UNIT = 2.0**-24  # largest relative error of one float32 rounding


def block_rows(width: float, max_bytes: float = BLOCK_BYTES) -> int:
    """Rows of a float32 block of `width` columns that fit max_bytes, at least 1."""
    return max(1, int(max_bytes // (4 * max(1, width))))


def chunk_bytes(device: torch.device, cached: int = BLOCK_BYTES) -> int:
    """Bytes of one operation's result: `cached` on a CPU, whose cache holds them, GPU_CHUNK_BYTES on a GPU."""
    return cached if device.type == "cpu" else GPU_CHUNK_BYTES


def chunk_rows(table: torch.Tensor, rows: int = CHUNK_ROWS, width: int | None = None) -> int:
    """Rows of a table (N, D) to work on at once: `rows` on a CPU, what chunk_bytes holds of float64 on a GPU.

    width: numbers that are made of a row, where they are not D.
    """
    if table.device.type == "cpu":
        return rows
    return max(rows, chunk_bytes(table.device) // (8 * max(1, width or table.shape[-1])))


def row_blocks(n: int, width: float, max_bytes: float = BLOCK_BYTES) -> list[tuple[int, int]]:
    """(start, stop) pairs that cover n rows in blocks of at most max_bytes."""
    step = block_rows(width, max_bytes)
    return [(start, min(n, start + step)) for start in range(0, n, step)]


def read_rows(features: Features, start: int, stop: int, device: Device = "cpu") -> torch.Tensor:
    """Rows start..stop of a tensor, an array or a memory map as a float32 tensor on device; raises on NaN."""
    rows = features[start:stop]
    if not torch.is_tensor(rows):
        rows = torch.from_numpy(np.array(rows, dtype=np.float32))
    rows = rows.detach().to(device, torch.float32).contiguous()  # in another order lengths would round otherwise
    check_finite(rows, start)
    return rows


def take_rows(features: Features, ids: torch.Tensor, device: Device = "cpu") -> torch.Tensor:
    """Rows at pool indices ids (B,) on the CPU as a float32 tensor (B, D) on device; raises on NaN."""
    rows = features.detach()[ids.to(features.device)] if torch.is_tensor(features) else as_tensor(features[ids.numpy()])
    rows = rows.to(device, torch.float32).contiguous()
    check_finite(rows, ids=ids)
    return rows


def normalise(rows: torch.Tensor) -> torch.Tensor:
    """Rows at unit length, float32; a row of zeros stays zero."""
    rows = rows.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_(min=1e-12)


def about(rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Rows (Q, D) at unit length, less the mean (D,), at unit length again; where nothing is left, 0."""
    return normalise(normalise(rows) - mean)


def exact_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row-wise products of two float32 tables (P, D) in float64, (P,).

    The products are exact and each row is added up in the same order whatever its place, so equal rows give equal
    values: ties can be told from near-ties.
    """
    step = chunk_rows(a)
    pairs = zip(a.split(step), b.split(step), strict=True)
    return joined([(some.double() * others).sum(-1) for some, others in pairs])


def joined(parts: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """torch.cat, but one part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def product_error(dimensions: int, magnitude: float = 1.0) -> float:
    """Bound of a float32 dot product's error, in any order of summation; magnitude: product of the operands' norms."""
    return 2 * dimensions * FLOAT32_UNIT * magnitude


def recheck(
    rows: torch.Tensor,
    references: torch.Tensor,
    row: torch.Tensor,
    rival: torch.Tensor,
    best: torch.Tensor,
    index: torch.Tensor,
    first: int = 0,
    max_pairs: int = 2048,
) -> None:
    """Let rivals compete exactly; best and index, (B,), are updated in place.

    row, rival: (P,) row numbers and the references that could beat the row's `index`; `first` is added to the rivals'
    numbers where they are noted in `index`.
    """
    for some, others in zip(row.split(max_pairs), rival.split(max_pairs), strict=True):
        value = exact_dot(rows.index_select(0, some), references.index_select(0, others))
        top = best.scatter_reduce(0, some, value, "amax")  # (B,) the best value so far
        wins = value == top[some]
        index[top > best] = torch.iinfo(index.dtype).max  # beaten: the lowest of the new winners follows
        index.scatter_reduce_(0, some[wins], others[wins] + first, "amin")
        best.copy_(top)
