"""What stays in an output folder where a run goes on, and what is said meanwhile."""

import argparse

import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from deit.runs import folders, meters
from deit.runs.meters import RunLog, keep_lines
from deit.runs.saving import NEWEST, PREVIOUS, Saver
from deit.runs.starting import finished
from tests.support.trainer_runs import checkpoint

ALONE = World(0, 1, torch.device("cpu"))


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_the_checkpoint_that_a_run_continues_stays_in_its_place(tmp_path):
    said = []
    for source in (PREVIOUS, NEWEST):
        for name in (NEWEST, PREVIOUS, "log.txt", "result.json"):
            (tmp_path / name).touch()
        folders.make_room(tmp_path, tmp_path / source, {"epoch": 1}, said.append, auto_resume=True)
    assert names(tmp_path) == {NEWEST, PREVIOUS, "log.txt", "earlier_1", "earlier_2"}
    assert said[0] == (
        f"{tmp_path} holds results of a later epoch: 1 files are set aside in {tmp_path / 'earlier_1'}"
    )  # fmt: skip
    folders.make_room(tmp_path, "none", None, said.append, auto_resume=False)
    assert said[2].endswith("earlier run: 3 files are set aside in "
                            f"{tmp_path / 'earlier_3'} (--auto-resume continues a run)")  # fmt: skip


def test_a_damaged_checkpoint_does_not_push_out_the_one_that_is_continued(tmp_path):
    (tmp_path / NEWEST).write_bytes(b"half")
    torch.save({"epoch": 4}, tmp_path / PREVIOUS)
    with Saver(tmp_path, tmp_path / PREVIOUS) as saver:
        saver.save([NEWEST], {"epoch": 5})
    assert (checkpoint(tmp_path)["epoch"], checkpoint(tmp_path, PREVIOUS)["epoch"]) == (5, 4)


def test_a_lock_whose_file_the_run_before_has_removed_is_taken_anew(tmp_path, monkeypatch):
    """It has ended between our opening of the file and our locking of it: the next one would open another."""
    real, opened = folders.take_lock, []

    def take(handle, **words):
        opened.append(handle)
        if len(opened) == 1:
            (tmp_path / folders.LOCK).unlink()
        return real(handle, **words)

    monkeypatch.setattr(folders, "take_lock", take)
    with folders.claimed(tmp_path, ALONE):
        assert names(tmp_path) == {folders.LOCK}
    assert len(opened) == 2
    assert names(tmp_path) == set()


def test_a_finished_run_of_another_folder_is_not_this_ones_result(tmp_path):
    log = RunLog(None, True)
    for place, auto in (("old", True), ("new", False)):
        args = argparse.Namespace(auto_resume=auto, output_dir=str(tmp_path / "new"))
        with pytest.raises(UserError, match=rf"3 epochs and 3 are asked for: the run is finished .*{place}"):
            finished(args, tmp_path / place / NEWEST, 3, 3, log)


def test_a_line_that_was_not_ended_is_not_kept(tmp_path):
    """It may look whole, and the next one would be written on behind it."""
    (tmp_path / "log.txt").write_text('{"epoch": 1}\n{"epoch": 2}')
    keep_lines(tmp_path / "log.txt", 2)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 1}\n'


def test_the_time_left_goes_by_the_epochs_since_this_start(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: clock[0])
    log, line = RunLog(None, True), {"train_loss": 1.0, "train_lr": 0.1}
    log.start(6, 10, 100, 50, {})
    clock[0] = 30.0
    assert log.told(line | {"epoch": 8}, "test", None).endswith("test, 0:00:20 left")  # three epochs took 30 s
    log.start(0, 10, 100, 0, {})
    clock[0] = 60.0
    assert log.told(line | {"epoch": 3}, "test", None).endswith("test, 0:01:10 left")  # epoch 0 took no time


def test_the_lock_is_let_go_with_the_folder(tmp_path, monkeypatch):
    """A process may train many times: each run that kept its file open would be one too many in the end."""
    real, taken = folders.lock, []
    monkeypatch.setattr(folders, "lock", lambda folder: taken.append(real(folder)) or taken[-1])
    for _ in range(2):
        with folders.claimed(tmp_path / "run", ALONE):
            assert not taken[-1].closed
    assert [handle.closed for handle in taken] == [True, True]
    with pytest.raises(ZeroDivisionError), folders.claimed(tmp_path / "run", ALONE):
        raise ZeroDivisionError
    assert taken[-1].closed
