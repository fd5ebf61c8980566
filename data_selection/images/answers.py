"""Labels as they come back from annotation: tables of any spreadsheet, Label Studio's and CVAT's exports, folders."""

import csv
import difflib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.listed_names import as_cell, composed, is_text, quoted, unquoted
from data_selection.images.answer_files import read_source
from data_selection.images.claims import Claims, Source
from data_selection.images.label_files import some
from data_selection.images.list_files import NO_LABEL
from data_selection.images.name_finder import Finder
from data_selection.images.words_alike import QUOTES, alike, seen

CLOSE = 0.8  # difflib's measure from which two words may be one misspelt
CLOSE_TO_KNOWN = 0.6  # where one of them is known to be a class: short words have few letters to agree in
MISSING = (  # what people, spreadsheets and other programs write for no label, and what a broken formula leaves
    "n/a", "#n/a", "na", "<na>", "nan", "null", "none", "?", "-", "--", *NO_LABEL,
    "no label", "no_label", "no-label", "unlabeled", "unlabelled",
    "#name?", "#ref!", "#value!", "#div/0!", "#num!", "#null!",
)  # fmt: skip
DOUBTS = (  # what annotators write where they give no label, casefolded; the page leaves such a cell empty
    "unsure", "not sure", "uncertain", "unclear", "unknown", "undecided", "dont know", "do not know", "idk",
    "cant tell", "cannot tell", "skip", "skipped", "ignore", "ignored", "todo", "to do", "tbd", "unklar", "unsicher",
    "unbekannt", "weiss nicht",
)  # fmt: skip
RARE = 2  # images: a word that more of them have is no slip


@dataclass
class Answers:
    """What label files say of images.

    labels: name as the pool has it -> label; images without one are not there. understood: what was read, a line a
    file. faults: what is to be mended, a sentence each. unlabelled: of the images asked for, those without a label.
    said: name -> file that its label is from; apart: names with two labels, of which one is in labels.
    """

    labels: dict[str, str] = field(default_factory=dict)
    understood: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    said: dict[str, Path] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)


def read_answers(
    sources: Iterable[Path | str | Source],
    names: Sequence[str],
    asked: Sequence[str] = (),
    classes: Sequence[str] = (),
    *,
    partial: bool = False,
    flag: str = "--partial",
) -> Answers:
    """The labels of a pool's images in files or folders that people and annotation tools have written.

    sources: .csv, .tsv or .txt tables (any separator, encoding, order and number of columns, header or not), Label
    Studio's JSON, JSON-MIN or CSV, CVAT's XML, folders of class folders, or a .zip of any one of these; a Source says
    how one stands to the others. names: of the pool's images; a source may have them absolute, from another root,
    percent-encoded or without folders. asked: names of the images sent out, which win where a bare file name fits
    several. classes: words that are known to be classes; others are, too, unless they look like one of them misspelt.
    partial: rows of no image are left out, and no fault; flag: of the command that asks for that, for a message.
    Raises UserError for a file that cannot be read as any of these, or with a label that is no text.
    """
    result, claims = Answers(), Claims()
    finder = Finder(names, asked)
    for source in (one if isinstance(one, Source) else Source(Path(one)) for one in sources):
        if source.rows is not None:
            claims.add(source.rows, source, finder)
            continue
        finder.places = source.places
        found, how = read_source(source.path, finder, classes)
        if bytes_in := next((pair for pair in found if not is_text(unquoted(pair[1]))), None):
            raise UserError(
                f"label file {source.path}: the label {quoted(bytes_in[1])} of {quoted(bytes_in[0])} is no text in "
                "UTF-8, UTF-16 or Windows' cp1252: save the table as CSV UTF-8, or give the class folder another name"
            )
        claims.add(found, source, finder)
        result.understood.append(how)
    claims.settle(result, flag, partial=partial)
    check_words(result, classes)
    result.unlabelled = [name for name in asked if name not in result.labels]
    return result


