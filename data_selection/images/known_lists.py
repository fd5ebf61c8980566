"""Images that are known from before, found among today's: subset files, names, label tables, exports, folders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, sidecar
from data_selection.common.files import read_json
from data_selection.common.kinds import Log
from data_selection.common.subset_files import load_subset, names_digest
from data_selection.images.answer_files import read_source
from data_selection.images.list_files import TABLES, is_wide, read_list
from data_selection.images.name_finder import Finder
from data_selection.images.pools import Pool, folder_pool
from data_selection.images.record import PoolRecord, file_hash, load_record, match, record_pool

SHOWN = 3  # names in a message
MISSING = ("stop", "skip")


@dataclass(frozen=True)
class Today:
    """The pool in which images are looked for. record: gives its PoolRecord, None where there is none."""

    count: int
    names: Sequence[str] | None
    record: Callable[[], PoolRecord | None]
    what: str  # how messages call it


def of_features(table: FeatureTable) -> Today:
    """The pool of a feature file."""
    path = table.path
    record = (lambda: None) if path is None else (lambda: load_record(path, len(table)))
    return Today(len(table), table.names, record, str(path or "the features"))


def of_pool(pool: Pool) -> Today:
    """A pool at hand; its files are read when a list asks for their contents."""
    return Today(len(pool), pool.names, lambda: record_pool(pool), "the training set")


def find_images(sources: Sequence[Path | str], today: Today, *, missing: str = "stop", log: Log = print) -> list[int]:
    """Rows of today's pool that some lists name, in the lists' order, each once.

    sources: subset files (.json), files of names (.txt, a name a line), label files (.csv of file,label), exports of
    Label Studio and CVAT, and folders of images. A subset file with the record of its images is matched by content and
    name; without one it is taken by position. missing: `stop` raises UserError where an image is not found, `skip`
    leaves it out and says so.
    """
    rows: dict[int, None] = {}
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise UserError(
                f"list {path} does not exist: a subset file, a file of names, a CSV, an export or a folder is needed"
            )
        if path.is_dir():
            found = of_folder(path, today, log)
        elif is_export(path):
            found = of_export(path, today)
        elif path.suffix.lower() == ".json":
            found = of_subset(path, today, log)
        else:
            found = of_names(path, today)
        gone = [name for name, row in found.items() if row is None]
        if gone:
            told = f"{path}: {len(gone)} of {len(found)} images are not in {today.what}: {shown(gone)}"
            if missing == "stop":
                raise UserError(f"{told}. Give them back, or leave them out with --missing skip")
            log(f"{told}; left out")
        rows |= dict.fromkeys(row for row in found.values() if row is not None)
    return list(rows)


def shown(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def of_names(path: Path, today: Today) -> dict[str, int | None]:
    """{name in a file of names or a label table: row}."""
    find = finder(today)
    return {name: find(name) for name in read_list(path, lambda name: find(name) is not None)[0]}


def is_export(path: Path) -> bool:
    """Whether a file is what an annotation tool has written: no list of ids or names, no table of file and label."""
    kind = path.suffix.lower()
    return kind in (".xml", ".zip") or holds_tasks(path) or (kind in TABLES and is_wide(path))


def holds_tasks(path: Path) -> bool:
    """Whether a file holds Label Studio's tasks, which a subset file, a JSON list of numbers, does not."""
    content = read_json(path) if path.suffix.lower() == ".json" and path.is_file() else None
    return isinstance(content, list) and any(isinstance(one, dict) for one in content)


def of_export(path: Path, today: Today) -> dict[str, int | None]:
    """{file in an annotation tool's export: row}."""
    rows = {name: row for row, name in enumerate(named(today))}
    known = Finder(tuple(rows))
    found = {file: known.find(file) for file, _ in read_source(path, known)[0]}
    return {file: None if name is None else rows[name] for file, name in found.items()}


