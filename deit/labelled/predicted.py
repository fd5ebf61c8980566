"""The predictions in a run's folder: of which images they are, and that none of others are lost for new ones."""

import csv
from pathlib import Path

from data_selection.annotation.run_folder import is_run, note, read_run
from data_selection.common.kinds import Log
from data_selection.common.listed_names import unquoted
from deit.runs.predictions import Predictions

PREDICTED = "predicted"  # of run.json: where the images of predictions.csv are


def keep_others(table: Path, predictions: Predictions, images: Path, log: Log) -> None:
    """Give predictions that are of other images than the new ones another name, and say so.

    Those of the same folder or list are of the same images where each is among the new ones.
    """
    if not table.is_file():
        return
    with table.open(newline="", encoding="utf-8", errors="replace") as handle:
        names = {unquoted(row[0]) for row in list(csv.reader(handle))[1:] if row}
    place = read_run(table.parent).get(PREDICTED) if is_run(table.parent) else None
    if names <= {*predictions.names, *predictions.unread} and place in (None, str(images.absolute())):
        return
    free = next(
        path for number in range(1, len(list(table.parent.iterdir())) + 2)
        if not (path := table.with_name(f"{table.stem}_{number}.csv")).exists()
    )  # fmt: skip
    table.rename(free)
    log(f"the predictions of {len(names)} images{f' of {place}' if place else ''} are in {free.name} now")


def note_images(table: Path, images: Path) -> None:
    """Note beside a run of which folder, list or image its predictions are."""
    if is_run(table.parent):
        note(table.parent, PREDICTED, str(images.absolute()))
