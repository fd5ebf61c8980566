"""What must not get lost or pass for something else: results, checkpoints, folders, counts over an interruption."""

import json
import os
import signal
import time

import pytest
import torch

from data_selection.common import system
from data_selection.common.distributed import World
from data_selection.common.errors import UserError, run
from deit import epochs as deit_epochs
from deit.main import main
from deit.runs import folders, saving
from deit.runs.saving import BEST, NEWEST, Saver
from tests.deit.test_reliability import poisoned, wait_for
from tests.support.forks import FORKS
from tests.support.trainer_runs import checkpoint, child, command, log_lines, make_images

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def result(folder):
    """result.json without what a clock or the machine decides."""
    values = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in values.items() if "seconds" not in key and "per_second" not in key}


def stopped_in(monkeypatch, words, epoch):
    """Run until that epoch begins."""
    real, left = deit_epochs.one_epoch, epoch

    def stop(job, learner, data, number, tally):
        if number == left:
            raise KeyboardInterrupt
        return real(job, learner, data, number, tally)

    monkeypatch.setattr(deit_epochs, "one_epoch", stop)
    assert run(main, words) == 130
    monkeypatch.setattr(deit_epochs, "one_epoch", real)


@pytest.mark.parametrize("flags", [{}, {"mode": "linear", "batch_size": None, "lr": None, "warmup_epochs": None}])
def test_a_run_killed_before_its_result_is_ended(images, tmp_path, capsys, flags):
    words = command(images, tmp_path, auto_resume=True, epochs=None if flags else 3, **flags)
    main(words)
    whole, log = result(tmp_path), log_lines(tmp_path)
    (tmp_path / "result.json").unlink()
    capsys.readouterr()
    assert run(main, words) == 0
    assert "the run is finished but for its result, which follows" in capsys.readouterr().out
    assert result(tmp_path) == whole
    assert log_lines(tmp_path) == log
    assert not list(tmp_path.glob("earlier_*"))
    (tmp_path / "result.json").unlink()
    (tmp_path / BEST).unlink()  # then the last epoch, whose weights are there, is the best
    main(words)
    assert checkpoint(tmp_path, BEST)["epoch"] == result(tmp_path)["best"]["epoch"] == whole["last"]["epoch"]


def test_an_earlier_run_is_set_aside_whole(images, tmp_path, monkeypatch, capsys):
    main(command(images, tmp_path, epochs=2))
    kept = ("pool_predictions.csv", "soft_targets_1.npy", "cross_validation.csv", "smoothed_pool.npz")
    for name in (*kept, "notes.txt"):
        (tmp_path / name).write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    words = command(images, tmp_path, epochs=3, finetune=tmp_path / BEST)
    stopped_in(monkeypatch, words, 2)
    moved = tmp_path / "earlier_1"
    assert f"holds an earlier run: 10 files are set aside in {moved}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in moved.iterdir()} | {"notes.txt": b"old"} == before
    left = {"args.yaml", "log.txt", NEWEST, BEST, "notes.txt", "earlier_1"}
    assert {path.name for path in tmp_path.iterdir()} == left
    main([*words, "--auto-resume"])
    assert [line["epoch"] for line in log_lines(tmp_path)] == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == left | {"result.json", saving.PREVIOUS}


def test_a_beginning_without_a_checkpoint_is_written_anew_by_auto_resume(images, tmp_path):
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    main(command(images, tmp_path, auto_resume=True, epochs=1))
    assert [line["epoch"] for line in log_lines(tmp_path)] == [1]
    assert not (tmp_path / "earlier_1").exists()
    (tmp_path / "log.txt").write_text('{"epoch": 7}\n')
    main(command(images, tmp_path, epochs=1))
    assert (tmp_path / "earlier_1" / "log.txt").read_text() == '{"epoch": 7}\n'
    assert [line["epoch"] for line in log_lines(tmp_path)] == [1]


def test_a_linear_run_again_starts_its_log_anew(images, tmp_path):
    for number in range(2):
        words = ["--mode", "linear", "--smoothing", str(number / 10), "--recipe", "few-shot", "--amp", "off"]
        main([*command(images, tmp_path, None, batch_size=None, lr=None, warmup_epochs=None), *words])
        assert [line["epoch"] for line in log_lines(tmp_path)] == [0]
        assert (tmp_path / "earlier_1").exists() == bool(number)


def test_going_back_to_the_best_checkpoint_sets_the_newer_ones_aside(images, tmp_path, monkeypatch):
    words = {"finetune": None, "resume": tmp_path / BEST, "epochs": 4}
    stopped_in(monkeypatch, command(images, tmp_path, epochs=4), 4)
    state = checkpoint(tmp_path)
    torch.save(state | {"epoch": 1}, tmp_path / BEST)
    stopped_in(monkeypatch, command(images, tmp_path, **words), 2)
    assert {path.name for path in (tmp_path / "earlier_1").iterdir()} == {NEWEST, saving.PREVIOUS}
    assert [line["epoch"] for line in log_lines(tmp_path)] == [1]


