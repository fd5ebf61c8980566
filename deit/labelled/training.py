"""train_on_labels: from the labels of a run folder to a model and a report, and predict_images with that model."""

import filecmp
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_selection.annotation.round_labels import note_given
from data_selection.annotation.run_folder import read_run
from data_selection.common.distributed import one_process
from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write, check_own_table, check_writable, one_at_a_time, read_json, sha256
from data_selection.common.kinds import Log
from data_selection.common.listed_names import quoted
from data_selection.common.progress import OpenBar
from data_selection.common.subset_files import pool_provenance
from data_selection.images.answers import can_be_judged, write_labels, written_labels
from data_selection.images.claims import SHOWN
from data_selection.images.label_files import labelled_folder, some
from data_selection.images.list_files import UNKNOWN
from data_selection.images.pools import Pool
from data_selection.images.record import list_digest, record_pool
from deit.labelled.predicted import keep_others, note_images
from deit.labelled.reporting import NOTHING, report
from deit.labelled.runs import LABELS, MODEL, RESULT, Labelled, backbone_flags, open_run, training_folder
from deit.options import parse
from deit.predicting import predict
from deit.runs.predictions import OF_NEW, TITLE, Predictions
from deit.runs.saving import NEWEST
from deit.samples.sources import absent_classes, open_images, say_of_absent, say_of_leaks
from deit.samples.sources import where as image_flags
from deit.smoothing import POOL
from deit.trainer import train

MODE = "auto"  # of the modes the one that cross-validation on the labels says is best
MINUTES = 30.0  # of it, where nothing else is said: the pool as a teacher would take days on a large one
TESTED = "test_images.json"  # beside a training's result: what the model said of test images, and of which
DATA = ("--data-path", "--train-path", "--labels")  # what the trainer takes the labels to train on from
BY_FEATURES = ("linear", "smoothed", "auto")  # modes that use the features of the images, where they are known


@dataclass(frozen=True)
class Trained:
    """What train_on_labels left. accuracy: percent, as the report estimates it; test: on test images, if any."""

    model: Path
    report: Path
    accuracy: float
    test: float | None


def train_on_labels(
    run: Path | str,
    labels: Sequence[Path | str] = (),
    *,
    partial: bool = False,
    test: Path | str | None = None,
    test_labels: Path | str | None = None,
    mode: str = MODE,
    minutes: float | None = None,
    weights: str = "",
    source: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    num_workers: int | None = None,
    log: Log = print,
    progress: OpenBar | None = None,
) -> Trained:
    """Train on the labels of a folder of choose_images, and leave model.pth, report.html and report.json there.

    labels: files as annotators and their tools give them back (by default the folder's annotate.csv). partial: go on
    without the labels that are missing, and without rows of no image. test: a folder of test images, in class folders
    or with test_labels, a CSV; they are asked after training, and decide nothing. mode, minutes, seed, device,
    num_workers: as for deit/main.py, but that `auto` without minutes has MINUTES. weights, source: where the backbone's
    weights and the pool's images are now. The same call again goes on where it was stopped; other test images or
    another device train nothing anew. Raises UserError for what is wrong with the labels, all of it at once, before any
    work.
    """
    one_process("train_on_labels.py", f"; deit/main.py --labels {Path(run) / LABELS} trains with several")
    if test and Path(test).is_file():
        raise UserError(f"--test {test} is a file, and a folder of test images is needed")
    if test_labels and not test:
        raise UserError(f"--test-labels {test_labels} are of the images in --test, which is missing")
    if test:  # what is wrong there is said before work
        labelled_folder(Path(test), test_labels, "--test-labels", "--test")
    minutes = MINUTES if mode == "auto" and minutes is None else minutes
    settings, where = ["--mode", mode, "--seed", str(seed)], ["--device", device]
    settings += ["--minutes", str(minutes)] if minutes is not None else []
    parse(["--data-set", "FOLDER", *settings, *where])  # likewise
    given = open_run(run, labels, source, partial=partial, log=log)
    if not given.whole:
        log(f"{given.source} and the features hold different images: the {len(given.pool)} of both are the pool")
    words = [*backbone_flags(given, weights), *settings]
    images = ["--val-path", str(test)] if test else []
    images += ["--val-labels", str(test_labels)] if test_labels else []
    folder = training_folder(given, words, device, images)
    table, text = given.folder / LABELS, write_labels(given.answers.labels)
    if (
        any(Path(one).exists() and table.exists() and table.samefile(one) for one in labels)
        and table.read_text(encoding="utf-8", errors="replace") != text
    ):
        raise UserError(f"--labels {table} is what training writes, and would be replaced: give it another name")
    own = folder.with_suffix(".csv")  # that another training beside it does not change
    tell_relabelled(table, given.answers.labels, log)
    with one_at_a_time(table, log):  # another training of other labels would part it and its note
        keep_labels(given, table, text)
    with atomic_write(own, "w") as handle:
        handle.write(text)
    data = data_flags(given, own, folder)
    judging = open_test([*data, *images], log) if test else None
    where += ["--num_workers", str(num_workers)] if num_workers is not None else []
    result = trained([*words, *where, *features_flag(given, mode, weights), *data], folder)
    tested = None
    if judging is not None:
        tested = tested_on(judging, [*data, *where, *images], folder, log)
    other = "" if weights and of_the_features(given, weights) else weights
    with one_at_a_time(table, log):  # model and report are of one training
        changed = place(folder, given.folder)
        keep_labels(given, table, text)
        page, values = report(
            given, folder, result, tested=tested, weights=other, seed=seed, log=log, progress=progress
        )
    accuracy, doubt = values["accuracy"], "" if can_be_judged(given.answers) else f", which says nothing: {NOTHING}"
    on_test = f", {tested['accuracy']:.1f} % on {tested['count']} test images" if tested else ""
    log(
        f"accuracy {accuracy['value']:.1f} % ({accuracy['low']:.1f} to {accuracy['high']:.1f}) by cross-validation on "
        f"{judges(values)}{doubt}{on_test}; wrote {MODEL}, {page.name}, "
        f"{page.with_suffix('.json').name} and {LABELS} in {given.folder}"
    )
    predicted, model = given.folder / OF_NEW, given.folder / MODEL
    if predicted.exists() and (changed or predicted.stat().st_mtime_ns < model.stat().st_mtime_ns):
        log(f"{predicted.name} in it is by an earlier model: scripts/predict.py asks this one")
    return Trained(model, page, accuracy["value"], tested["accuracy"] if tested else None)


