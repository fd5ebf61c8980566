"""File names in text files: as they are, or in JSON's form where a line or a cell would change them."""

import contextlib
import json
import re
import unicodedata
from collections.abc import Callable

# Control codes, other ends of a line, and bytes that are no UTF-8 (Python reads byte xx of a file name as \udcxx)
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
FORMULA = re.compile(r"[=+@]|-(?!\d+(\.\d+)?$)")  # what a spreadsheet computes
NO_TEXT = re.compile("[\ud800-\udfff]")


def quoted(name: str) -> str:
    r"""A name as a line of text: itself, or `"caf\udce9.png"` where it holds what no line can, or a space at an end.

    A name that begins with a quote is quoted, too, so that unquoted() gives back every name.
    """
    plain = name == name.strip() and not name.startswith('"') and not UNSAFE.search(name)
    return name if plain and name else json.dumps(name)


def as_cell(word: str) -> str:
    """As quoted(), also where a spreadsheet would compute the word (=1+1, -a.png); unquoted() gives it back."""
    return json.dumps(word) if FORMULA.match(word) else quoted(word)


def unquoted(text: str) -> str:
    """The name that quoted() wrote; any other text is the name itself."""
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:  # somebody else's quotes
            return text
    return text


def is_text(word: str) -> bool:
    """Whether a word is text that can be written anywhere; bytes that no reading of a file has a letter for are not."""
    return not NO_TEXT.search(word)


def composed(text: str) -> str:
    """A text with its accents as most systems write them (Unicode's NFC); macOS may take an é apart."""
    return unicodedata.normalize("NFC", text)


def both_forms(name: str) -> list[str]:
    """A name as it is, and with its accents put together and taken apart."""
    return [name] if name.isascii() else [name, composed(name), unicodedata.normalize("NFD", name)]


def readings(cell: str) -> list[str]:
    """The names that a line or a cell of a table may mean, the likeliest first.

    As quoted() wrote it; as it is; without the spaces around it; from a list of raw bytes that was taken for cp1252;
    without the quotes, which a table that was made by adding `,label` to quoted lines has lost; and each of these in
    both_forms.
    """
    plain = unquoted(cell.strip())
    ways = [unquoted(cell), cell, cell.strip(), plain]
    with contextlib.suppress(UnicodeEncodeError):
        ways.append(plain.encode("cp1252", "surrogateescape").decode("utf-8", "surrogateescape"))
    if "\\" in plain:
        ways.append(unquoted(f'"{plain}"'))
    return list(dict.fromkeys([*ways, *(form for way in ways for form in both_forms(way))]))


def meant(cell: str, known: Callable[[str], bool] | None = None) -> str:
    """The first of the readings of a line or cell that is known, else the cell without spaces around it."""
    ways = readings(cell)
    if known is None or len(ways) == 1:
        return unquoted(cell.strip())
    return next((way for way in ways if known(way)), unquoted(cell.strip()))