def check_words(result: Answers, classes: Sequence[str]) -> None:
    """Put words that look misspelt, or are alone, among the faults; tell those that nobody has announced."""
    counts = Counter(result.labels.values())
    known = set(classes)
    new = sorted(counts.keys() - known)
    for word in [word for word in new if is_missing(word)]:
        result.faults.append(
            f"{word!r} ({counts[word]} images) says that there is no label: leave these cells empty, or, if it is a "
            "class, name all of them with --classes of choose_images.py"
        )
    looks: defaultdict[object, list[str]] = defaultdict(list)
    for word in (*sorted(known), *new):
        looks[alike(word)].append(word)
    for word in [word for word in new if not is_missing(word)]:
        close = other_word(word, counts, known, looks[alike(word)])
        if close in known:
            result.faults.append(
                f"{word!r} ({counts[word]} images) is not among the classes {some(list(classes))}: did you mean "
                f"{close!r}? If it is a class, choose_images.py again with all of --classes makes it known"
            )
        elif close is not None:
            result.faults.append(
                f"{word!r} ({counts[word]} images) stands beside {close!r} ({counts[close]}): did you mean {close!r}? "
                "If both are classes, name all with --classes of choose_images.py"
            )
    if known and new:
        told = some([f"{word!r} ({counts[word]} images)" for word in new])
        result.understood.append(f"classes that are not among {some(list(classes))}: {told}")


def one_class(answers: Answers) -> list[str]:
    """A sentence where all labels are of one class, which nothing can be trained on; else none."""
    words = set(answers.labels.values())
    return [f"all {len(answers.labels)} labels are {words.pop()!r}: two classes are needed"] if len(words) == 1 else []


def other_word(word: str, counts: Counter[str], known: set[str], looks: Sequence[str]) -> str | None:
    """The word, known or of more images, that `word` may be meant for; of as many where the two are alike.

    looks: the words that are alike, with itself, known ones first.
    """
    twins = [other for other in looks if other in known or (counts[other], other) > (counts[word], word)]
    if twins or counts[word] > RARE:
        return twins[0] if twins else None
    more = sorted(other for other in counts.keys() - known if counts[other] > counts[word])
    return next(iter(closest(word, [*known, *more], known)), None)


def is_missing(word: str) -> bool:
    """Whether a word is one of MISSING or DOUBTS, or question marks; what people see alike or as a stop left aside."""
    shown = seen(word).casefold()
    if not shown.strip("? ") or shown in MISSING or shown.rstrip(".") in MISSING:
        return True
    return " ".join(re.sub(f"[{QUOTES}]", "", re.sub("[-_]", " ", shown)).rstrip(".!? ").split()) in DOUBTS


def closest(word: str, others: Sequence[str], known: set[str]) -> list[str]:
    """The word among others that `word` may be a slip of, in a list, or none."""
    return difflib.get_close_matches(word, sorted(known), 1, CLOSE_TO_KNOWN) or difflib.get_close_matches(
        word, others, 1, CLOSE
    )


def alone(answers: Answers) -> list[str]:
    """The classes that have one image, which cross-validation can say nothing about."""
    return sorted(word for word, count in Counter(answers.labels.values()).items() if count == 1)


def can_be_judged(answers: Answers) -> bool:
    """Whether any class has a second image, which a model that has learned from the first can be asked for."""
    return len(alone(answers)) < len(set(answers.labels.values()))


def write_labels(labels: dict[str, str]) -> str:
    """A table of file,label."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "label"])
    rows.writerows((as_cell(name), label and as_cell(label)) for name, label in sorted(labels.items()))
    return text.getvalue()


def written_labels(path: Path) -> dict[str, str]:
    """The labels of a table as write_labels leaves it; of one that somebody has written otherwise what fits.

    Raises UserError where it is none at all.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as handle:
            rows = [row for row in csv.reader(handle) if len(row) == 2]
    except csv.Error as error:
        raise UserError(f"{path} is no table of file,label ({error}): look for a quote that nothing closes") from None
    return {unquoted(name): composed(unquoted(label)) for name, label in rows[1:] if label}
