"""Lists of images in files: text with a path a line, or a CSV of path and (optional) label."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.listed_names import composed, meant, unquoted

UNKNOWN = -1  # the label of an image without one
NO_LABEL = ("-1", "-1.0")  # the same as text, also as programs write it that keep numbers with gaps as fractions
MARK = re.compile(r"sep=.\r?\n")  # a first line by which spreadsheets tell each other the separator
NUMBER = re.compile("-?[0-9]{1,18}")  # int() would take 1_0 for 10; what is longer is a code, and no count
FRACTION = re.compile(r"-?[0-9]{1,18}\.0")  # as pandas writes the numbers of a column with gaps
HEADER = ("file", "filename", "file_name", "image", "name", "path")
TABLES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t")
WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers")
PARTS = {"[Content_Types].xml", "content.xml", "Index/Document.iwa"}  # of Office's, LibreOffice's and Apple's files
ARCHIVE, OLD_OFFICE = b"PK\3\4", bytes.fromhex("d0cf11e0a1b11ae1")  # what workbooks begin with, today's and older ones
Rows = list[list[str]]


def read_list(path: Path, known: Callable[[str], bool] | None = None) -> tuple[list[str], list[str]]:
    """(names, labels as text) of a list file: text, or a .csv of path and (optional) label with a header or not.

    UTF-8, UTF-16 and Windows' cp1252; columns apart by comma, semicolon or tab, as spreadsheets write them. known:
    whether a name is that of an image, which settles what lines with spaces, quotes or other bytes mean
    (listed_names.meant). Labels come composed. Raises UserError for a file that is no text or has more columns; empty
    ones at the end do not count.
    """
    data = path.read_bytes()
    refuse_workbook(path, data)
    try:
        text = decoded(data)
        if path.suffix.lower() not in TABLES:
            lines = [line.rstrip("\r\n") for line in io.StringIO(text, newline="") if line.strip()]
            return [meant(line, known) for line in lines], [""] * len(lines)
        rows = columns(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of image paths ({error}): give a folder, a text file or a CSV") from None
    if rows and rows[0][0].strip().lower() in HEADER:
        rows = rows[1:]
    wide = next((row for row in rows if len(row) > 2), None)
    if wide:
        raise UserError(f"list {path}: the row {','.join(wide)!r} has {len(wide)} columns; path and label are allowed")
    labels = [composed(unquoted(row[1].strip())) if len(row) > 1 else "" for row in rows]
    return [meant(row[0], known) for row in rows], labels


def is_wide(path: Path) -> bool:
    """Whether a table has more columns than path and label."""
    try:
        return any(len(row) > 2 for row in columns(decoded(path.read_bytes())))
    except (UnicodeDecodeError, csv.Error):  # read_list says so
        return False


def refuse_workbook(path: Path, data: bytes, inside: Iterable[str] = ()) -> None:
    """Raise UserError for a spreadsheet program's own file; a text that is only called so is none.

    data: its content, or inside: the names of what it holds, for a zip.
    """
    by_name = path.suffix.lower() in WORKBOOKS and not is_text(data)
    if by_name or data.startswith((ARCHIVE, OLD_OFFICE)) or PARTS.intersection(inside):
        raise UserError(
            f"{path} is a workbook, or another program's archive, and no table of text: save the sheet with the labels "
            "as CSV (UTF-8) in Excel, LibreOffice or what it was made with, and give that file"
        )


def is_text(data: bytes) -> bool:
    try:
        decoded(data)
    except UnicodeDecodeError:
        return False
    return True


def decoded(data: bytes) -> str:
    """The text of a file's bytes, without a spreadsheet's MARK. Raises UnicodeDecodeError where they are none."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        elif b"\0" in data[:4]:  # UTF-16 without a mark: every other byte of what begins like a path
            text = data.decode("utf-16-be" if data[0] == 0 else "utf-16-le")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "surrogateescape")  # five bytes have no letter there
    strange = next((i for i, letter in enumerate(text) if letter < " " and letter not in "\t\r\n\f\v"), None)
    if strange is not None:
        raise UnicodeDecodeError("text", data, strange, strange + 1, f"it holds the control code {ord(text[strange])}")
    return MARK.sub("", text, count=1) if MARK.match(text) else text


