"""What a round finds of the rounds before it."""

import errno
import json
from pathlib import Path

import pytest

from data_selection.annotation import round_labels
from data_selection.annotation.run_folder import RECORD, SUBSET
from data_selection.common.errors import UserError
from data_selection.common.feature_table import sidecar
from data_selection.images.answers import written_labels


def test_rounds_that_name_all_before_them_are_looked_at_once_each(tmp_path, monkeypatch):
    """By every way back to the first there are 2 ** 14."""
    runs = [tmp_path / f"{number:02}" for number in range(15)]
    for number, run in enumerate(runs):
        run.mkdir()
        sidecar(run / SUBSET, "provenance").write_text(str(number))
        record = {"version": 1, "source": "", "features": "", "earlier": round_labels.note_earlier(runs[:number], run)}
        (run / RECORD).write_text(json.dumps(record))
    looked, found = [], round_labels.earlier_runs
    monkeypatch.setattr(round_labels, "earlier_runs", lambda run: looked.append(run) or found(run))
    assert round_labels.rounds_before(runs[-1]) == {*runs[:-1]}
    assert len(looked) <= len(runs)


def test_a_round_in_a_folder_that_cannot_be_looked_into_is_not_at_hand(tmp_path, monkeypatch):
    """Of a colleague, who shares the later round alone: its copy of the labels is what there is."""
    shut, other, run = tmp_path / "shut" / "one", tmp_path / "two", tmp_path / "three"
    for one in (shut, other, run):
        one.mkdir(parents=True)
        (one / RECORD).write_text('{"version": 1, "source": "", "features": ""}')
        sidecar(one / SUBSET, "provenance").write_text(one.name)
    record = {"version": 1, "source": "", "features": "", "earlier": round_labels.note_earlier([shut, other], run)}
    (run / RECORD).write_text(json.dumps(record))
    assert round_labels.earlier_runs(run) == [shut, other]
    is_file = Path.is_file

    def refused(path):
        if shut in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert round_labels.earlier_runs(run) == [other]


def test_a_table_with_a_quote_that_nothing_closes_is_named(tmp_path):
    (tmp_path / "labels.csv").write_text('file,label\n"a.png,cat\n' + "b.png,dog\n" * 20_000)
    with pytest.raises(UserError, match=r"labels\.csv is no table of file,label \(field .*\): look for a quote that"):
        written_labels(tmp_path / "labels.csv")
