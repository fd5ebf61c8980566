"""What choose_images takes over from rounds before it: labels, features, and by which method the next one is chosen."""

import argparse
import contextlib
import functools
import glob
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data_selection.annotation.originals import made_places
from data_selection.annotation.round_labels import sources_in_turn
from data_selection.annotation.run_folder import (
    WAITING,
    check_names,
    chosen_names,
    contents,
    is_run,
    read_run,
    request_of,
    rounds_of,
)
from data_selection.commands.run_extract import moved, name_parts, source_of
from data_selection.common.errors import UserError, meant
from data_selection.common.files import atomic_write
from data_selection.common.listed_names import quoted
from data_selection.images.answers import read_answers
from data_selection.images.claims import Source, copies_apart
from data_selection.images.following import follow, told
from data_selection.images.pools import Pool, open_pool
from data_selection.images.record import PoolRecord, file_hash, record_pool
from data_selection.methods.table import LABEL_FREE, METHODS

MODEL = "vit_small"
AUTO, WITHOUT = "auto", "label-free"
STRATEGIES = (AUTO, WITHOUT, *(name for name, method in METHODS.items() if method.rounds))


@dataclass(frozen=True)
class Known:
    """What earlier rounds say. labels: {name: class}; waiting: names of images that were handed out and have none.

    rounds: as run_folder.rounds_of gives them; check: names as run_folder.check_names; classes: the names that are
    given, with those that earlier rounds know and have labels of, or with none given all that these know. runs: the
    folders of these rounds.
    """

    labels: dict[str, str]
    waiting: list[str]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    check: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)


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


def read_labelled(
    sources: Sequence[Path | str], pool: Pool, classes: Sequence[str] = (), *, partial: bool = False
) -> Known:
    """The labels of earlier rounds, what was understood told. Raises UserError with all that is wrong in them.

    partial: labelled images that are gone, and rows of no image, are no fault, and told.

    The images of run folders are followed by their content, those of other sources by name, by one that a run folder
    knew where the pool has it no longer. classes: words that are known to be classes, besides those that the run
    folders know.
    """
    runs = [Path(source) for source in sources if is_run(Path(source))]
    if not sources:
        return Known({}, [], classes=list(classes))
    past = {run: contents(run) for run in runs}
    here = set(pool.names or ())
    names = [*(pool.names or ()), *dict.fromkeys(name for run in runs for name in past[run] if name not in here)]
    handed = handed_as(runs)
    of_runs = sources_in_turn(runs, names)
    others = [table_of(Path(source), names, handed) for source in sources if Path(source) not in of_runs]
    tables = [*(one for run in runs for one in of_runs[run]), *others]
    read = functools.cache(lambda: record_pool(pool))  # all of its files, once for all rounds
    today = {run: names_today(run, past[run], of_runs[run], names, pool, read) for run in runs}
    former = {name: value for run in runs for name, value in past[run].items() if name not in here}
    told_of = [name for name in read_answers(others, names).labels if name in former] if former else []
    elsewhere, missing = follow({name: former[name] for name in told_of}, pool, read)
    if gone := list(dict.fromkeys([*(name for one in today.values() for name in one.gone), *missing])):
        labelled = {*told_of, *(name for one in today.values() for name in one.labelled)}
        leave_out(gone, len(labelled), tables, partial=partial)
    before = [word for run in runs for word in read_run(run).get("classes") or ()]
    for run in runs:
        for source in of_runs[run]:
            source.renamed = today[run].moved | dict.fromkeys(today[run].gone)
    for source in others:
        source.renamed = elsewhere | dict.fromkeys(missing)
    answers = read_answers(tables, names, (), list(dict.fromkeys([*classes, *before])), partial=partial)
    for line in answers.understood:
        print(line)
    moved = {name: new for one in today.values() for name, new in one.moved.items()} | elsewhere
    if faults := [*answers.faults, *copies_apart(answers, hashes_of(answers.labels, pool))]:
        why = f" ({told(moved, [])})" if moved else ""
        raise UserError(f"the labels cannot be used: {'; '.join(faults)}{why}")
    if moved:
        print(f"{len(moved)} images of earlier rounds are found by their content: {told(moved, [])}")
    labels = answers.labels
    sent = [name for one in today.values() for name in one.handed]
    check = [name for one in today.values() for name in one.check]
    waiting = [name for name in dict.fromkeys(sent) if name in here and name not in labels]
    rest = f"; {len(waiting)} that were handed out have none, and are not chosen again" if waiting else ""
    print(f"{len(labels)} images have labels of {len(set(labels.values()))} classes{rest}")
    used = set(labels.values())
    announced = dict.fromkeys([*classes, *(word for word in before if not classes or word in used)])
    return Known(labels, waiting, rounds_of(runs), list(dict.fromkeys(check)), list(announced), runs)


