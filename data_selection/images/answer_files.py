"""Files that annotators and their tools write, as pairs of file and label: tables, and exports of two tools."""

import contextlib
import csv
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data_selection.common.errors import UserError
from data_selection.images.folders import JUNK, class_level, without_splits
from data_selection.images.image_files import IMAGE_LIKE
from data_selection.images.label_files import some
from data_selection.images.list_files import (
    HEADER,
    SEPARATORS,
    TABLES,
    Rows,
    decoded,
    guessed,
    read_rows,
    refuse_workbook,
)
from data_selection.images.name_finder import Finder

# Where Label Studio's tasks name the image, and what else a task of its JSON-MIN holds beside the answers
FILE = ("file", *HEADER, "img", "url")
BESIDE = ("file_upload", "annotator", "created_at", "updated_at", "id", "annotation_id", "lead_time")
UNTAGGED = "no_label"  # CVAT's folder, in class folders, of images that nobody has given a tag
LABEL = ("label", "class", "class_name", "category", "choice", "tag")


def read_source(source: Path, finder: Finder, classes: Sequence[str] = ()) -> tuple[list[tuple[str, str]], str]:
    """([(file, label)] as written, what it was taken for) of one file or folder; classes: words known to be some."""
    if source.is_dir():
        files = (path.relative_to(source).as_posix() for path in files_below(source))
        return read_folders(files, source, finder, classes)
    if not source.is_file():
        raise UserError(f"label file {source} does not exist: give a table, an export, or a folder of class folders")
    try:
        if source.suffix.lower() == ".zip" or zipfile.is_zipfile(source):
            return read_zip(source, finder, classes)
        return read_text(source.read_bytes(), source, finder)
    except UserError:  # a ValueError, too
        raise
    except (csv.Error, ValueError, RuntimeError, ElementTree.ParseError, zipfile.BadZipFile) as error:
        raise UserError(
            f"label file {source} cannot be read ({error}): a table of file,label, Label Studio's JSON or CSV and "
            "CVAT's XML or zip are known"
        ) from None


def read_text(data: bytes, source: Path, finder: Finder) -> tuple[list[tuple[str, str]], str]:
    """As read_source, of a file's bytes: XML, JSON or a table."""
    if source.suffix.lower() == ".xml":
        return read_cvat(data, source)
    refuse_workbook(source, data)
    text = decoded(data)
    if source.suffix.lower() == ".json" or text.lstrip()[:2] in ("[{", "[\n", "[]"):
        pairs, how = read_label_studio(json.loads(text), source)
    else:
        pairs, how = read_table(text, source, finder)
    told = guessed(source, (word for _, word in pairs), data)
    return pairs, f"{how}; {told}" if told else how


def read_table(text: str, source: Path, finder: Finder) -> tuple[list[tuple[str, str]], str]:
    """The rows of a table, by the separator and the column in which most cells are images."""
    tables = [(separator, read_rows(text, separator)) for separator in SEPARATORS]
    scored = [(*file_column(rows, finder), -i, separator, rows) for i, (separator, rows) in enumerate(tables)]
    # of tables alike the one of several columns: cat;pets/1.png ends like an image, too
    hits, column, _, separator, rows = max(
        scored, key=lambda score: (score[0], any(len(row) > 1 for row in score[4]), score[2])
    )
    if not rows:
        return [], f"{source}: an empty table"
    words = [cell.lower().strip() for cell in rows[0]]
    header = column < len(rows[0]) and finder.find(rows[0][column]) is None and (
        words[column] in HEADER
        or any(word in LABEL for word in words)
        or (hits > 0 and not words[column].endswith(IMAGE_LIKE))  # an image that the pool lacks is no title
    )  # fmt: skip
    wide = max(len(row) for row in rows)
    where = label_column(words if header else [], column, wide)
    if where is None:
        raise UserError(
            f"label file {source} has {wide} columns and none is called {' or '.join(LABEL)}: name the one that holds "
            "the labels so in the first row"
        )
    body = rows[1:] if header else rows
    body = [row for row in body if column < len(row) and row[column]]
    pairs = [(row[column], word) for row in body for word in words_in(row[where] if where < len(row) else "")]
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
    title = f"{rows[0][where]!r}" if header and where < len(rows[0]) else str(where + 1)
    return pairs, (
        f"{source}: a table apart by {name}, {len(body)} rows, images in column {column + 1}, labels in column {title}"
    )


