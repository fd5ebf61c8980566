"""Rows that an extraction need not make again: of images with the same content, by the same backbone and pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.files import read_json
from data_selection.embedding.table_writer import MISSING, WRITTEN, TableWriter
from data_selection.images.list_files import UNKNOWN
from data_selection.images.record import PoolRecord, load_record

SETTINGS = ("backbone", "preprocess", "amp", "dtype")  # what the values of a row depend on besides its image
AT_ONCE = 4096  # rows copied at a time


@dataclass(frozen=True)
class Earlier:
    """Features (M, D) of an earlier file, the row of each content hash, and the labels (M,)."""

    features: np.ndarray
    row: dict[str, int]
    labels: np.ndarray
    record: PoolRecord


def finished(path: Path, settings: Mapping[str, Any]) -> Earlier | None:
    """The rows of a feature file with a record of its images, where its SETTINGS are these; else None."""
    beside = sidecar(path, "provenance")
    if not (path.exists() and beside.exists() and same(read_json(beside), settings)):
        return None
    try:
        table = load_features(path)
        record = load_record(path, len(table))
    except UserError:  # damaged: all is made anew
        return None
    if record is None:
        return None
    labels = np.full(len(table), UNKNOWN) if table.labels is None else table.labels
    return Earlier(table.features, rows_of(record, np.arange(len(table))), labels, record)


def unfinished(folder: Path, settings: Mapping[str, Any]) -> Earlier | None:
    """The rows that an interrupted extraction left in its folder, where its SETTINGS are these; else None."""
    try:
        if not same(read_json(folder / "request.json"), settings):
            return None
        table = np.load(folder / "table.npy", mmap_mode="r", allow_pickle=False)
        done = np.fromfile(folder / "done", dtype=np.uint8)
        record = load_record(folder / "table.npy", len(table))
    except (UserError, OSError, ValueError):
        return None
    if record is None or len(done) != len(table):
        return None
    return Earlier(table[:, :-1], rows_of(record, np.flatnonzero(done == WRITTEN)), table[:, -1], record)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in SETTINGS)


def rows_of(record: PoolRecord, rows: np.ndarray) -> dict[str, int]:
    """{content hash: one of the rows with it}."""
    return {record.hashes[row]: row for row in rows.tolist() if record.hashes[row]}


def take_over(writer: TableWriter, record: PoolRecord, labels: Sequence[int] | None, earlier: Sequence[Earlier]) -> int:
    """Write the rows of images that earlier files know, where they are missing. Returns their number."""
    count = 0
    missing = writer.flags() == MISSING
    for source in earlier:
        if source.features.shape[1] != writer.shape[1] - 1:
            continue
        known = np.array([source.row.get(value, -1) for value in record.hashes])
        todo = np.flatnonzero(missing & (known >= 0))
        for run in np.split(todo, np.flatnonzero(np.diff(todo) > 1) + 1):
            for at in range(0, len(run), AT_ONCE):
                rows = run[at : at + AT_ONCE]
                block = np.empty((len(rows), writer.shape[1]), dtype=writer.dtype)
                block[:, :-1] = source.features[known[rows]]
                block[:, -1] = UNKNOWN if labels is None else [labels[row] for row in rows]
                writer.write(int(rows[0]), block)
        missing[todo] = False
        count += len(todo)
    writer.save()
    return count


def is_there(source: Earlier | None, record: PoolRecord, labels: Sequence[int] | None) -> bool:
    """Whether a finished file holds just these images, in this order, with these labels."""
    wanted = [UNKNOWN] * len(record) if labels is None else list(labels)
    return (
        source is not None
        and all(record.hashes)
        and (source.record.hashes, source.record.names) == (record.hashes, record.names)
        and source.labels.tolist() == wanted
    )
