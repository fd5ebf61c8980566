"""The labels that the lists of --labelled hold, for methods that ask a model of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from data_selection.annotation.round_labels import sources_in_turn
from data_selection.annotation.run_folder import is_run
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable
from data_selection.common.kinds import Log
from data_selection.images.answers import read_answers
from data_selection.images.claims import Source, copies_apart
from data_selection.images.known_lists import holds_tasks
from data_selection.images.record import load_record


class Labels(NamedTuple):
    """ids: rows that have a label, ascending; labels: (n,) int64, their places among `classes`."""

    ids: list[int]
    labels: torch.Tensor
    classes: list[str]


def labels_of(
    sources: Sequence[Path | str], table: FeatureTable, log: Log, classes: Sequence[str] = (), *, skip: bool = False
) -> Labels | None:
    """The Labels in tables, exports of annotation tools and class folders; None where no list holds any.

    A run folder has those of its tables and of the rounds before it. Subset files hold none. classes: words that are
    known to be classes. skip: rows of no image are left out. Raises UserError with all that is wrong with the labels.
    """
    names, files = table.names, [one for one in map(Path, sources) if one.suffix.lower() != ".json" or holds_tasks(one)]
    if not files or names is None:
        return None
    of_runs = sources_in_turn([file for file in files if is_run(file)], names)
    tables = [one for file in files for one in (of_runs[file] if file in of_runs else [Source(file)])]
    answers = read_answers(tables, names, (), classes, partial=skip, flag="--missing skip")
    if not answers.labels:
        return None
    for line in answers.understood:
        log(line)
    record = load_record(table.path, len(table)) if table.path else None
    hashes = dict(zip(names, record.hashes, strict=True)) if record else {}
    if faults := [*answers.faults, *copies_apart(answers, hashes)]:
        raise UserError(f"the labels cannot be used: {'; '.join(faults)}")
    return numbered(answers.labels, table)


def numbered(labels: Mapping[str, str], table: FeatureTable) -> Labels:
    """The Labels of {name: class}, those of images that a table has; classes in sorted order."""
    row = {name: place for place, name in enumerate(table.names or ())}
    files = sorted((name for name in labels if name in row), key=row.__getitem__)
    classes = sorted({labels[file] for file in files})
    places = torch.tensor([classes.index(labels[file]) for file in files])
    return Labels([row[file] for file in files], places, classes)