def named(today: Today) -> Sequence[str]:
    """The names of today's images. Raises UserError where they have none."""
    if today.names is None:
        raise UserError(f"the images of {today.what} have no names to find others by: give a subset file of ids")
    return today.names


def finder(today: Today) -> Callable[[str], int | None]:
    """What finds a name's row, None where it is not there; parts in front that the pool's names lack are left away."""
    rows = {name: row for row, name in enumerate(named(today))}

    def find(name: str) -> int | None:
        parts = name.split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((rows[tail] for tail in tails if tail in rows), None)

    return find


def by_name(names: Sequence[str], today: Today) -> list[int | None]:
    """The row of each name, as finder finds it."""
    return list(map(finder(today), names))


def of_folder(folder: Path, today: Today, log: Log) -> dict[str, int | None]:
    """{name in a folder of images: row}."""
    pool = folder_pool(folder)
    names = list(pool.names or ())
    record = today.record()
    if record is None:
        return dict(zip(names, by_name(names, today), strict=True))
    found, moved, changed = match(names, [file_hash(path) for path in pool.paths], record)
    say(folder, len(found), moved, changed, log)
    return dict(zip(names, found, strict=True))


def of_subset(path: Path, today: Today, log: Log) -> dict[str, int | None]:
    """{name, or position as text: row} of a subset file."""
    beside = sidecar(path, "provenance")
    provenance: dict[str, Any] = read_json(beside) if beside.exists() else {}
    images = provenance.get("images")
    if not images:
        check_positions(path, provenance.get("features") or {}, today)
        return {str(row): row for row in load_subset(path, today.count, log).tolist()}
    ids = read_json(path)
    hashes, names = images.get("hash"), images.get("name") or [None] * len(ids)
    whole = isinstance(ids, list) and isinstance(hashes, list) and len(hashes) == len(names) == len(ids)
    if not whole or not all(type(row) is int for row in ids):
        raise UserError(f"{beside} does not tell the {len(ids)} images of {path.name}: choose again, or remove it")
    record = today.record()
    if record is None and names[0] is not None and today.names is not None:
        return dict(zip(names, by_name(names, today), strict=True))
    if record is None:
        check_positions(path, provenance.get("features") or {}, today)
        return {str(row): row for row in load_subset(path, today.count, log).tolist()}
    found, moved, changed = match(names, hashes, record, ids)
    named = record.names is not None and images.get("name") is not None
    say(path, len(found), moved, changed, log, named=named)
    keys = [str(key if name is None else name) for key, name in zip(ids, names, strict=True)]
    return dict(zip(keys, found, strict=True))


def check_positions(path: Path, features: dict[str, Any], today: Today) -> None:
    """Raise UserError where the positions of a list without a record of its images would mean others today.

    features: what its provenance says of the features that it was chosen from.
    """
    shape = features.get("shape")
    if shape and shape[0] != today.count:
        raise UserError(
            f"subset file {path} was chosen from {shape[0]} images, but {today.what} has {today.count}, and its "
            "provenance does not say which images it means: it is a list of another data set, or images were skipped "
            "or added since. Choose again from the features of these images"
        )
    names = today.names
    if names and (features.get("names_sha256") or names_digest(names)) != names_digest(names):
        raise UserError(
            f"subset file {path} was chosen from {today.count} images of other names, or in another order, than "
            f"{today.what} has, and its provenance does not say which images it means: choose again from the features "
            "of these images"
        )


def say(
    source: Path, count: int, moved: Sequence[int], changed: Sequence[int], log: Log, *, named: bool = True
) -> None:
    """One line where some images have other names (rows, where none are named) or contents than the list knows."""
    if moved or changed:
        words = [f"{len(moved)} {'under another name' if named else 'in another row'}"] if moved else []
        words += [f"{len(changed)} with another content under their name"] if changed else []
        log(f"{source}: of {count} images, {' and '.join(words)}")