def guessed(path: Path, words: Iterable[str], data: bytes | None = None) -> str:
    """A sentence where words of a table were decoded by guess, which any bytes have letters in; "" where none was.

    data: the content of the table, by default that of the file.
    """
    strange = next((word for word in words if not word.isascii()), None)
    if strange is None:  # all that a guess could have changed are names, and these are looked for in the pool
        return ""
    data = path.read_bytes() if data is None else data
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        return ""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return (
            f"{path} is not in UTF-8 and is read as Windows' cp1252, with words such as {strange!r}: where these are "
            "wrong, save it as CSV UTF-8"
        )
    return ""


def columns(text: str) -> Rows:
    """The rows of a table without the empty ones, by the separator that makes two columns of them all, or of some."""
    tables = [read_rows(text, separator) for separator in SEPARATORS]
    usable = [
        rows for rows in tables
        if rows and (rows[0][0].strip().lower() in HEADER or Path(rows[0][0].strip()).suffix or rows is tables[0])
    ]  # fmt: skip
    for fits in (lambda sizes: sizes == {2}, lambda sizes: sizes == {1, 2}, lambda sizes: max(sizes) > 1):
        for rows in usable:
            if fits({len(row) for row in rows}):
                return rows
    return tables[0]


def read_rows(text: str, separator: str) -> Rows:
    """The rows that hold something, without the empty cells after their second: spreadsheets write more columns."""
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(map(str.strip, row))]
    for row in rows:
        while len(row) > 2 and not row[-1].strip():
            row.pop()
    return rows


def number_labels(
    labels: Sequence[str], path: Path, others: Iterable[str] = ()
) -> tuple[list[int] | None, list[str] | None]:
    """(labels as ints with -1 for none, or None where there is no label; class names or None) of labels as text.

    Words are numbered in sorted order, together with those of others, further class names; -1 is none of them. 1.0 is
    the number 1 where all labels are written so. Raises UserError for a number below -1, or one that is written in two
    ways.
    """
    given = {label for label in labels if label}
    if not given:
        return None, None
    if all(map(FRACTION.fullmatch, given)):
        return number_labels([label.removesuffix(".0") for label in labels], path, others)
    if not all(map(NUMBER.fullmatch, given)):
        class_names = sorted((given | set(others)).difference(NO_LABEL))
        index = {name: i for i, name in enumerate(class_names)} | dict.fromkeys(("", *NO_LABEL), UNKNOWN)
        return [index[label] for label in labels], class_names
    texts: dict[int, list[str]] = {}
    for label in sorted(given):
        texts.setdefault(int(label), []).append(label)
    doubled = next((same for same in texts.values() if len(same) > 1), None)
    if doubled:
        raise UserError(
            f"list {path} holds the labels {' and '.join(doubled)}, which are one number: write each class in one "
            f"way, and codes that are no numbers with a letter (class {doubled[0]})"
        )
    numbers = [int(label) if label else UNKNOWN for label in labels]
    if min(numbers) < UNKNOWN:
        raise UserError(f"list {path} holds the label {min(numbers)}: labels count from 0 (-1 or nothing: unknown)")
    return numbers, None


def shared_words(path: Path, labels: Sequence[str]) -> set[str]:
    """The class names of the lists beside this one that have some of its own, or of such a list's.

    So train.csv (cat, dog, fox) and test.csv (dog, fox) number their classes alike.
    """
    words = {label for label in labels if label}
    beside = [file for file in path.parent.iterdir() if file.suffix.lower() in TABLES and file.name != path.name]
    found = []
    for file in beside:
        try:
            found.append({label for label in read_list(file)[1] if label}.difference(NO_LABEL))
        except (UserError, OSError):  # a table of something else
            continue
    while related := [other for other in found if other & words and not other <= words]:
        words |= set().union(*related)
    return words
