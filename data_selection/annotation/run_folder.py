"""The folder that choosing images leaves: what is where in it, and what was asked for."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.files import atomic_write, read_json
from data_selection.common.kinds import Log
from data_selection.common.listed_names import composed, is_text, quoted, unquoted
from data_selection.common.subset_files import CHECK
from data_selection.images.answer_files import LABEL
from data_selection.images.answers import written_labels
from data_selection.images.claims import SHOWN
from data_selection.images.label_files import some
from data_selection.images.list_files import SEPARATORS, TABLES, decoded, guessed
from data_selection.images.record import load_record

VERSION = 1
RECORD, SUBSET, ANSWERS, LABELLED = "run.json", "subset.json", "annotate.csv", "labelled.csv"
UNDERSTOOD = "labels.csv"  # all labels, as training has understood them
BELIEFS, PAGE, FEATURES, IMAGES = "beliefs.json", "annotate.html", "features", "images"
TASKS, CONFIG, MANIFEST = "label_studio_tasks.json", "label_studio_config.xml", "cvat_manifest.jsonl"
REPORT, WAITING = "report.json", "waiting"
WEIGHTS = "weights_sha256"  # of a request, where the weights are a file
PERCENT = "percent"  # of a request, the budget as it was given, where that is no number of images
ENDINGS = (".txt", *TABLES)  # of a file of class names
HEADER = (*LABEL, "classes", "class name", "labels")  # of a table of them
TRAINED = (UNDERSTOOD, "model.pth", "smoothed_pool.npz", "report.html", REPORT, "predictions.csv", "training")
OWN = (RECORD, SUBSET, ANSWERS, LABELLED, BELIEFS, PAGE, IMAGES, TASKS, CONFIG, MANIFEST, *TRAINED)


def read_run(folder: Path | str) -> dict[str, Any]:
    """The record of a run folder: `version`, `source`, `features` (below the folder), `request`, `versions`, `command`.

    And `weights`, the file or address as it was given, `rounds`: see rounds_of, `check`: check_names of earlier
    rounds, `waiting`: names of images that these have handed out and that had no label, and `classes`: see
    know_classes. Raises UserError where the folder is none.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        raise UserError(f"{folder} is no folder of scripts/choose_images.py: it has no {RECORD}")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("version") != VERSION or not {"source", "features"} <= set(record):
        raise UserError(f"{path} is no record of version {VERSION}: choose again, into another folder")
    return record


def request_of(folder: Path | str) -> dict[str, Any]:
    """What a run folder was asked for. Raises UserError where its record does not say so."""
    request = read_run(folder).get("request")
    if not isinstance(request, dict):
        raise UserError(f"{Path(folder) / RECORD} does not say what was asked for: choose again, into another --out")
    return dict(request)


def class_words(classes: Sequence[str] | str, log: Log = print) -> list[str]:
    """Class names from a list, from words apart by comma, or from a file of one a line, a guess at it told."""
    if isinstance(classes, str):
        path = Path(classes)
        try:
            is_file = os.path.isfile(classes)  # noqa: PTH113 - words may be too many for a path
            if is_file:
                text = decoded(path.read_bytes())
                classes = one_column(path, text) if path.suffix.lower() in TABLES else text.splitlines()
            else:
                classes = apart_by_comma(classes)
            if is_file and (told := guessed(path, classes)):
                log(told)
        except UnicodeDecodeError as error:
            raise UserError(f"--classes {path} is no text ({error}): one class name a line is needed") from None
        if list(classes) == [str(path)] and (path.suffix.lower() in ENDINGS or len(path.parts) > 1):
            raise UserError(f"--classes {path} does not exist: give a text file of one class name a line, or a,b,c")
    if strange := next((word for word in classes if not is_text(word)), None):
        raise UserError(
            f"--classes: {quoted(strange)} is no text in UTF-8, UTF-16 or Windows' cp1252: save the list as UTF-8"
        )
    return list(dict.fromkeys(composed(word.strip()) for word in classes if word.strip()))


