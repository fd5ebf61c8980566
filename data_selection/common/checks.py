"""Checks that every selection method shares: its request before the work, its result after."""

import numpy as np
import torch

from data_selection.common.errors import UserError
from data_selection.common.kinds import Features, Ids


def check_request(
    features: Features, budget: int, labelled: Ids = (), excluded: Ids = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check a selection's request.

    features: (N, D) float tensor or NumPy array. budget: int. labelled, excluded: pool indices.
    Returns (labelled, candidates): two ascending int64 tensors on the CPU; candidates are the indices that may be
    chosen. Raises UserError where the shape, the budget or an id is wrong. Values are not read here (a memory map may
    be larger than memory): methods call check_finite on the blocks they read anyway.
    """
    if features.ndim != 2 or min(features.shape) < 1:
        raise UserError(
            f"features have shape {tuple(features.shape)}; a non-empty (images, dimensions) table is needed"
        )
    if not (features.is_floating_point() if torch.is_tensor(features) else np.issubdtype(features.dtype, np.floating)):
        raise UserError(f"features have type {features.dtype}; a float type is needed")
    n = len(features)
    labelled, excluded = check_ids(labelled, n, "labelled"), check_ids(excluded, n, "excluded")
    free = torch.ones(n, dtype=torch.bool)
    free[labelled] = False
    free[excluded] = False
    candidates = free.nonzero()[:, 0]
    if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)):
        raise UserError(f"budget {budget!r} is not a whole number of images")
    if not 1 <= budget <= len(candidates):
        taken = n - len(candidates)
        where = f"{n} images" + (f", {taken} of them labelled or excluded" if taken else "")
        raise UserError(f"budget {budget} is outside 1..{len(candidates)} (pool: {where}): choose another budget")
    return labelled.sort().values, candidates


def check_ids(ids: Ids, pool_size: int, what: str) -> torch.Tensor:
    """Pool indices as an int64 tensor on the CPU, order kept. Raises UserError where one repeats or is out of range."""
    try:
        values = torch.as_tensor(ids if torch.is_tensor(ids) else list(ids)).cpu()
    except (ValueError, TypeError, RuntimeError):  # no numbers, or beyond 64 bits
        numbers = [value for value in ids if type(value) is int]
        if len(numbers) < len(ids):
            raise UserError(f"{what} ids must be a flat list of whole numbers") from None
        largest = max(numbers, key=abs)
        raise UserError(f"{what} id {largest} is outside the pool's 0..{pool_size - 1}: no pool is so large") from None
    if values.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if values.ndim != 1 or values.is_floating_point() or values.dtype == torch.bool:
        raise UserError(
            f"{what} ids must be a flat list of whole numbers, not {values.dtype} of shape {list(values.shape)}"
        )
    values = values.to(torch.int64)
    low, high = values.min().item(), values.max().item()
    if low < 0 or high >= pool_size:
        bad = low if low < 0 else high
        raise UserError(
            f"{what} id {bad} is outside the pool's 0..{pool_size - 1}: were the ids made from another pool?"
        )
    distinct, counts = values.unique(return_counts=True)
    if len(distinct) < len(values):
        raise UserError(
            f"{what} ids hold {len(values)} entries but only {len(distinct)} distinct ones; "
            f"id {distinct[counts > 1][0].item()} is repeated: remove the repeats"
        )
    return values


def check_labelled(ids: Ids, labels: Ids, pool_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool indices and the classes of these images, (n,) int64 each on the CPU, order kept.

    Raises UserError for ids as check_ids does, and for labels that are no class numbers from 0, or not one for each id.
    """
    rows = check_ids(ids, pool_size, "labelled")
    try:
        classes = torch.as_tensor(labels).cpu()
    except (ValueError, TypeError, RuntimeError):
        raise UserError("labels must be a flat list of class numbers, 0 and up: number the classes") from None
    if classes.ndim != 1 or (len(classes) and (classes.is_floating_point() or classes.is_complex())):
        raise UserError(
            f"labels must be a flat list of class numbers, 0 and up, not {classes.dtype} of shape {list(classes.shape)}"
        )
    if len(classes) != len(rows) or len(rows) == 0:
        raise UserError(f"{len(classes)} labels for {len(rows)} ids: as many are needed, at least 1")
    classes = classes.to(torch.int64)
    if classes.min() < 0:
        raise UserError(f"label {int(classes.min())} is no class number, 0 and up: leave images without a class out")
    return rows, classes


def as_tensor(rows: np.ndarray) -> torch.Tensor:
    """An array's values as a tensor; of a type that torch lacks (long double, another byte order) as float64."""
    rows = np.asarray(rows)
    known = rows.dtype.isnative and rows.dtype.itemsize <= 8
    return torch.from_numpy(rows if known else rows.astype(np.float64))


def check_finite(block: torch.Tensor, first_row: int = 0, ids: torch.Tensor | None = None) -> None:
    """Raise UserError naming the first row of block (rows, D) that holds NaN or infinity, or has no finite length.

    Row i of the block is the pool's row first_row + i, or ids[i] where ids are given.
    """
    kind = torch.float32 if block.dtype.itemsize < 4 else block.dtype
    if torch.isfinite(torch.linalg.vector_norm(block, dtype=kind)):  # one pass; not so whenever a value is not finite
        return
    faults = (
        (torch.isfinite(block).all(dim=1), "features hold NaN or infinity, first in row {}: extract them again"),
        (
            torch.isfinite(torch.linalg.vector_norm(block, dim=1)),
            "features are too large for float32, first in row {}: divide all by one number",
        ),
    )  # else every row has a length, and that of the block overflowed
    for good, told in faults:
        bad = (~good).nonzero()
        if len(bad):
            raise UserError(told.format(first_row + int(bad[0]) if ids is None else int(ids[int(bad[0])])))


def check_selection(ids: Ids, budget: int, pool_size: int, labelled: Ids = (), excluded: Ids = ()) -> torch.Tensor:
    """The last line of every method: (budget,) distinct int64 ids, none labelled or excluded. Returns ids on the CPU.

    A failure here is a bug of the method, not the user's mistake: RuntimeError.
    """
    ids = torch.as_tensor(ids).to("cpu", torch.int64)
    barred = set(torch.as_tensor(labelled).tolist()) | set(torch.as_tensor(excluded).tolist())
    chosen = ids.tolist()
    if len(chosen) != budget or len(set(chosen)) != budget or not barred.isdisjoint(chosen):
        raise RuntimeError(
            f"asked for {budget} ids, got {len(chosen)} with {len(set(chosen) - barred)} admissible ones"
        )
    if min(chosen) < 0 or max(chosen) >= pool_size:
        raise RuntimeError(f"ids {min(chosen)}..{max(chosen)} leave the pool of {pool_size}")
    return ids