def keep_labels(given: Labelled, table: Path, text: str) -> None:
    """Write all labels to a run's labels.csv, with the note of those that training alone was given."""
    note_given(given.folder, given.answers.labels, given.given)
    with atomic_write(table, "w") as handle:
        handle.write(text)


def tell_relabelled(table: Path, labels: Mapping[str, str], log: Log) -> None:
    """Say which labels are others than those of the training before, which its labels.csv has."""
    before = written_labels(table) if table.exists() else {}
    others = [f"{name} ({old} -> {labels[name]})" for name, old in before.items() if labels.get(name, old) != old]
    if others:
        log(f"{len(others)} labels are others than those of the training before: {some(others, SHOWN)}")


def judges(values: dict[str, Any]) -> str:
    """By which labels the report's accuracy is, in words."""
    accuracy, drawn = values["accuracy"], values["drawn"]
    if accuracy["drawn"]:
        whole = f"the {accuracy['drawn'] + drawn['unlabelled']} " if drawn["unlabelled"] else ""
        return f"{accuracy['drawn']} labels of {whole}images drawn at random"
    return f"{accuracy['labels']} labels"


def data_flags(given: Labelled, table: Path, folder: Path) -> list[str]:
    """The trainer's flags for the images of the pool, and their labels in a table; their list lies beside folder."""
    pool = given.source
    if not given.whole:  # some of the others may not even be readable
        pool = folder.with_suffix(".txt")
        pool.parent.mkdir(exist_ok=True)
        with atomic_write(pool, "w") as handle:
            handle.write("".join(f"{quoted(name)}\n" for name in given.pool))
    base = given.source if given.source.is_dir() else given.source.parent
    return [word for pair in zip(DATA, map(str, (base, pool, table)), strict=True) for word in pair]


