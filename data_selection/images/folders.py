"""A folder searched through for images: their names, what is left out and why, and folders of several splits."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.images.image_files import IMAGE_LIKE, readable

SPLITS = ("train", "test", "val")  # test and val both mean the held-out part
# What folders of a split are called, in any case
SPLIT_NAMES = (*SPLITS, "training", "testing", "valid", "validation", "eval", "evaluation", "dev", "holdout")
PIPE, NOTHING = "no files, but pipes or devices", "links to nothing"
UNREAD = "not read by the installed Pillow"
# Copies, thumbnails and deleted images that other programs leave: of macOS and notebooks, of a NAS, of Windows
JUNK = (
    "__MACOSX", ".ipynb_checkpoints", "@eaDir", "#recycle", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN",
    "System Volume Information", "lost+found",
)  # fmt: skip


def image_names(folder: Path) -> tuple[list[str], Counter[str]]:
    """(names of the images below a folder, {why files are left out: how many}).

    The names are relative paths with slashes, sorted folder by folder: those of class folders with nothing but images
    come in torchvision's ImageFolder order. A folder that links make another name for has its images by both, as either
    may be a class; only links that lead back up are not followed. Raises UserError where folders of two splits lie
    beside each other.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    endings = readable()
    above: dict[str, tuple[str, ...]] = {}  # of a folder to come: where those that it lies in are really
    for parent, folders, files in os.walk(folder, onerror=refuse_unread, followlinks=True):
        real = os.path.realpath(parent)
        held = above.pop(parent, ())
        if real in held:  # a link that leads back up
            folders.clear()
            continue
        for entry in [entry for entry in folders if entry in JUNK or entry.startswith(".")]:
            folders.remove(entry)
            left_out[f"in folders {entry}" if entry in JUNK else "hidden"] += count_images(Path(parent, entry))
        folders.sort()
        if len(splits := splits_among(folders)) > 1:  # deeper down, too: images/train and images/val
            refuse_splits(parent, splits)
        for entry in folders:
            above[os.path.join(parent, entry)] = (*held, real)  # noqa: PTH118 - as os.walk makes the names
        odd = no_files(parent) if files else {}
        for entry in files:
            why = odd.get(entry, "") or reason(entry, endings)
            if why:
                left_out[why] += 1
            else:
                names.append(Path(parent, entry).relative_to(folder).as_posix())
    names.sort(key=lambda name: name.split("/"))  # as text, "a-b/x" would come before "a/x"
    return names, +left_out


def refuse_unread(error: OSError) -> None:
    """Raise UserError for a folder that cannot be searched through: its images would be missing without a word."""
    raise UserError(
        f"folder {error.filename} cannot be read ({error.strerror}): allow it to be read, or move it out of the pool"
    )


def no_files(folder: str) -> dict[str, str]:
    """{what in a folder is called like a file and is none: what it is}, as a pipe, which nobody may ever write to.

    Links to nothing are left to their readers, who name them, where they are called like images.
    """
    with os.scandir(folder) as entries:
        others = [entry for entry in entries if not entry.is_file() and not entry.is_dir()]
    there = {entry.name: os.path.exists(entry.path) for entry in others}  # noqa: PTH110 - pathlib takes six times as long
    odd = {name: PIPE if exists else NOTHING for name, exists in there.items()}
    return {name: what for name, what in odd.items() if what == PIPE or not name.lower().endswith(IMAGE_LIKE)}


def reason(entry: str, endings: tuple[str, ...]) -> str:
    """Why a file of this name is left out, "" where it is not; endings: of what can be read, in lower case."""
    ending = os.path.splitext(entry)[1].lower()  # noqa: PTH122 - pathlib takes six times as long
    if entry.startswith("."):
        return "hidden"
    if ending in endings:
        return ""
    return f"{ending}, {UNREAD}" if ending in IMAGE_LIKE else "no images by their endings"


def count_images(folder: Path) -> int:
    """The files below a folder that are called like images."""
    return sum(file.lower().endswith(IMAGE_LIKE) for _, _, files in os.walk(folder) for file in files)


def check_one_split(folder: Path) -> None:
    """Raise UserError for a folder of train/, val/, test/: a pool of all of them would mix in the evaluation images.

    Their other names count, too (SPLIT_NAMES, in any case). A single one among other subfolders is let through: it may
    be a class (`train` among vehicles).
    """
    inside = sorted(
        entry.name for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in JUNK
    )  # fmt: skip
    splits = splits_among(inside)
    if len(splits) > 1 or inside == splits != []:
        refuse_splits(folder, splits)


def splits_among(folders: Iterable[str]) -> list[str]:
    """The names that mean a split, those of the training part first."""
    splits = (name for name in folders if name.lower() in SPLIT_NAMES)
    return sorted(splits, key=lambda name: not name.lower().startswith("train"))


def refuse_splits(folder: Path | str, splits: Sequence[str]) -> None:
    """Raise UserError for a folder that holds these splits."""
    held = " and ".join(f"{split}/" for split in splits)
    raise UserError(f"folder {folder} holds {held}, not one pool: give {Path(folder, splits[0])}")


def class_level(folders: Iterable[Sequence[str]]) -> int:
    """Which of the folders that each image lies in (from the outermost) is its class: the first that not all share.

    Deeper ones are folders within a class. Where all share all of them it is the innermost (-1: none lies in any).
    """
    levels = list(itertools.zip_longest(*folders))  # None: an image has no folder of that depth
    return next((depth for depth, level in enumerate(levels) if len({*level}) > 1), len(levels) - 1)


def without_splits(paths: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """The parts of images' paths without the folders train/, val/, ... that stand where classes would.

    Those that then lie in no folder are left out. `train` beside folders called otherwise is a class.
    """
    parted = [parts for parts in paths if len(parts) > 1]
    level = class_level(parts[:-1] for parts in parted)
    called = {parts[level].lower() for parts in parted if len(parts) - 1 > level}
    if not called or not called.issubset(SPLIT_NAMES):
        return parted
    return without_splits([*parts[:level], *parts[level + 1 :]] for parts in parted)


def in_words(left_out: Counter[str]) -> str:
    """What image_names left out, for a message: `3 hidden, 2 no images by their endings`; "" where nothing was."""
    return ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
