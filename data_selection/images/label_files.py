"""Labels of the user's own folders: from class folders or from a CSV `file,label`."""

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_selection.common.errors import UserError, meant
from data_selection.common.listed_names import composed
from data_selection.images import pools
from data_selection.images.folders import class_level
from data_selection.images.list_files import NO_LABEL, TABLES, UNKNOWN, guessed, read_list
from data_selection.images.words_alike import alike

NONE = "none"  # in place of the folder of evaluation images: there are none


def open_folders(
    root: Path,
    labels: Path | str | None = None,
    val_labels: Path | str | None = None,
    train_path: Path | str | None = None,
    val_path: Path | str | None = None,
    base: Path | None = None,
) -> tuple[pools.Pool, pools.Pool]:
    """(pool of root/train, pool of root/val), images in the order of feature extraction, classes in sorted order.

    labels, val_labels: CSV files with the labels of either part, else they are its class folders. Evaluation labels
    may leave classes out, but not add any to the class folders of the training part. Evaluation images decide nothing:
    of classes that the training part's CSV lacks they have no label, and stand in `strange`; and such a CSV may name
    classes that they lack, unless these look like another spelling of theirs.

    train_path, val_path: other folders, or lists of paths, for either part; val_path `none`: the second pool is empty.
    base: what relative paths of such a list start from, by default the list's folder.
    """
    train_folder, val_folder = Path(train_path or root / "train"), Path(val_path or root / "val")
    train = labelled_folder(train_folder, labels, "--labels", "--train-path", base)
    if val_path == NONE:
        return train, pools.Pool(labels=(), names=(), classes=train.classes, class_names=train.class_names)
    test = evaluation_folder(val_folder, val_labels, base)
    ours, theirs = train.class_names or (), test.class_names or ()
    if labels is None:
        renumber(test, ours, val_labels or val_folder, train_folder)
    else:
        refuse_misspelt(ours, theirs, labels, val_labels or val_folder)
        take_known(test, ours)
    return train, test


def check_there(folder: Path, flag: str = "--labels", place: str = "--train-path") -> None:
    """Raise UserError where one part's images are not there; flag, place: what gives its labels, and another folder."""
    if not folder.exists():
        raise UserError(
            f"folder {folder} does not exist: --data-path must hold train/<class>/ and val/<class>/, or images in any "
            f"folders of train/ and val/ with their labels in a CSV ({flag} FILE); {place} names another folder, "
            "or a list of paths"
        )


def evaluation_folder(folder: Path, labels: Path | str | None, base: Path | None = None) -> pools.Pool:
    """As labelled_folder, of images to evaluate on, each of which needs a label."""
    pool = labelled_folder(folder, labels, "--val-labels", "--val-path", base)
    check_labels(pool, range(len(pool)), labels)
    return pool


def labelled_folder(
    folder: Path,
    labels: Path | str | None,
    flag: str = "--labels",
    place: str = "--train-path",
    base: Path | None = None,
) -> pools.Pool:
    """The images of a folder, or list of paths, with the labels of a CSV (-1: not in it).

    Without one those of the class folders that they lie in (folders.class_level).
    """
    check_there(folder, flag, place)
    pool = pools.folder_pool(folder) if folder.is_dir() else pools.list_pool(folder, base or folder.parent)
    names = pool.names or ()
    if labels is None and not folder.is_dir():
        raise UserError(f"{folder} is a list, and its labels are read from a CSV: give {flag} FILE")
    if labels is None:
        parted = [name.split("/")[:-1] for name in names]
        level = class_level(parted)
        stray = next((name for name, parts in zip(names, parted, strict=True) if len(parts) <= max(level, 0)), None)
        if stray:
            above = "/".join([str(folder), *max(parted, key=len)[: max(level, 0)]])
            raise UserError(
                f"{folder}/{stray} lies in no class folder: put each image into {above}/<class>/, or give the labels "
                f"in a CSV with {flag} FILE"
            )
        words = [composed(parts[level]) for parts in parted]
    else:
        words = read_labels(labels, names, folder)
        pool.guessed = guessed(Path(labels), words)
    pool.class_names = tuple(sorted(set(words) - {""}))
    pool.classes = len(pool.class_names)
    number = {word: i for i, word in enumerate(pool.class_names)} | {"": UNKNOWN}
    pool.labels = [number[word] for word in words]
    return pool