def trained(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run the trainer, or go on with what it left. Returns the values of its result.json."""
    table = words[words.index("--labels") + 1]
    data = ["--data-set", "FOLDERSUBSET", "--subset_ids", table, "--output_dir", str(folder), "--auto-resume"]
    data += ["--val-path", "none"]  # test images are asked afterwards, so that they take no time of --minutes either
    train(parse([*data, *words]))
    done = folder / RESULT
    if not done.exists():
        raise UserError(f"training was stopped: the same command goes on from {folder}")
    result: dict[str, Any] = read_json(done)
    return result


def open_test(words: Sequence[str], log: Log) -> Pool:
    """The test images, their classes numbered as the labels'; with lines on copies and absent classes.

    words: flags of the trainer for both. Raises UserError, before any training, where the two do not fit.
    """
    pool, test = open_images("FOLDER", *image_flags(parse(["--data-set", "FOLDER", *words])))
    say_of_leaks(pool, [i for i in range(len(pool)) if pool.label(i) != UNKNOWN], test, log)
    say_of_absent(test, log)
    return test


def tested_on(pool: Pool, words: Sequence[str], folder: Path, log: Log) -> dict[str, Any]:
    """Accuracy in percent of a training's model on test images as they are today, their count, the classes absent.

    words: flags of the trainer for the images and the device. What was asked before is kept beside the model.
    """
    kept, record = folder / TESTED, record_pool(pool)
    today = list_digest(
        [*record.hashes, *map(str, pool.labels or ()), *(pool.class_names or ()), sha256(folder / NEWEST)]
    )
    before, absent = read_json(kept) if kept.exists() else {}, absent_classes(pool, range(len(pool)))
    if before.get("images") == today:
        return {"accuracy": before["accuracy"], "count": before["count"], "absent": absent}
    log(f"asking the trained model about {len(pool)} test images")
    found = train(parse(["--data-set", "FOLDER", "--eval", "--resume", str(folder / NEWEST), *words]))
    assert found is not None  # of one process
    values = {"accuracy": found["acc1"], "count": len(pool)}
    with atomic_write(kept, "w") as handle:
        json.dump({"images": today, **values}, handle)
    return values | {"absent": absent}


def of_the_features(given: Labelled, weights: str) -> bool:
    """Whether weights are those that made the features of the pool: the same file, wherever it is now."""
    made = (pool_provenance(given.table).get("backbone") or {}).get("weights_sha256")
    return Path(weights).is_file() and sha256(weights) == made


def features_flag(given: Labelled, mode: str, weights: str) -> list[str]:
    """The trainer's flag for the features of the pool, where it has a use for them and they are of this pool."""
    others = bool(weights) and mode != "smoothed" and not of_the_features(given, weights)
    if mode not in BY_FEATURES or others:
        return []
    return ["--features", str(given.table.path)]


def place(training: Path, run: Path) -> bool:
    """Put a trained model into the run's folder, with what it needs beside it, without a second copy if possible.

    Returns whether the model is another one than before.
    """
    model = run / MODEL
    changed = not (model.exists() and filecmp.cmp(model, training / NEWEST, shallow=False))
    for name, target in ((POOL, run / POOL), (NEWEST, run / MODEL)):  # the model last: it is read with the other
        half = target.with_name(f".{target.name}.partial")
        half.unlink(missing_ok=True)
        if not (training / name).exists():
            target.unlink(missing_ok=True)
            continue
        try:
            half.hardlink_to(training / name)  # these files are replaced, never changed
        except OSError:
            shutil.copyfile(training / name, half)
        half.replace(target)
    return changed


def predict_images(
    run: Path | str,
    images: Path | str,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    log: Log = print,
    progress: OpenBar | None = None,
) -> Predictions:
    """Predictions of a trained run folder for the images of a folder or list, written as a CSV (run/predictions.csv).

    A predictions.csv of other images gets another name, unless `out` is given.
    Images that cannot be read are told, and stand in the table without a label. Raises UserError where none can be
    read, the folder has no model yet, or `out` is something else than a CSV of predictions.
    """
    one_process("predict.py")
    folder = Path(run)
    model = folder if folder.is_file() else folder / MODEL
    if not model.is_file():
        if not folder.exists():
            raise UserError(
                f"{folder} does not exist: name a folder of scripts/choose_images.py, or a model.pth of one"
            )
        read_run(folder)  # says so where it is no run
        raise UserError(f"{folder} has no {MODEL} yet: train it with scripts/train_on_labels.py {folder}")
    target = Path(out) if out else (model.parent / OF_NEW)
    if target.suffix.lower() != ".csv":
        raise UserError(f"--out {target} must end in .csv")
    check_own_table(target, TITLE)
    if target.parent.exists():  # one that is made for it is made when there is something to write
        check_writable(target)
    predictions = predict(model, images, device=device, log=log, progress=progress)
    if not out:  # a file that is named is meant
        keep_others(target, predictions, Path(images), log)
        note_images(target, Path(images))  # before they are there: those that a note is not of may be written over
    predictions.write(target)
    rest = f"; {len(predictions.unread)} that cannot be read have no label, and come last" if predictions.unread else ""
    log(f"wrote {target}: {len(predictions.names)} images, of {len(predictions.classes)} classes{rest}")
    return predictions