def leave_out(gone: Sequence[str], count: int, tables: Sequence[Source], *, partial: bool) -> None:
    """Name all labelled images that are gone, of `count`. Raises UserError unless partial, and where none is left."""
    told_of = (
        f"{len(gone)} of the {count} labelled images are gone, or have another content than when they were labelled: "
        f"{', '.join(map(quoted, gone))}"
    )
    if not partial or len(gone) == count:
        places = " and ".join(dict.fromkeys(str(one.path) for one in tables))
        raise UserError(
            f"the labels cannot be used: {told_of}; give them back; --partial goes on without them, and leaves their "
            f"rows in {places}"
        )
    print(f"warning: left out, {told_of}")


def hashes_of(names: Iterable[str], pool: Pool) -> dict[str, str]:
    """{name: content hash} of images of a pool, as far as two can be equal: those of one size alone are read."""
    here = dict(zip(pool.names or (), pool.paths, strict=True))
    sized: defaultdict[int, list[str]] = defaultdict(list)
    for name in names:
        with contextlib.suppress(OSError):  # gone meanwhile
            if name in here:
                sized[Path(here[name]).stat().st_size].append(name)
    return {name: file_hash(here[name]) for alike in sized.values() if len(alike) > 1 for name in alike}


@dataclass(frozen=True)
class Today:
    """The images of an earlier round as they are called now.

    moved: {its name: today's} of renamed ones; labelled, gone: its names of those with a label, and of these the ones
    that are no more; handed, check: today's names of those that were handed out, in it or before it, and are there,
    and of those that it judges by.
    """

    moved: dict[str, str]
    labelled: list[str]
    gone: list[str]
    handed: list[str]
    check: list[str]


def names_today(
    run: Path, past: Mapping[str, str], tables: Sequence[Source], names: Sequence[str], pool: Pool,
    read: Callable[[], PoolRecord],
) -> Today:  # fmt: skip
    """Follow the images of a run folder by its own record, as another round may have had another image by that name.

    past: {name: content hash} as the run knew them; tables: its labels; names: as for read_answers. read: as for
    follow.
    """
    labelled = list(read_answers(tables, names).labels)
    handed = list(dict.fromkeys([*chosen_names(run), *(read_run(run).get(WAITING) or ())]))
    check = check_names(run)
    moved, gone = follow({name: past[name] for name in (*labelled, *handed, *check) if name in past}, pool, read)
    lost = set(gone)
    return Today(
        moved,
        labelled,
        sorted(lost.intersection(labelled)),
        [moved.get(name, name) for name in handed if name not in lost],
        [moved.get(name, name) for name in check if name not in lost],
    )


def handed_as(runs: Sequence[Path]) -> dict[str, str]:
    """{made-up place: name} of the images that runs have handed out so; none that says two things."""
    found: dict[str, str] = {}
    twice = set()
    for run in runs:
        own = made_places(chosen_names(run))
        twice |= {place for place, name in own.items() if found.get(place, name) != name}
        found |= own
    return {place: name for place, name in found.items() if place not in twice}


def table_of(source: Path, names: Sequence[str], handed: Mapping[str, str]) -> Source:
    """The Source of a file or folder that is no run's. Raises UserError where it holds no label.

    names: as for read_answers; handed: as handed_as gives it.
    """
    table = Source(source, places=handed)
    if not read_answers([table], names).labels:
        raise UserError(
            f"--labelled {source} holds no label: give the folder of an earlier round, a table of file,label, an "
            "annotation tool's export, or a folder of class folders"
        )
    return table


def backbone_of(model: str | None, weights: str, labelled: Sequence[Path | str]) -> tuple[str, str]:
    """(model, weights) that embed a pool: those asked for, else those of the newest earlier round, else MODEL."""
    runs = [Path(source) for source in labelled if is_run(Path(source))]
    if model is not None or not runs:
        return model or MODEL, weights
    model, own = request_of(runs[-1]).get("model"), weights or read_run(runs[-1]).get("weights") or ""
    if not model:
        raise UserError(f"{runs[-1]} does not say which backbone embedded its images: name it with --model")
    print(f"the backbone is that of {runs[-1]}: {model}{f', {own}' if own else ''} (--model names another)")
    return model, own


def borrow(args: argparse.Namespace, labelled: Sequence[Path | str]) -> None:
    """Begin with the features of an earlier round of the same images: what it has embedded is not embedded again.

    They are the same by their place, or by name and content where their folder has moved.
    """
    if any(args.output_dir.glob("*.npy")) or any(args.output_dir.glob("*.partial")):
        return
    for run in map(Path, labelled):
        features = run / read_run(run)["features"] if is_run(run) else None
        if features is None or not features.exists():
            continue
        stem = features.stem
        if read_run(run)["source"] != source_of(args.dataset, None):
            if not moved(features, open_pool(args.dataset)):
                continue
            stem = args.extra_name.join(name_parts(args.dataset, args.split))
        beside = features.parent.glob(f"{glob.escape(features.stem)}.*")
        for file in sorted(beside, key=lambda file: file.suffix == ".npy"):
            if file.is_file():
                target = args.output_dir / f"{stem}{file.name.removeprefix(features.stem)}"
                target.unlink(missing_ok=True)  # of a start that was killed
                try:
                    target.hardlink_to(file)  # files of features are replaced, never changed
                except OSError:
                    with file.open("rb") as source, atomic_write(target) as handle:
                        shutil.copyfileobj(source, handle)
        return