def test_the_best_checkpoint_comes_along_or_is_not_claimed(images, tmp_path, monkeypatch, capsys):
    old, words = tmp_path / "old", command(images, tmp_path / "old", epochs=4, eval_interval=1)
    stopped_in(monkeypatch, words, 4)
    state = checkpoint(old)
    state["best"] = {**state["best"], "epoch": 2, "acc1": 101.0, "loss": 0.5, "acc5": 101.0}  # nothing beats it
    torch.save(state, old / NEWEST)
    torch.save(state | {"epoch": 2}, old / BEST)
    on = {"finetune": None, "resume": old / NEWEST, "epochs": 4}
    main(command(images, tmp_path / "new", **on))
    assert result(tmp_path / "new")["best"]["epoch"] == checkpoint(tmp_path / "new", BEST)["epoch"] == 2
    (old / BEST).unlink()
    capsys.readouterr()
    main(command(images, tmp_path / "bare", **on))
    assert f"no {BEST} of epoch 2 is beside {old / NEWEST}" in capsys.readouterr().out
    assert result(tmp_path / "bare")["best"]["epoch"] == checkpoint(tmp_path / "bare", BEST)["epoch"] == 4
    torch.save(state | {"best": {**state["best"], "epoch": 3}}, old / NEWEST)  # the best one is the one continued
    main(command(images, tmp_path / "own", **on))
    assert result(tmp_path / "own")["best"]["epoch"] == checkpoint(tmp_path / "own", BEST)["epoch"] == 3


def test_counts_go_on_where_a_run_is_continued(images, tmp_path, monkeypatch):
    words = command(images, tmp_path, epochs=3, skip_nonfinite=True, auto_resume=True)
    poisoned(monkeypatch, {1})
    stopped_in(monkeypatch, words, 3)
    spent = checkpoint(tmp_path)["spent"]
    main(words)
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["epochs_run"], told["skipped_steps"]) == (3, 1)
    assert [line.get("skipped_steps") for line in log_lines(tmp_path)] == [1, 1, 1]
    assert told["seconds"] > spent["before"] > 0
    assert told["train_seconds"] > spent["seconds"] > 0
    assert spent["images"] == 120


def test_a_full_disk_in_the_first_run_claims_no_checkpoint(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "atomic_write", full)
    with pytest.raises(UserError, match=r"epoch 1 cannot be written .*no checkpoint yet"), Saver(tmp_path) as saver:
        saver.save([NEWEST], {"epoch": 1})


@pytest.mark.parametrize("wrong", [{"subset_ids": "lost.json"}, {"finetune": "lost.pth"}, {"data_path": "lost"}])
def test_a_refused_start_leaves_no_folder(images, tmp_path, wrong):
    (tmp_path / "there").mkdir()
    for folder in ("new/deep", "there"):
        with pytest.raises(UserError, match="lost"):
            main(command(images, tmp_path / folder, **wrong))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_folder_belongs_to_one_run_at_a_time(images, tmp_path):
    """A lock ends with its process, though children that load images live on."""
    words = command(images, tmp_path, epochs=100_000, num_workers=1, aa="rand-m9", save_interval=10_000)
    process = child(words)
    try:
        wait_for(lambda: (tmp_path / "log.txt").exists() and (tmp_path / "log.txt").stat().st_size > 0)
        with pytest.raises(
            UserError, match=rf"{tmp_path} is in use by another run \(process {process.pid} on .*\): wait"
        ):
            main(command(images, tmp_path))
        assert not list(tmp_path.glob("earlier_*"))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
    main(command(images, tmp_path, epochs=1))
    assert (tmp_path / "earlier_1" / "log.txt").exists()
    assert not (tmp_path / folders.LOCK).exists()


def hold(folder, pipe):
    with folders.claimed(folder, ALONE):
        grandchild = os.fork()
        if grandchild:
            pipe.send(grandchild)
        time.sleep(60)
        os._exit(0)


def test_a_child_that_outlives_its_run_holds_no_lock(tmp_path):
    mine, theirs = FORKS.Pipe()
    process = FORKS.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    grandchild = mine.recv()
    try:
        with pytest.raises(UserError, match="in use by another run"), folders.claimed(tmp_path, ALONE):
            pass
        process.kill()
        process.join(10)
        with folders.claimed(tmp_path, ALONE):
            pass  # while the grandchild still waits
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_disk_without_locks_is_used_as_it_is(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(system.fcntl, "lockf", none)
    with folders.claimed(tmp_path / "new", ALONE):
        (tmp_path / "new" / "log.txt").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log.txt"]
