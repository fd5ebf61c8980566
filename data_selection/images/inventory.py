"""What a pool turned out to hold: images read and left out, exact copies, unusual ones, classes."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_selection.common.files import atomic_write
from data_selection.common.listed_names import quoted
from data_selection.images.answers import is_missing
from data_selection.images.folders import in_words
from data_selection.images.label_files import some
from data_selection.images.list_files import UNKNOWN
from data_selection.images.pools import Pool
from data_selection.images.record import PoolRecord, copies
from data_selection.images.words_alike import alike

TINY, LONG = 16, 10  # unusual: fewer pixels on a side, a longer side of more than so many shorter ones


def duplicates_file(path: Path) -> Path:
    """X.duplicates.txt of a feature file X.npy."""
    return path.with_name(f"{path.stem}.duplicates.txt")


def save_duplicates(path: Path, record: PoolRecord, names: Sequence[str] | None) -> list[list[int]]:
    """Write X.duplicates.txt beside a feature file: names (else rows) of equal images, an empty line between groups.

    record: of the file's rows. Without copies a stale file is removed. Returns the groups of rows.
    """
    groups, file = copies(record.hashes), duplicates_file(path)
    if not groups:
        file.unlink(missing_ok=True)
        return groups
    with atomic_write(file, "w") as handle:
        for at, group in enumerate(groups):
            handle.write("\n" if at else "")
            handle.writelines(f"{row if names is None else quoted(names[row])}\n" for row in group)
    return groups


def inventory(pool: Pool, rows: int, reused: int, groups: Sequence[Sequence[int]], record: PoolRecord | None) -> str:
    """One line: images read and reused, what was left out and why, exact copies, unusual images, classes.

    rows: of the feature file; reused: of them, from earlier work. groups: rows of equal images. record: of the rows.
    """
    left_out = pool.left_out.copy()
    left_out["cannot be read"] += len(pool) - rows
    words = [f"{rows - reused} images read, {reused} reused"]
    words.append(f"left out: {in_words(+left_out) or 'none'}")
    spare = sum(map(len, groups)) - len(groups)
    words.append(f"exact copies: {f'{spare} in {len(groups)} groups' if spare else 'none'}")
    return f"inventory: {'; '.join(words + torn(pool, groups, record) + unusual(pool, record) + classes(pool))}"


def torn(pool: Pool, groups: Sequence[Sequence[int]], record: PoolRecord | None) -> list[str]:
    """How many groups of equal images are of several classes, as of folders that links give two names; [] without any.

    groups: of rows of the feature file, which lacks images that cannot be read.
    """
    if pool.labels is None or pool.names is None or record is None or record.names is None:
        return []
    label = {name: label for name, label in zip(pool.names, pool.labels, strict=True) if label != UNKNOWN}
    found = []
    for group in groups:
        names = [record.names[row] for row in group if record.names[row] in label]
        if other := next((name for name in names if label[name] != label[names[0]]), None):
            found.append(f"{names[0]!r} and {other!r}")
    return [f"equal images of several classes: {len(found)} groups, first {found[0]}"] if found else []


def classes(pool: Pool) -> list[str]:
    """The number of a pool's classes and the first ones, and those that look alike, in words; [] without names."""
    if not pool.class_names or pool.labels is None:
        return []
    same = twins(pool.class_names)
    told = [f"classes that may be meant for one: {some(same)} (mend the labels if so)"] if same else []
    if bare := nameless(pool.class_names):
        told.append(f"classes whose names say that there is no label: {some(bare)} (take their images out if so)")
    return [f"classes: {len(pool.class_names)} ({some(pool.class_names)})", *told]


def nameless(words: Sequence[str]) -> list[str]:
    """Words that stand for no label (answers.MISSING), as the folder no_label of an export of CVAT."""
    return [repr(word) for word in words if is_missing(word)]


def twins(words: Sequence[str]) -> list[str]:
    """Words that differ by capitals, spaces or signs around them alone (answers.alike): `'Cat' and 'cat'`, each set."""
    looks: defaultdict[object, list[str]] = defaultdict(list)
    for word in words:
        looks[alike(word)].append(word)
    return [" and ".join(map(repr, same)) for same in looks.values() if len(same) > 1]


def unusual(pool: Pool, record: PoolRecord | None) -> list[str]:
    """How many images are tiny, and how many far longer than wide (or wider than long), in words; [] without any."""
    if pool.arrays is not None:
        height, width = (np.full(len(pool), side) for side in pool.arrays.shape[1:3])
    elif record is None or record.widths is None or record.heights is None:
        return []
    else:
        height, width = np.array(record.heights), np.array(record.widths)
    small, large = np.minimum(height, width), np.maximum(height, width)
    found = {f"under {TINY} pixels a side": small < TINY, f"over {LONG} times as long as wide": large > LONG * small}
    words = []
    for what, rows in found.items():
        rows = np.flatnonzero(rows & (small > 0))  # 0: could not be measured
        if len(rows):
            name = record.names[rows[0]] if record is not None and record.names is not None else rows[0]
            words.append(f"{what}: {len(rows)}, first {name!r}" if isinstance(name, str) else f"{what}: {len(rows)}")
    return words