def one_column(path: Path, text: str) -> list[str]:
    """The words of a table of one column, without its header. Raises UserError where it has more."""
    for separator in [mark for mark in SEPARATORS if mark in text] or SEPARATORS[:1]:
        with contextlib.suppress(csv.Error):
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            words = [[cell for cell in row if cell.strip()] for row in rows]
            if all(len(row) < 2 for row in words):
                found = [unquoted(cell.strip()) for row in words for cell in row]  # as tables of labels have them
                return found[1:] if found and found[0].lower() in HEADER else found
    raise UserError(f"--classes {path} is no table of one column: give a text file of one class name a line, or a,b,c")


def apart_by_comma(text: str) -> list[str]:
    """Words apart by comma; a word with a comma in it stands in double quotes, as in a table."""
    if '"' not in text:
        return text.split(",")
    try:
        return [word for row in csv.reader(io.StringIO(text), skipinitialspace=True, strict=True) for word in row]
    except csv.Error as error:
        raise UserError(
            f'--classes {text}: the quotes do not fit ({error}): write "a,b",c for a name with a comma, or give a text '
            "file of one class name a line"
        ) from None


def know_classes(folder: Path, classes: list[str]) -> list[str]:
    """The class names of a run folder's record, which are `classes` from now on where there are some."""
    known = list(read_run(folder).get("classes") or ())
    if not classes:
        return known
    note(folder, "classes", classes)
    return classes


def note(folder: Path, key: str, value: object) -> None:
    """Put a value into a run folder's record, which stays as it is where it holds that already."""
    record = read_run(folder)
    if record.get(key) != value:
        with atomic_write(folder / RECORD, "w") as handle:
            json.dump(record | {key: value}, handle, indent=1)


def is_run(path: Path) -> bool:
    return (path / RECORD).is_file()


def is_chosen(folder: Path, request: Mapping[str, object], labels: Mapping[str, str] | None = None) -> bool:
    """Whether a folder holds the choice that is asked for already.

    A budget in percent is the same one however many images have come since. labels: those that the choice is asked
    for with, to say which are others. Raises UserError where it holds another one, or somebody's own files of these
    names: neither is replaced.
    """
    if not is_run(folder):
        strange = [name for name in OWN if (folder / name).exists() or (folder / name).is_symlink()]
        if strange:
            raise UserError(f"{folder} holds {strange[0]}, which is not from this command: choose another --out")
        return False
    before, asked = request_of(folder), dict(request)
    if not (folder / SUBSET).exists():
        return False
    if (percent := before.pop(PERCENT, None)) and percent == asked.get(PERCENT):
        asked["budget"] = before["budget"]
    asked.pop(PERCENT, None)
    keys = [key for key in before | asked if before.get(key) != asked.get(key)]
    if not (before.get(WEIGHTS) and request.get(WEIGHTS)):  # of an earlier version, or their file is gone: by its name
        keys = [key for key in keys if key != WEIGHTS]
    if keys:
        apart = labels_apart(folder, labels or {}) if "labelled" in keys else ""
        words = [f"{key} was {asked_for(before, key)}, now {asked_for(request, key)}" for key in keys]
        told = "; ".join(apart if apart and key == "labelled" else one for key, one in zip(keys, words, strict=True))
        raise UserError(f"{folder} holds a choice that was asked for otherwise ({told}): choose another --out")
    return True


def labels_apart(folder: Path, labels: Mapping[str, str]) -> str:
    """Which labels of earlier rounds are others than in a run's copy of them, in words; "" where none is."""
    path = folder / LABELLED
    before = written_labels(path) if path.exists() else {}
    pairs = {name: (before.get(name, "none"), labels.get(name, "none")) for name in dict.fromkeys([*before, *labels])}
    words = [f"{name} ({old} -> {new})" for name, (old, new) in sorted(pairs.items()) if old != new]
    corrected = any(old != new and name in before and name in labels for name, (old, new) in pairs.items())
    hint = f"; training on {folder} takes corrected ones without a new choice" if corrected else ""
    return f"labels were others: {some(words, SHOWN)}{hint}" if words else ""


