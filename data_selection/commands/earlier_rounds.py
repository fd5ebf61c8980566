"""What choose_images takes over from rounds before it: labels, features, and by which method the next one is chosen."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data_selection.annotation.run_folder import (
    ANSWERS,
    SUBSET,
    UNDERSTOOD,
    check_names,
    contents,
    is_run,
    label_files,
    read_run,
    rounds_of,
)
from data_selection.commands.run_extract import source_of
from data_selection.common.errors import UserError, meant
from data_selection.common.feature_table import sidecar
from data_selection.common.files import read_json
from data_selection.images.answers import read_answers
from data_selection.images.following import follow, told
from data_selection.images.label_files import some
from data_selection.images.pools import Pool
from data_selection.methods.table import LABEL_FREE, METHODS

MODEL = "vit_small"
AUTO, WITHOUT = "auto", "label-free"
STRATEGIES = (AUTO, WITHOUT, *(name for name, method in METHODS.items() if method.rounds))


@dataclass(frozen=True)
class Known:
    """What earlier rounds say. labels: {name: class}; waiting: names of images that were handed out and have none.

    rounds: as run_folder.rounds_of gives them; check: names as run_folder.check_names.
    """

    labels: dict[str, str]
    waiting: list[str]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    check: list[str] = field(default_factory=list)


def method_of(known: Known, budget: int, method: str, strategy: str) -> tuple[str, str]:
    """(method, why) of a choice: by a model of the labels where there are some of two classes, unless not asked for.

    method: for a choice without a model, AUTO where the pool is to decide; strategy: one of STRATEGIES. Raises
    UserError where a model is asked for by name and there are no labels for it.
    """
    from data_selection.judging.rounds import advise_rounds

    for flag, word, known_words in (("--method", method, (AUTO, *LABEL_FREE)), ("--strategy", strategy, STRATEGIES)):
        if word not in known_words:
            raise UserError(f"{flag} {word!r} is none of {', '.join(known_words)}{meant(word, known_words)}")
    classes = sorted(set(known.labels.values()))
    if len(classes) < 2:
        if strategy not in (AUTO, WITHOUT):
            raise UserError(f"--strategy {strategy} asks a model of labels of two classes: give them with --labelled")
        return method, ""
    if strategy == WITHOUT:
        return method, ""
    if strategy != AUTO:
        return strategy, "asked for"
    return advise_rounds(torch.tensor([classes.index(word) for word in known.labels.values()]), budget)


def read_labelled(sources: Sequence[Path | str], pool: Pool, classes: Sequence[str] = ()) -> Known:
    """The labels of earlier rounds, what was understood told. Raises UserError with all that is wrong in them.

    The images of run folders are followed by their content, those of other sources by name. classes: words that are
    known to be classes, besides those that the run folders know.
    """
    runs = [Path(source) for source in sources if is_run(Path(source))]
    if not sources:
        return Known({}, [])
    noted = {name: value for run in runs for name, value in contents(run).items()}
    here = set(pool.names or ())
    names = [*(pool.names or ()), *(name for name in noted if name not in here)]
    files = [file for source in map(Path, sources) for file in tables_of(source, names)]
    known = [*classes, *(word for run in runs for word in read_run(run).get("classes") or ())]
    answers = read_answers(files, names, (), list(dict.fromkeys(known)))
    for line in answers.understood:
        print(line)
    if answers.faults:
        raise UserError("the labels cannot be used: " + "; ".join(answers.faults))
    handed = [name for run in runs for name in read_json(sidecar(run / SUBSET, "provenance"))["images"]["name"]]
    check = [name for run in runs for name in check_names(run)]
    moved, lost = follow({name: noted[name] for name in (*answers.labels, *handed, *check) if name in noted}, pool)
    if gone := [name for name in answers.labels if name in lost]:
        raise UserError(
            f"the labels cannot be used: {len(gone)} of the {len(answers.labels)} labelled images are gone, or have "
            f"another content than when they were labelled: {some(gone)}; give them back, or take their rows out of "
            f"{' and '.join(map(str, files))}"
        )
    if moved:
        print(f"{len(moved)} images of earlier rounds are found by their content: {told(moved, [])}")
    labels = {moved.get(name, name): label for name, label in answers.labels.items()}
    if len(labels) < len(answers.labels):
        raise UserError(f"the labels cannot be used: two names are one image today ({told(moved, [])}): keep one row")
    handed, check = ([moved.get(name, name) for name in each] for each in (handed, check))
    waiting = [name for name in dict.fromkeys(handed) if name in here and name not in labels]
    rest = f"; {len(waiting)} that were handed out have none, and are not chosen again" if waiting else ""
    print(f"{len(labels)} images have labels of {len(set(labels.values()))} classes{rest}")
    return Known(labels, waiting, rounds_of(runs), list(dict.fromkeys(check)))


def tables_of(source: Path, names: Sequence[str]) -> list[Path]:
    """The label tables of a run folder, or the file or folder itself. Raises UserError where that holds no label.

    Where nothing is in a run's annotate.csv, what training was given is its table: labels.csv.
    """
    if not is_run(source):
        if not read_answers([source], names).labels:
            raise UserError(
                f"--labelled {source} holds no label: give the folder of an earlier round, a table of file,label, an "
                "annotation tool's export, or a folder of class folders"
            )
        return [source]
    files, own, trained = label_files(source), source / ANSWERS, source / UNDERSTOOD
    if trained.exists() and not (own in files and read_answers([own], names).labels):
        files = [*(file for file in files if file != own), trained]
    return files


def digest(known: Known) -> str:
    text = json.dumps([sorted(known.labels.items()), sorted(known.waiting)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def backbone_of(model: str | None, weights: str, labelled: Sequence[Path | str]) -> tuple[str, str]:
    """(model, weights) that embed a pool: those asked for, else those of the newest earlier round, else MODEL."""
    runs = [Path(source) for source in labelled if is_run(Path(source))]
    if model is not None or not runs:
        return model or MODEL, weights
    record = read_run(runs[-1])
    model, own = record["request"]["model"], weights or record.get("weights") or ""
    print(f"the backbone is that of {runs[-1]}: {model}{f', {own}' if own else ''} (--model names another)")
    return model, own


def borrow(args: argparse.Namespace, labelled: Sequence[Path | str]) -> None:
    """Begin with the features of an earlier round of the same images: what it has embedded is not embedded again."""
    if any(args.output_dir.glob("*.npy")) or any(args.output_dir.glob("*.partial")):
        return
    for run in map(Path, labelled):
        if not is_run(run) or read_run(run)["source"] != source_of(args.dataset, None):
            continue
        features = run / read_run(run)["features"]
        if not features.exists():
            continue
        for file in sorted(features.parent.glob(f"{features.stem}.*"), key=lambda file: file.suffix == ".npy"):
            if file.is_file():
                target = args.output_dir / file.name
                try:
                    target.hardlink_to(file)  # files of features are replaced, never changed
                except OSError:
                    shutil.copyfile(file, target)
        return
