"""What people see of a word, and which words look the same to them."""

import contextlib
import re
import unicodedata
from decimal import Decimal, InvalidOperation

QUOTES = "\"'`\u00ab\u00bb\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a"  # straight and curly
WRAPPED = re.compile(f"=?[{QUOTES}](.+)[{QUOTES}]")  # ="007" is how a spreadsheet is made to keep a text


def seen(word: str) -> str:
    """What people see of a word: full-width letters as plain ones, no marks without a width, no spaces around it."""
    return "".join(mark for mark in unicodedata.normalize("NFKC", word) if unicodedata.category(mark) != "Cf").strip()


def alike(word: str) -> object:
    """What words that look the same to people have in common.

    Left aside are capitals, spaces, dashes and underlines, marks that nobody sees, quotes around the word (a
    spreadsheet's ="007" and '007, too) and a stop at its end. 007, 7 and 7.0 are one number.
    """
    shown = seen(word)
    bare = shown.rstrip(".,;:").strip()
    inside = WRAPPED.fullmatch(bare)
    bare = (inside[1].strip().rstrip(".,;:") if inside else bare.removeprefix("'")).strip()
    if "_" not in bare:  # Python takes 1_0 for 10
        with contextlib.suppress(InvalidOperation):
            if (number := Decimal(bare)).is_finite():
                return number
    return tuple(re.sub("[-_]", " ", bare.casefold()).split()) or shown  # signs alone may be classes