def asked_for(request: Mapping[str, object], key: str) -> object:
    """A value of a request for a message."""
    return "not given" if request.get(key) in (None, "") else request[key]


def list_record(folder: Path) -> dict[str, Any]:
    """The record beside a run's subset file. Raises UserError where it is none."""
    beside = sidecar(folder / SUBSET, "provenance")
    record = read_json(beside)
    if not isinstance(record, dict):
        raise UserError(f"{beside} is no record of a list: choose again, into another --out")
    return record


def chosen_names(folder: Path) -> list[str]:
    """The names of the chosen images, in the order of the subset file."""
    images = list_record(folder).get("images")
    names = images.get("name") if isinstance(images, dict) else None
    if not names or not isinstance(names, list):
        beside = sidecar(folder / SUBSET, "provenance")
        raise UserError(f"{beside} does not name the chosen images: choose again, into another --out")
    return names


def check_names(folder: Path) -> list[str]:
    """The names of the images of a run and the rounds before it that were drawn at random, to judge by."""
    own = list_record(folder).get(CHECK) or []
    return list(dict.fromkeys([*(read_run(folder).get(CHECK) or []), *own]))


def contents(folder: Path) -> dict[str, str]:
    """{name: content hash} of the images that a run chose from, as they were then; {} where nobody has noted it."""
    path = folder / read_run(folder)["features"]
    record = load_record(path, len(load_features(path))) if path.exists() else None
    return {} if record is None or record.names is None else dict(zip(record.names, record.hashes, strict=True))


def rounds_of(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """{labels, accuracy, low, high, drawn, list} of the rounds that trained run folders tell of, by number of labels.

    drawn: images drawn at random that it is judged by, 0 for all labels; list: hash of its list's record, by which a
    round is known. What its own report says counts before what later ones say of it. Raises UserError where a report is
    none.
    """
    reports = [rounds_in(folder / REPORT) for folder in folders if (folder / REPORT).exists()]
    told = [*(one for report in reports for one in report[:-1]), *(one for report in reports for one in report[-1:])]
    found = {one["list"]: one for one in told if one.get("list")}
    counts = {one["labels"] for one in found.values()}  # by these alone reports told rounds apart once
    old = {one["labels"]: one for one in told if not one.get("list") and one["labels"] not in counts}
    return sorted([*found.values(), *old.values()], key=lambda one: one["labels"])


def rounds_in(path: Path) -> list[dict[str, Any]]:
    """The rounds that a report.json tells of, its own the last."""
    report = read_json(path)
    rounds = report.get("rounds") if isinstance(report, dict) else None
    words = ("labels", "accuracy", "low", "high")
    if not isinstance(rounds, list) or not all(
        isinstance(one, dict) and all(isinstance(one.get(word), int | float) for word in words) for one in rounds
    ):
        raise UserError(f"{path} is no report of train_on_labels.py: train there again, or take it away")
    return rounds


def in_place_of_runs(sources: Iterable[Path | str]) -> list[Path | str]:
    """Sources with a run folder's tables and choice in its place: all images that were handed out or have labels."""
    files: list[Path | str] = []
    for source in sources:
        run = Path(source)
        of_run = [*label_files(run), *(file for file in (run / UNDERSTOOD, run / SUBSET) if file.exists())]
        files += of_run if is_run(run) else [source]
    return files


def label_files(folder: Path) -> list[Path]:
    """The tables that hold a run's labels: of the rounds before it, and its own."""
    return [folder / name for name in (LABELLED, ANSWERS) if (folder / name).exists()]
