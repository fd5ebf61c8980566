"""What a pool's images are, beside their rows: name, size in bytes, time of change and content hash of each."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from data_selection.common.errors import UserError
from data_selection.common.feature_table import sidecar, write_sidecar
from data_selection.common.files import read_json
from data_selection.common.progress import Bar, OpenBar, open_bar
from data_selection.images.image_files import image_size
from data_selection.images.pools import Pool

VERSION = 1
THREADS = 8  # hashing waits for the disk, and hashlib leaves Python to other threads meanwhile
SPAN = 32  # files that a thread takes at once
BLOCK = 1 << 20
COLUMNS = ("name", "bytes", "time", "hash", "width", "height")

T = TypeVar("T")


@dataclass(frozen=True)
class PoolRecord:
    """A pool's images in the order of its rows.

    names: paths below the pool's root, or None where its images have none (CIFAR10). sizes: bytes; times: of the last
    change, nanoseconds since 1970; both None without files. hashes: BLAKE2b (128 bits, hex) of the file's bytes, or of
    the pixels of an image without a file; "" where a file could not be read. widths, heights: pixels by the head of the
    file, 0 where that cannot be read; both None where nobody has looked (see measured).
    """

    hashes: tuple[str, ...]
    names: tuple[str, ...] | None = None
    sizes: tuple[int, ...] | None = None
    times: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    heights: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.hashes)

    def rows(self, kept: Iterable[int]) -> "PoolRecord":
        """The record of some rows."""
        chosen = list(kept)
        columns = (self.hashes, self.names, self.sizes, self.times, self.widths, self.heights)
        return PoolRecord(*(None if column is None else tuple(column[i] for i in chosen) for column in columns))  # type: ignore[arg-type]


def record_pool(pool: Pool, before: PoolRecord | None = None, progress: OpenBar | None = None) -> PoolRecord:
    """The PoolRecord of a pool as it is now.

    before: an earlier record; a file of the same name, size and time is taken to have the same content, all others are
    read. A file that is gone or cannot be read has the hash "".
    """
    if pool.arrays is not None:
        return PoolRecord(tuple(digest(row.tobytes()) for row in pool.arrays), pool.names)
    names = tuple(pool.paths if pool.names is None else pool.names)
    known = known_files(before)
    sizes, times, hashes = [0] * len(names), [0] * len(names), [""] * len(names)
    unread = []
    for i, path in enumerate(pool.paths):
        try:
            found = Path(path).stat()
        except OSError:
            continue
        sizes[i], times[i] = found.st_size, found.st_mtime_ns
        hashes[i] = known.get((names[i], sizes[i], times[i]), "")
        if not hashes[i]:
            unread.append(i)
    with open_bar(progress, len(unread), "read", "image") as bar:
        for i, value in by_threads(lambda i: file_hash(pool.paths[i]), unread, bar):
            hashes[i] = value
    return PoolRecord(tuple(hashes), names, tuple(sizes), tuple(times))


def measured(
    record: PoolRecord, pool: Pool, before: PoolRecord | None = None, progress: OpenBar | None = None
) -> PoolRecord:
    """The record of a pool with the images' widths and heights; before: an earlier one, whose images are not opened."""
    if pool.arrays is not None:
        return record
    known: dict[str, tuple[int, int]] = {}
    if before is not None and before.widths is not None and before.heights is not None:
        known = dict(zip(before.hashes, zip(before.widths, before.heights, strict=True), strict=True))
        known.pop("", None)
    new = [i for i, value in enumerate(record.hashes) if value not in known]
    found = [known.get(value, (0, 0)) for value in record.hashes]
    with open_bar(progress, len(new), "measure", "image") as bar:
        for i, size in by_threads(lambda i: image_size(pool.paths[i]), new, bar):
            found[i] = size
    widths, heights = zip(*found, strict=True)
    return replace(record, widths=widths, heights=heights)


def by_threads(work: Callable[[int], T], rows: Sequence[int], bar: Bar) -> Iterator[tuple[int, T]]:
    """(row, work(row)) of every row, in order. In spans, as handing single small files to threads takes most time."""
    spans = [rows[start : start + SPAN] for start in range(0, len(rows), SPAN)]
    with ThreadPoolExecutor(THREADS) as threads:
        for span, values in zip(spans, threads.map(lambda span: [work(row) for row in span], spans), strict=True):
            yield from zip(span, values, strict=True)
            bar.update(len(span))