def file_column(rows: Rows, finder: Finder) -> tuple[int, int]:
    """(cells that are images of the pool, their column) of the column that has most; (0, 0) where there is none."""
    width = max((len(row) for row in rows), default=0)
    hits = [sum(1 for row in rows if i < len(row) and finder.find(row[i]) is not None) for i in range(width)]
    named = [i for i, cell in enumerate(rows[0]) if cell.strip().lower() in HEADER] if rows else []
    best = max(hits, default=0)
    return best, hits.index(best) if best else (named or [0])[0]


def label_column(header: Sequence[str], column: int, width: int) -> int | None:
    """The column of the labels: the one that is called so, else the only other one; None where that is no answer."""
    called = [header.index(word) for word in LABEL if word in header and header.index(word) != column]
    if called:
        return called[0]
    if width <= 2:
        return 1 - column if column < 2 else None
    return None


def read_label_studio(tasks: Any, source: Path) -> tuple[list[tuple[str, str]], str]:
    """The choices of Label Studio's JSON or JSON-MIN, a pair each; of several annotators' not cancelled, the last's.

    Raises UserError where nothing is read as a label, but something else stands where labels do.
    """
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"label file {source} is no export of Label Studio: a list of tasks is needed")
    pairs, torn, passed = [], 0, Counter[str]()
    results = [[results_of(one) for one in annotations_of(task) if not was_cancelled(one)] for task in tasks]
    # what is typed beside choices is a comment, also where nothing was chosen
    kinds = ("choices",) if any(words_of(one, ("choices",)) for own in results for one in own) else ("choices", "text")
    for task, own in zip(tasks, results, strict=True):
        content = task["data"] if isinstance(task.get("data"), dict) else task
        file = next((str(content[word]) for word in FILE if content.get(word)), "")
        if "annotations" in task or "completions" in task:
            chosen = [words for one in own if (words := words_of(one, kinds))]
            given = chosen[-1] if chosen else []
            torn += any(sorted(words) != sorted(given) for words in chosen)
            passed.update(str(result.get("type")) for one in own for result in one if not words_of([result], kinds))
        else:
            filled = (task[word] for word in LABEL if task.get(word) not in (None, "", []))  # a label may be 0
            given = [str(word) for word in flat(next(filled, []))]
            if content is task:  # JSON-MIN: a key of its own for each question
                passed.update(key for key in task if key not in (*FILE, *LABEL, *BESIDE) and has_words(task[key]))
        pairs += [(file or str(task.get("file_upload", "")), word) for word in given or [""]]
    others = some([f"{count} {kind}" for kind, count in sorted(passed.items())])
    if others and not any(word for _, word in pairs):
        raise UserError(
            f"label file {source} holds no choice, nor a key that is called {' or '.join(LABEL)}, but {others}: ask "
            "for the labels by Choices of a whole image, and call the key that holds them so"
        )
    told = f", {torn} of them with annotations that disagree, of which the last one counts" if torn else ""
    if others and any("annotations" in task or "completions" in task for task in tasks):
        told += f"; passed over: {others}"
    return pairs, f"{source}: Label Studio's JSON, {len(tasks)} tasks{told}"


def annotations_of(task: dict[str, Any]) -> list[Any]:
    return flat(task.get("annotations") or task.get("completions"))


def was_cancelled(annotation: Any) -> bool:
    return bool(isinstance(annotation, dict) and annotation.get("was_cancelled"))


def results_of(annotation: Any) -> list[dict[str, Any]]:
    """What was answered in one annotation of Label Studio, a dictionary for each question."""
    results = annotation.get("result") if isinstance(annotation, dict) else None
    return [one for one in flat(results) if isinstance(one, dict)]