def read_labels(path: Path | str, names: Sequence[str], folder: Path) -> list[str]:
    """The label of each name as text, "" where a CSV of `file,label` (header or not) has none, or -1.

    Raises UserError for a file that is not among the names, one that comes twice, or a CSV without any label.
    """
    if Path(path).suffix.lower() not in TABLES or not Path(path).is_file():
        raise UserError(f"label file {path} must be an existing .csv of file,label")
    known = set(names)
    files, written = read_list(Path(path), known.__contains__)
    labels = ["" if label in NO_LABEL else label for label in written]
    unknown = [file for file in files if file not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, 1) or names
        raise UserError(
            f"label file {path}: {len(unknown)} of {len(files)} files are not in {folder}, first {unknown[0]!r}; names "
            f"start from that folder, such as {close[0]!r}"
        )
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise UserError(f"label file {path} names {twice[0]!r} more than once: keep one row for each image")
    if not any(labels):
        raise UserError(f"label file {path} holds no label: rows of file,label are needed")
    given = dict(zip(files, labels, strict=True))
    return [given.get(name, "") for name in names]


def check_labels(pool: pools.Pool, ids: Sequence[int], source: Path | str | None) -> None:
    """Raise UserError where images `ids` of a pool have no label. source: the CSV they come from, or None."""
    bare = [i for i in ids if pool.label(i) == UNKNOWN]
    if bare and source:
        first = pool.names[bare[0]] if pool.names else bare[0]
        raise UserError(
            f"{len(bare)} of the {len(ids)} images to use have no label in {source}, first {first!r}: "
            "fill in the rest, or give with --subset_ids a list of images that have one"
        )


def renumber(pool: pools.Pool, class_names: tuple[str, ...], source: Path | str | None, other: Path | str) -> None:
    """Number a pool's labels by the class names of the other part. Raises UserError for a label that it lacks."""
    refuse_strange(pool.class_names or (), class_names, source, other)
    take_known(pool, class_names)


def refuse_strange(
    own: Sequence[str], class_names: Sequence[str], source: Path | str | None, other: Path | str
) -> None:
    """Raise UserError for a label of source that is no class of the other part."""
    if strange := [name for name in own if name not in class_names]:
        hint = spelt(strange[0], class_names)
        raise UserError(f"{source} has the label {strange[0]!r}{hint}, no class of {other} ({some(class_names)})")


def refuse_misspelt(
    own: Sequence[str], class_names: Sequence[str], source: Path | str | None, other: Path | str
) -> None:
    """Raise UserError for a label of source that only the other part has in another spelling, or where none is there.

    A class of which the other part has no image at all is none of these: rare ones are often absent from few images.
    """
    left = [name for name in class_names if name not in own]
    refuse_strange([name for name in own if spelt(name, left)], class_names, source, other)
    if len(left) == len(class_names):
        refuse_strange(own, class_names, source, other)


def spelt(word: str, words: Sequence[str]) -> str:
    """As errors.meant, of words that look the same first: to difflib cat and CAT have nothing in common."""
    twins = [other for other in words if alike(other) == alike(word)]
    return f" (did you mean {twins[0]}?)" if twins else meant(word, words)


def take_known(pool: pools.Pool, class_names: tuple[str, ...]) -> None:
    """Number a pool's labels by class names; of other classes its images have none, and are counted in `strange`."""
    own = pool.class_names or ()
    number = [class_names.index(name) if name in class_names else UNKNOWN for name in own]
    counts = Counter(own[label] for label in pool.labels or () if label != UNKNOWN)
    pool.strange |= {name: counts[name] for name in own if name not in class_names and counts[name]}
    number.append(UNKNOWN)  # for -1
    pool.labels = [number[label] for label in pool.labels or ()]
    pool.class_names, pool.classes = class_names, len(class_names)


def some(words: Sequence[str], count: int = 4) -> str:
    """The first words of a list, for a message."""
    return ", ".join(words[:count]) + (f" and {len(words) - count} more" if len(words) > count else "")
