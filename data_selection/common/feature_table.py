"""The embeddings of a pool on disk and in memory: released .npy layout, memory-mapped, checked when opened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write, read_json
from data_selection.common.kinds import Device, Ids


@dataclass(frozen=True)
class FeatureTable:
    """Embeddings of a pool.

    features: (N, D) NumPy array or memory map of any float type, raw (not normalised); row i is pool image i.
    labels: (N,) int64, -1 where unknown, or None where no image has one. names: N strings, or None.
    path: the file it came from, or None.
    """

    features: np.ndarray
    labels: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.features)

    def tensor(self, device: Device = "cpu") -> torch.Tensor:
        """All features as a float32 tensor (N, D); a copy, so memory for N x D x 4 bytes is needed."""
        return torch.from_numpy(np.array(self.features, dtype=np.float32)).to(device)


def sidecar(path: Path | str, kind: str) -> Path:
    """The file that stands beside `X.npy` or `X.json`: X.names.json, X.provenance.json, ..."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{kind}.json")


def load_features(path: Path | str, *, label_column: bool = True) -> FeatureTable:
    """Open a feature file (released layout: D feature columns, then the class label) as a FeatureTable.

    The file is memory-mapped: opening reads it once, to check the labels, and keeps nothing of it.
    label_column=False reads files whose every column is a feature (the released ADE20K layout).
    Raises UserError where the file is missing, truncated, no .npy array,
    not 2-D, empty or not of a float type, or where X.names.json does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"feature file {path} does not exist: write it with data_selection/extract_feature.py")
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"feature file {path} is truncated or no .npy array ({error}): extract it again") from None
    if not isinstance(table, np.ndarray):  # an .npz archive opens as a lazy dictionary
        table.close()
        raise UserError(f"feature file {path} is an archive of several arrays; one .npy array is needed")
    if table.ndim != 2 or len(table) == 0 or table.shape[1] < 1 + label_column:
        expected = "(images, dimensions + 1 for the label)" if label_column else "(images, dimensions)"
        raise UserError(f"feature file {path} holds an array of shape {table.shape}; {expected} is needed")
    if not np.issubdtype(table.dtype, np.floating):
        raise UserError(f"feature file {path} holds {table.dtype} values; a float type is needed")
    labels = None
    if label_column:
        column = np.asarray(table[:, -1], dtype=np.float64)
        if not np.array_equal(column, np.floor(column)) or column.min() < -1:
            raise UserError(
                f"the last column of {path} should hold class labels (whole numbers, -1 where unknown) but does not: "
                "if the file has no label column, say so with --no_label_column"
            )
        labels = column.astype(np.int64) if column.max() >= 0 else None
        table = table[:, :-1]
    return FeatureTable(table, labels, load_names(path, len(table)), path)


def load_names(path: Path, count: int) -> tuple[str, ...] | None:
    """The names in X.names.json beside the feature file, or None where there is no such file."""
    beside = sidecar(path, "names")
    if not beside.exists():
        return None
    names = read_json(beside)
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise UserError(f"{beside} should be a list of {count} names, one per feature row: extract the features again")
    return tuple(names)


def save_features(
    path: Path | str,
    features: ArrayLike,
    labels: Ids | None = None,
    names: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write features (N, D) and labels (N,) in the released layout; names and provenance go beside it.

    Labels are -1 where None is given. float16 cannot hold labels above 2,048 exactly, so it is refused there.
    """
    features = np.asarray(features)
    column = np.full(len(features), -1) if labels is None else np.asarray(labels)
    if not np.array_equal(column.astype(features.dtype).astype(np.int64), column):
        raise UserError(f"labels up to {column.max()} do not fit the feature type {features.dtype}: use float32")
    table = np.concatenate([features, column[:, None].astype(features.dtype)], axis=1)
    for kind, value in (("names", None if names is None else list(names)), ("provenance", provenance)):
        write_sidecar(path, kind, value)
    with atomic_write(path) as handle:
        np.save(handle, table, allow_pickle=False)


def write_sidecar(path: Path | str, kind: str, value: object) -> None:
    """Write X.{kind}.json beside path; a value of None removes a stale one."""
    if value is None:
        sidecar(path, kind).unlink(missing_ok=True)
        return
    with atomic_write(sidecar(path, kind), "w") as handle:
        json.dump(value, handle, indent=None if isinstance(value, list) else 1)
        handle.write("\n")
