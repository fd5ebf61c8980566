"""Images that were known by name, followed by their content: renamed ones are found, exchanged ones noticed."""

from collections.abc import Callable, Mapping, Sequence

from data_selection.images.list_files import UNKNOWN
from data_selection.images.pools import Pool
from data_selection.images.record import PoolRecord, file_hash, match, record_pool


def follow(
    known: Mapping[str, str], pool: Pool, read: Callable[[], PoolRecord] | None = None
) -> tuple[dict[str, str], list[str]]:
    """({name: today's}, lost) of images that a pool had: those whose content has another name, and those that are gone.

    known: {name: content hash, "" where nobody knows}. An image is lost, too, where its name has another content and
    its own is nowhere. The files of these names are read, all others only where one of them is not what it was, by
    `read`: gives the pool's record, for callers that follow several lists (default: record_pool).
    """
    here = dict(zip(pool.names or (), pool.paths, strict=True))
    if all(name in here and (not value or file_hash(here[name]) == value) for name, value in known.items()):
        return {}, []
    rows, moved, changed = match(list(known), list(known.values()), read() if read else record_pool(pool))
    found, lost = {}, []
    for place, (name, row) in enumerate(zip(known, rows, strict=True)):
        if row is None or place in changed:
            lost.append(name)
        elif place in moved:
            found[name] = pool.paths[row] if pool.names is None else pool.names[row]
    return found, lost


def follow_labels(
    names: Sequence[str], labels: Sequence[int], record: PoolRecord | None, pool: Pool
) -> tuple[list[int], int]:
    """(label of each image of a pool or -1, how many of them are by the name of an image whose content has changed).

    names, labels, record: of N images that were labelled; labels are class numbers. Content decides before names; None
    for the record: names alone.
    """
    today = PoolRecord(("",) * len(pool), pool.names) if record is None else record_pool(pool, record)
    hashes = ("",) * len(names) if record is None else record.hashes
    rows, _, changed = match(names, hashes, today)
    found = [UNKNOWN] * len(pool)
    for row, label in zip(rows, labels, strict=False):
        if row is not None:
            found[row] = label
    return found, sum(labels[place] != UNKNOWN for place in changed)


def told(moved: Mapping[str, str], lost: list[str], shown: int = 3) -> str:
    """The first of what follow has found, in words."""
    words = [f"{old!r} is now {new!r}" for old, new in moved.items()]
    words += [f"{name!r} is gone or has another content" for name in lost]
    return "; ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")
