"""Lists of images in files: text with a path a line, or a CSV of path and (optional) label."""

import csv
from collections.abc import Sequence
from pathlib import Path

from data_selection.common.errors import UserError

UNKNOWN = -1  # the label of an image without one


def read_list(path: Path) -> tuple[list[str], list[str]]:
    """(names, labels as text) of a list file: text, or a .csv of path and (optional) label with a header or not."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            if path.suffix.lower() != ".csv":
                names = [line.rstrip("\r\n") for line in handle if line.strip()]
                return names, [""] * len(names)
            rows = [[cell.strip() for cell in row] for row in csv.reader(handle) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of image paths ({error}): give a folder, a text file or a CSV") from None
    if rows and rows[0][0].lower() in ("file", "filename", "file_name", "image", "name", "path"):
        rows = rows[1:]
    wide = next((row for row in rows if len(row) > 2), None)
    if wide:
        raise UserError(f"list {path}: the row {','.join(wide)!r} has {len(wide)} columns; path and label are allowed")
    return [row[0] for row in rows], [row[1] if len(row) > 1 else "" for row in rows]


def number_labels(labels: Sequence[str], path: Path) -> tuple[list[int] | None, list[str] | None]:
    """(labels as ints with -1 for none, or None where there is no label; class names or None) of labels as text.

    Words are numbered in sorted order. Raises UserError for a number below -1.
    """
    given = {label for label in labels if label}
    if not given:
        return None, None
    try:
        numbers = [int(label) if label else UNKNOWN for label in labels]
    except ValueError:
        class_names = sorted(given)
        index = {name: i for i, name in enumerate(class_names)} | {"": UNKNOWN}
        return [index[label] for label in labels], class_names
    if min(numbers) < UNKNOWN:
        raise UserError(f"list {path} holds the label {min(numbers)}: labels count from 0 (-1 or nothing: unknown)")
    return numbers, None
