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
    path: the file it came from, or None. class_names: one for each class, or None.
    """

    features: np.ndarray
    labels: np.ndarray | None = None
    names: tuple[str, ...] | None = None
    path: Path | None = None
    class_names: tuple[str, ...] | None = None

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
        if not are_labels(column):
            raise UserError(
                f"the last column of {path} should hold class labels (whole numbers, -1 where unknown) but does not: "
                "if the file has no label column, say so with --no_label_column"
            )
        labels = column.astype(np.int64) if column.max() >= 0 else None
        table = table[:, :-1]
    class_names = load_words(path, "classes")
    if class_names is not None and labels is not None and labels.max() >= len(class_names):
        raise UserError(
            f"{sidecar(path, 'classes')} names {len(class_names)} classes, but {path} holds the label {labels.max()}: "
            "extract the features again"
        )
    return FeatureTable(table, labels, load_words(path, "names", len(table)), path, class_names)


def are_labels(column: np.ndarray) -> bool:
    """Whether every value of a column is a whole number from -1 that int64 and float64 hold exactly."""
    return bool(((column >= -1) & (column <= 2**53) & (column == np.floor(column))).all())


def load_words(path: Path, kind: str, count: int | None = None) -> tuple[str, ...] | None:
    """The strings in X.{kind}.json beside the feature file, or None where there is no such file.

    Raises UserError where it holds something else, or not `count` of them.
    """
    beside = sidecar(path, kind)
    if not beside.exists():
        return None
    words = read_json(beside)
    if not isinstance(words, list) or count not in (None, len(words)) or not all(isinstance(w, str) for w in words):
        expected = f"{count} {kind}, one per feature row" if count else kind
        raise UserError(f"{beside} should be a list of {expected}: extract the features again")
    return tuple(words)


def labels_like(table: FeatureTable, other: FeatureTable) -> np.ndarray:
    """A table's labels (N,) int64, in the other one's class numbers where both know their classes' names.

    Where one knows names and the other numbers, and the names are whole numbers (1, or 1.0), these are meant. Raises
    UserError where the table has no labels, or labels of classes that the other one does not know.
    """
    if table.labels is None:
        raise UserError(f"feature file {table.path} has no labels")
    ours, theirs = table.class_names, other.class_names
    if (ours is None) != (theirs is None) and all(map(str.isdecimal, map(_whole, ours or theirs or ()))):
        return _by_number(table, other)
    if ours is None or theirs is None or ours == theirs:
        return table.labels
    number = {name: i for i, name in enumerate(theirs)}
    strange = [ours[i] for i in np.unique(table.labels) if i >= 0 and ours[i] not in number]
    if strange:
        raise UserError(
            f"{table.path} has images of {', '.join(strange[:4])}, {len(strange)} classes that {other.path} does not "
            f"have ({', '.join(theirs[:4])}, ...): label both by the same names"
        )
    return np.array([*(number.get(name, -1) for name in ours), -1])[table.labels]


def compared_by_position(table: FeatureTable, other: FeatureTable) -> str:
    """What labels_like takes for granted where one knows words and the other bare numbers; "" elsewhere."""
    words = other if table.class_names is None else table
    named = words.class_names or ()
    if (table.class_names is None) == (other.class_names is None) or all(map(str.isdecimal, map(_whole, named))):
        return ""
    bare = table if table.class_names is None else other
    return (
        f"{bare.path} numbers its classes and {words.path} names them: 0 is taken for {named[0]}, the last of "
        f"{len(named)} for {named[-1]}; extract both by the same class folders or list to have names compared"
    )


def _by_number(table: FeatureTable, other: FeatureTable) -> np.ndarray:
    """labels_like where the names of one's classes are the other's numbers."""
    assert table.labels is not None
    if table.class_names is not None:
        return np.array([*(int(_whole(name)) for name in table.class_names), -1])[table.labels]
    number = {int(_whole(name)): i for i, name in enumerate(other.class_names or ())}
    strange = [int(value) for value in np.unique(table.labels) if value >= 0 and value not in number]
    if strange:
        raise UserError(
            f"{table.path} has labels {', '.join(map(str, strange[:4]))}, which are none of the classes that "
            f"{other.path} has ({', '.join(map(str, [*number][:4]))}, ...): label both alike"
        )
    return np.array([number.get(value, -1) for value in table.labels.tolist()], dtype=np.int64)


def _whole(name: str) -> str:
    """A class name without the fraction that programs write which keep numbers with gaps so."""
    return name.removesuffix(".0")


def save_features(
    path: Path | str,
    features: ArrayLike,
    labels: Ids | None = None,
    names: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write features (N, D) and labels (N,) in the released layout; names, class names and provenance go beside it.

    Labels are -1 where None is given. Raises UserError where a label is no whole number from -1, or does not fit the
    features' type exactly: float16 holds every number up to 2,048 only.
    """
    features = np.asarray(features)
    column = np.full(len(features), -1) if labels is None else np.asarray(labels)
    check_labels(column, features.dtype, f"the feature type {features.dtype}", "use float32")
    table = np.concatenate([features, column[:, None].astype(features.dtype)], axis=1)
    for kind, words in (("names", names), ("classes", class_names)):
        write_sidecar(path, kind, None if words is None else list(words))
    write_sidecar(path, "provenance", provenance)
    with atomic_write(path) as handle:
        np.save(handle, table, allow_pickle=False)


def check_labels(labels: np.ndarray, dtype: np.dtype[Any], what: str, hint: str) -> None:
    """Raise UserError for a label that is no whole number from -1, or that a float type does not hold exactly.

    what: how the error calls the type. hint: what to do.
    """
    column = labels.astype(np.float64)
    if labels.dtype.kind in "iu" and labels.max() > 2**53:  # which float64 would round to others
        raise UserError(f"the label {labels.max()} is too large: number the classes from 0, or label by words")
    if not are_labels(column):
        bad = next(label for label in column.tolist() if not are_labels(np.array(label)))
        raise UserError(f"{bad:g} is no label: whole numbers from 0 are (-1: unknown)")
    with np.errstate(over="ignore"):
        rounded = column.astype(dtype).astype(np.float64)
    if (rounded != column).any():
        at = int(np.argmax(rounded != column))
        raise UserError(
            f"labels up to {column.max():.0f} do not fit {what} exactly ({column[at]:.0f} becomes {rounded[at]:.0f}): "
            f"{hint}"
        )


def write_sidecar(path: Path | str, kind: str, value: object) -> None:
    """Write X.{kind}.json beside path; a value of None removes a stale one."""
    if value is None:
        sidecar(path, kind).unlink(missing_ok=True)
        return
    with atomic_write(sidecar(path, kind), "w") as handle:
        json.dump(value, handle, indent=None if isinstance(value, list) else 1)
        handle.write("\n")