def words_of(results: Iterable[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """The words that were chosen or typed in results, the first of the kinds (`choices`, `text`) that each has."""
    values = [value for one in results if isinstance(value := one.get("value"), dict)]
    return [
        str(word) for value in values for word in flat(next((value[kind] for kind in kinds if kind in value), None))
    ]


def has_words(value: Any) -> bool:
    """Whether a value of JSON-MIN may be somebody's answer: words, or regions with words."""
    return isinstance(value, (str, list, dict)) and bool(value)


def flat(value: Any) -> list[Any]:
    """A word or several, also as {"choices": [...]}, as a list."""
    if isinstance(value, dict):
        return flat(value.get("choices"))
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def words_in(cell: str) -> list[str]:
    """The labels in a cell: one, or those of {"choices": [...]}, as Label Studio's CSV has several."""
    if cell.startswith('{"choices"'):
        with contextlib.suppress(ValueError):
            return [str(word) for word in flat(json.loads(cell))] or [""]
    return [cell]


def read_cvat(data: bytes, source: Path) -> tuple[list[tuple[str, str]], str]:
    """The tags of CVAT's `images` XML, a pair each."""
    if b"<!ENTITY" in data:  # the only thing in XML that can grow when it is read
        raise UserError(f"label file {source} declares entities, which CVAT's exports never do: it is not read")
    images = list(ElementTree.fromstring(data).iter("image"))
    if not images:
        raise UserError(f"label file {source}: no <image> of CVAT's export for images is in it; boxes are no labels")
    tags = [[tag.get("label", "") for tag in image.iter("tag")] or [""] for image in images]
    pairs = [(image.get("name", ""), tag) for image, own in zip(images, tags, strict=True) for tag in own]
    return pairs, f"{source}: CVAT's XML, {len(images)} images"


def read_zip(source: Path, finder: Finder, classes: Sequence[str]) -> tuple[list[tuple[str, str]], str]:
    """Exports as a zip: CVAT's XML of every task, its ImageNet format's class folders, else the one table or JSON."""
    with zipfile.ZipFile(source) as archive:
        files = [file for file in archive.namelist() if not is_left(file) and not file.endswith("/")]
        refuse_workbook(source, b"", files)
        if exports := [file for file in files if file.lower().endswith(".xml")]:
            many = len(exports) > 1
            read = [read_cvat(archive.read(file), source / file if many else source) for file in exports]
            return [pair for found, _ in read for pair in found], "; ".join(how for _, how in read)
        pairs, how = read_folders(files, source, finder, classes)
        tables = [file for file in files if file.lower().endswith((*TABLES, ".json"))]
        tables = tables or [file for file in files if file.lower().endswith(".txt") and not pairs]
        if len(tables) == 1 and len({label for _, label in pairs}) < 2:  # one folder holds the images beside a table
            return read_text(archive.read(tables[0]), source / tables[0], finder)
    if not pairs:
        raise UserError(
            f"label file {source} holds {some(files) if files else 'nothing'}: CVAT's XML, class folders of images, or "
            "one table or JSON is needed in a zip; unpack it and give the file with the labels"
        )
    return pairs, how


def read_folders(
    files: Iterable[str], source: Path, finder: Finder, classes: Sequence[str]
) -> tuple[list[tuple[str, str]], str]:
    """Images in class folders, of the files below a folder or in a zip."""
    files = list(files)
    pairs = in_folders(files, classes)
    told = f"class folders ({some(sorted({word for _, word in pairs}))}), {len(pairs)} images"
    if above := may_be_class(files, classes, finder):
        told += f", all of them in {above}/, which is a class only where --classes of choose_images.py names it"
    if UNTAGGED not in classes and (bare := sum(word == UNTAGGED for _, word in pairs)):
        told += f", of which the {bare} in {UNTAGGED}/, CVAT's folder of images without a tag, have no label"
        pairs = [(file, "" if word == UNTAGGED else word) for file, word in pairs]
    return pairs, f"{source}: {told}"


def files_below(folder: Path, above: Sequence[str] = ()) -> Iterable[Path]:
    """The files below a folder that are not left, sorted, links followed, but not those that lead back up."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in sorted(path for path in folder.iterdir() if not is_left(path.name)):
        if path.is_dir():
            yield from files_below(path, (*above, real))
        elif path.is_file():
            yield path


def in_folders(files: Iterable[str], classes: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(path below its class folder, that folder) of images that lie in one."""
    return [("/".join(parts[at + 1 :]), parts[at]) for parts, at in class_folders(files, classes)]


def class_folders(files: Iterable[str], classes: Sequence[str]) -> list[tuple[Sequence[str], int]]:
    """(parts of the path, which of them is the class) of images in a folder, below train/, val/, ... if need be.

    It is one that all share where that is known to be a class, else the first that not all share (folders.class_level).
    """
    images = (file for file in files if file.lower().endswith(IMAGE_LIKE) and not is_left(file))
    parted = without_splits(file.split("/") for file in images)
    level = class_level(parts[:-1] for parts in parted)
    shared = parted[0][: max(level, 0)] if parted else ()
    level = next((depth for depth, word in enumerate(shared) if word in (*classes, UNTAGGED)), level)
    return [(parts, min(level, len(parts) - 2)) for parts in parted]


def may_be_class(files: Iterable[str], classes: Sequence[str], finder: Finder) -> str:
    """A folder that all images share, where what lies in it is called as in the pool; else ""."""
    found = class_folders(files, classes)
    above = {parts[at - 1] if at else "" for parts, at in found}
    own = all("/".join(parts[at:]) in finder.names for parts, at in found)
    return above.pop() if own and len(above) == 1 else ""


def is_left(file: str) -> bool:
    """Whether a file is hidden, or another program's, by its path: macOS puts `._` files beside what it zips."""
    return any(part.startswith(".") or part in JUNK for part in file.split("/"))
