"""Rows that an extraction need not make again (of equal content, backbone and pixels), and labels that it keeps."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.files import read_json
from data_selection.common.kinds import Log
from data_selection.common.progress import OpenBar
from data_selection.common.system import lock
from data_selection.embedding.checkpoint_files import listed
from data_selection.embedding.table_writer import MISSING, REUSED, WORK, WRITTEN, TableWriter, runs
from data_selection.images.following import follow_labels
from data_selection.images.list_files import UNKNOWN
from data_selection.images.pools import Pool
from data_selection.images.record import PoolRecord, list_digest, load_record, measured, record_pool, save_record

SETTINGS = ("backbone", "preprocess", "amp", "dtype")  # what the values of a row depend on besides its image
DECODING = ("background", "exif")  # what of the preprocessing counts for image files alone
AT_ONCE = 4096  # rows copied at a time


@dataclass(frozen=True)
class Earlier:
    """Features (M, D) of an earlier file, the row of each content hash, labels (M,) and the names of their classes."""

    features: np.ndarray
    row: dict[str, int]
    labels: np.ndarray
    record: PoolRecord
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Known:
    """What an extraction knows before it embeds: its images, earlier rows, and where unfinished ones were put aside.

    request: for TableWriter, with a digest of what the images hold. there: whether the feature file holds all rows
    already.
    """

    record: PoolRecord
    request: dict[str, Any]
    earlier: list[Earlier]
    aside: Path
    there: bool


def look(path: Path, request: dict[str, Any], pool: Pool, progress: OpenBar | None, log: Log) -> Known:
    """Read what the pool's images are, and find the rows that an earlier file or unfinished work has of them.

    path: the feature file. request: as for TableWriter. Unfinished work of another request goes aside, and is removed
    where it was made by another backbone or of other pixels. Where rows cannot be reused, a line says why.
    """
    before = None
    if path.exists():
        with contextlib.suppress(UserError):  # damaged: its files are read anew
            before = load_record(path, len(load_features(path)))
    record = measured(record_pool(pool, before, progress), pool, before, progress)
    request = request | {"images_digest": list_digest(record.hashes)}  # another content, another row
    folder, aside = path.with_suffix(".partial"), path.with_suffix(".partial.aside")
    for unfinished_work in (folder, aside):
        check_own_folder(unfinished_work)
    if other_request(folder, request):
        shutil.rmtree(aside, ignore_errors=True)  # of a start that was killed before it had taken these rows over
        folder.rename(aside)
    files = pool.arrays is None
    whole, part = finished(path, request, files, log), unfinished(aside, request, files)
    if aside.exists() and part is None:
        unlike = "; ".join(differences(read_json(aside / "request.json"), request, files))
        log(f"{folder} holds unfinished work, which is dropped ({unlike or 'of other images, or damaged'})")
        shutil.rmtree(aside)
    there = not folder.exists() and is_there(whole, record, pool)
    if there and record != before:  # times and sizes that an earlier version did not know, or that have changed
        save_record(path, record)
    return Known(record, request, [source for source in (whole, part) if source], aside, there)


def still(record: PoolRecord, pool: Pool, log: Log) -> PoolRecord:
    """The record of images that have been embedded, without a hash for those that changed meanwhile.

    Nobody knows which of its two contents such a row is of: the next extraction makes it anew.
    """
    if pool.arrays is not None:
        return record
    now = record_pool(pool, record).hashes
    hashes = tuple(value if value == today else "" for value, today in zip(record.hashes, now, strict=True))
    if changed := sum(value != today for value, today in zip(record.hashes, now, strict=True)):
        log(f"{changed} images have changed while they were embedded: the same command makes their rows anew")
    return replace(record, hashes=hashes)


def kept_labels(path: Path, pool: Pool, log: Log) -> tuple[list[int], tuple[str, ...] | None] | None:
    """(label of each image of a pool or -1, class names) by a feature file, told; None where that has no labels.

    Images that its record does not know are read, to follow labels by content.
    """
    try:
        table = load_features(path)
        record = None if table.labels is None else load_record(path, len(table))
    except UserError:  # damaged: it is made anew
        return None
    if table.labels is None:
        return None
    labels, changed = follow_labels(table.names or (), table.labels.tolist(), record, pool)
    told = f"; {changed} of images whose content has changed since, by their names" if changed else ""
    bare = labels.count(UNKNOWN)
    log(f"the labels in {path} are kept{told}" + (f"; {bare} images have none: give --labels again" if bare else ""))
    return labels, table.class_names


def check_own_folder(folder: Path) -> None:
    """Raise UserError where a folder holds what no extraction has put there, hidden files apart: it will be removed."""
    if not folder.is_dir():
        return
    strange = sorted(entry.name for entry in folder.iterdir() if entry.name not in WORK and entry.name[0] != ".")
    if strange:
        raise UserError(
            f"{folder} is where unfinished work is kept, and holds other files ({listed(strange)}): move them away, or "
            "choose another --extra_name or --output_dir"
        )


def other_request(folder: Path, request: dict[str, Any]) -> bool:
    """Whether an unfinished extraction of another request lies in a folder, and nobody is at work on it."""
    try:
        told = read_json(folder / "request.json")
    except (UserError, OSError):
        return False
    told.pop("shape", None)  # follows from the images and the backbone
    return bool(told != request) and idle(folder)


def idle(folder: Path) -> bool:
    """Whether no process has the lock of an unfinished extraction."""
    try:
        with (folder / "lock").open() as handle:
            lock(handle)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def finished(path: Path, settings: Mapping[str, Any], files: bool, log: Log) -> Earlier | None:
    """The rows of a feature file with a record of its images, where its SETTINGS are these; else None.

    files: whether the images are files. log: told what differs, where that is why no row is reused.
    """
    beside = sidecar(path, "provenance")
    if not (path.exists() and beside.exists() and settings.get("backbone")):
        return None
    unlike = differences(read_json(beside), settings, files)
    if unlike:
        log(f"no row of {path} is reused: {'; '.join(unlike)}")
        return None
    try:
        table = load_features(path)
        record = load_record(path, len(table))
    except UserError:  # damaged: all is made anew
        return None
    if record is None:
        return None
    labels = np.full(len(table), UNKNOWN) if table.labels is None else table.labels
    return Earlier(table.features, rows_of(record, np.arange(len(table))), labels, record, table.class_names)


def unfinished(folder: Path, settings: Mapping[str, Any], files: bool) -> Earlier | None:
    """The rows that an interrupted extraction left in its folder, where its SETTINGS are these; else None."""
    try:
        if not settings.get("backbone") or differences(read_json(folder / "request.json"), settings, files):
            return None
        table = np.load(folder / "table.npy", mmap_mode="r", allow_pickle=False)
        done = np.fromfile(folder / "done", dtype=np.uint8)
        record = load_record(folder / "table.npy", len(table))
    except (UserError, OSError, ValueError):
        return None
    if record is None or len(done) != len(table):
        return None
    return Earlier(
        table[:, :-1], rows_of(record, np.flatnonzero((done == WRITTEN) | (done == REUSED))), table[:, -1], record
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], files: bool) -> list[str]:
    """What of SETTINGS was otherwise, in words; of pixels that a pool holds in memory, DECODING says nothing."""
    words = []
    for setting in SETTINGS:
        was, is_ = (told.get(setting) for told in (before, now))
        if not (isinstance(was, dict) and isinstance(is_, dict)):
            was, is_ = {setting: was}, {setting: is_}
        keys = [key for key in was | is_ if was.get(key) != is_.get(key) and (files or key not in DECODING)]
        words += [f"{key} was {was.get(key, 'not recorded')}, now {is_.get(key)}" for key in keys]
    return words


def rows_of(record: PoolRecord, rows: np.ndarray) -> dict[str, int]:
    """{content hash: one of the rows with it}."""
    return {record.hashes[row]: row for row in rows.tolist() if record.hashes[row]}


def take_over(writer: TableWriter, known: Known, labels: Sequence[int] | None) -> int:
    """Write the rows of images that earlier files know, where they are missing. Returns their number."""
    save_record(writer.folder / "table.npy", known.record)
    count, missing = 0, writer.flags() == MISSING
    while known.earlier:  # they have files open, which Windows would not replace or remove
        count += copy_rows(writer, known.earlier.pop(0), known.record.hashes, labels, missing)
    writer.save()
    shutil.rmtree(known.aside, ignore_errors=True)
    return count


def copy_rows(
    writer: TableWriter, source: Earlier, hashes: Sequence[str], labels: Sequence[int] | None, missing: np.ndarray
) -> int:
    """Write the missing rows (N,) that an earlier file has, and note that they are there. Returns their number."""
    if source.features.shape[1] != writer.shape[1] - 1:
        return 0
    rows = np.array([source.row.get(value, -1) for value in hashes])
    todo = np.flatnonzero(missing & (rows >= 0))
    for part in runs(todo, AT_ONCE):
        block = np.empty((len(part), writer.shape[1]), dtype=writer.dtype)
        block[:, :-1] = source.features[rows[part]]
        block[:, -1] = UNKNOWN if labels is None else [labels[row] for row in part]
        writer.write(int(part[0]), block, flag=REUSED)
    missing[todo] = False
    return len(todo)


def is_there(source: Earlier | None, record: PoolRecord, pool: Pool) -> bool:
    """Whether a finished file holds just these images, in this order, with the pool's labels."""
    wanted = [UNKNOWN] * len(record) if pool.labels is None else pool.labels
    return (
        source is not None
        and all(record.hashes)
        and (source.record.hashes, source.record.names) == (record.hashes, record.names)
        and source.labels.tolist() == wanted
        and source.class_names == pool.class_names
    )