def copies(hashes: Sequence[str]) -> list[list[int]]:
    """The rows of equal content, group by group, where there is more than one; "" equals nothing."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(hashes):
        if value:
            groups[value].append(row)
    return [group for group in groups.values() if len(group) > 1]


def known_files(record: PoolRecord | None) -> dict[tuple[str, int, int], str]:
    """{(name, size, time): hash} of a record with files."""
    if record is None or record.names is None or record.sizes is None or record.times is None:
        return {}
    keys = zip(record.names, record.sizes, record.times, strict=True)
    return dict(zip(keys, record.hashes, strict=True))


def list_digest(values: Sequence[str] | Sequence[int] | None) -> str | None:
    """A short digest of a list, or None: tells an unfinished file's images from those of a folder that has changed."""
    if values is None:
        return None
    digest = hashlib.sha256()
    for at in range(0, len(values), 1024):  # in pieces: one text of all would take memory that grows with the pool
        digest.update(json.dumps(values[at : at + 1024]).encode())
    return digest.hexdigest()[:16]


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_hash(path: str) -> str:
    """The content hash of a file, "" where it cannot be read."""
    value = hashlib.blake2b(digest_size=16)
    try:
        with Path(path).open("rb") as handle:
            while block := handle.read(BLOCK):
                value.update(block)
    except OSError:
        return ""
    return value.hexdigest()


def match(
    names: Sequence[str | None], hashes: Sequence[str], today: PoolRecord, rows: Sequence[int] | None = None
) -> tuple[list[int | None], list[int], list[int]]:
    """Which rows of today's pool some images are that were known before by name and content ("" where unknown).

    rows: those that they had, which stand for the name where there is none, then or today. Returns (row of each or
    None, places that moved, places that changed). Content decides, among equal ones the same name or row, then the
    first row that no other image has; where the content is nowhere, the name: the file was changed.
    """
    by_content = defaultdict(list)
    for row, value in enumerate(today.hashes):
        if value:
            by_content[value].append(row)
    by_name: dict[str | None, int] = {name: row for row, name in enumerate(today.names or ())}
    found = unmoved(names, hashes, today, by_name, rows)
    taken = {row for row in found if row is not None}
    waiting = [place for place, row in enumerate(found) if row is None]
    moved: list[int] = []
    changed: list[int] = []
    untaken = {value: iter(copies) for value, copies in by_content.items()}  # each copy is looked at once
    for place in waiting:
        free = next((copy for copy in untaken.get(hashes[place], ()) if copy not in taken), None)
        if free is not None:
            found[place] = free
            taken.add(free)
            if rows is not None or (names[place] is not None and today.names is not None):
                moved.append(place)
    for place in waiting:
        same = by_name.get(names[place], -1)
        if found[place] is None and same >= 0 and same not in taken:
            found[place] = same
            taken.add(same)
            changed.append(place)
    return found, moved, changed


def unmoved(
    names: Sequence[str | None],
    hashes: Sequence[str],
    today: PoolRecord,
    by_name: Mapping[str | None, int],
    rows: Sequence[int] | None,
) -> list[int | None]:
    """The row of each image whose content is still under its name or, where there is none, in its row; else None.

    by_name: {name: row} of today's pool; the rest as for match.
    """
    found: list[int | None] = []
    for place, (name, value) in enumerate(zip(names, hashes, strict=True)):
        row = by_name.get(name, -1)
        if rows is not None and (name is None or today.names is None):
            row = rows[place]
        same = 0 <= row < len(today) and (not value or today.hashes[row] in ("", value))
        found.append(row if same else None)
    return found


def save_record(path: Path | str, record: PoolRecord | None) -> None:
    """Write X.images.json beside a feature file X.npy; None removes a stale one."""
    content = record and {"version": VERSION} | {
        name: column if column is None else list(column)
        for name, column in zip(
            COLUMNS,
            (record.names, record.sizes, record.times, record.hashes, record.widths, record.heights),
            strict=True,
        )
    }
    write_sidecar(path, "images", content)


def load_record(path: Path | str, count: int) -> PoolRecord | None:
    """The record beside a feature file of `count` rows, None where there is none.

    Raises UserError where it is damaged, of another length, or of a later version.
    """
    file = sidecar(path, "images")
    if not file.exists():
        return None
    content: Any = read_json(file)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise UserError(f"{file} is no record of images of version {VERSION}: extract the features again, or remove it")
    texts = ("name", "hash")
    columns = {}
    for name in COLUMNS:
        column = content.get(name)
        whole = (
            isinstance(column, list)
            and len(column) == count
            and all(type(value) is (str if name in texts else int) for value in column)
        )
        if not whole and (column is not None or name == "hash"):
            raise UserError(f"{file}: {name} should be a list of {count} values: extract the features again")
        columns[name] = None if column is None else tuple(column)
    order = ("name", "bytes", "time", "width", "height")
    return PoolRecord(columns["hash"] or (), *(columns[name] for name in order))
