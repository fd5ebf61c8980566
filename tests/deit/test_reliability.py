"""What a run does when it is warned, killed, starved of disk, fed a NaN, or loses a process."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import time

import pytest
import torch

from data_selection.common.errors import UserError, run
from deit import epochs as deit_epochs
from deit.main import main
from deit.runs import saving, stopping
from deit.runs.saving import Saver, write
from tests.support.forks import FORKS
from tests.support.trainer_runs import checkpoint, child, command, log_lines, make_images, train_into

EPOCHS = 10
RECIPE = {"drop_path": 0.2, "mixup": 0.8, "mixup_prob": 1.0, "model_ema_decay": 0.9, "auto_resume": True}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def unbroken(one_thread, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    main(command(images, folder, epochs=EPOCHS, **RECIPE))
    return folder


def same(one, two):
    """Whether two folders hold the same numbers and weights, bit by bit."""
    assert log_lines(one) == log_lines(two)
    a, b = checkpoint(one), checkpoint(two)
    momentum = [[v["momentum_buffer"] for v in run["optimizer"]["state"].values()] for run in (a, b)]
    pairs = [*zip(a["model"].values(), b["model"].values(), strict=True)]
    pairs += [*zip(a["model_ema"].values(), b["model_ema"].values(), strict=True), *zip(*momentum, strict=True)]
    return all(torch.equal(x, y) for x, y in pairs) and a["best"] == b["best"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_five_kills_at_random_moments_change_nothing(images, unbroken, tmp_path):
    words = command(images, tmp_path, epochs=EPOCHS, **RECIPE)
    log, chance, done, codes = tmp_path / "log.txt", random.Random(0), [0], []

    def epochs():
        return log.read_text().count("\n") if log.exists() else 0

    for _ in range(5):
        process = child(words)
        wait_for(lambda p=process: not p.is_alive() or epochs() > done[-1])  # of the run: the file is there before
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.join(10)
        codes.append(process.exitcode)
        done.append(epochs())
    assert codes[0] == -signal.SIGKILL
    assert 0 < done[1] < EPOCHS  # it came amid the run
    process = child(words)
    process.join(120)
    assert process.exitcode == 0
    assert same(unbroken, tmp_path)
    assert not list(tmp_path.glob(".*"))  # what the kills left half written is gone


def test_sigterm_says_what_was_saved(images, tmp_path, monkeypatch, capsys):
    real = deit_epochs.train_one_epoch

    def warned(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(deit_epochs, "train_one_epoch", warned)
    before = signal.getsignal(signal.SIGTERM)
    assert run(main, command(images, tmp_path / "a", epochs=3)) == 0
    assert "SIGTERM: stopped after step 1 of epoch 1 of 3; wrote checkpoint.pth in" in capsys.readouterr().out
    assert run(main, command(images, None, epochs=3)) == 0
    assert "stopped after step 1 of epoch 1 of 3; nothing is saved without --output_dir" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_truncated_checkpoint_gives_way_to_the_one_before(images, unbroken, tmp_path, monkeypatch, capsys):
    words = command(images, tmp_path, epochs=EPOCHS, **RECIPE)
    epochs, real = iter(range(5)), deit_epochs.train_one_epoch
    monkeypatch.setattr(deit_epochs, "train_one_epoch", lambda *a, **k: next(epochs) + 1 and real(*a, **k))
    with pytest.raises(StopIteration):
        main(words)
    monkeypatch.undo()
    assert (checkpoint(tmp_path)["epoch"], checkpoint(tmp_path, saving.PREVIOUS)["epoch"]) == (5, 4)
    path = tmp_path / saving.NEWEST
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out
    assert f"not continued: weights {path} are truncated" in said
    assert f"continuing {tmp_path / saving.PREVIOUS} after epoch 4" in said
    assert same(unbroken, tmp_path)
    for name in (saving.NEWEST, saving.PREVIOUS):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read: to start anew, remove checkpoint\.pth and"):
        main(words)


def test_the_previous_checkpoint_of_another_run_goes(images, tmp_path):
    for _ in range(2):
        main(command(images, tmp_path, epochs=1))
        assert not (tmp_path / saving.PREVIOUS).exists()
    main(command(images, tmp_path, epochs=2))
    assert checkpoint(tmp_path, saving.PREVIOUS)["epoch"] == 1


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    with Saver(tmp_path) as saver:
        saver.save([saving.NEWEST], {"epoch": 1, "x": torch.ones(2)})
    real = saving.atomic_write

    @contextlib.contextmanager
    def full(path):
        with real(path) as handle:
            yield handle
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "atomic_write", full)
    message = r"checkpoint\.pth of epoch 2 cannot be written \(No space left on device\): the checkpoint before it is"
    with pytest.raises(UserError, match=message), Saver(tmp_path) as saver:
        saver.save([saving.NEWEST], {"epoch": 2, "x": torch.zeros(2)})
    assert checkpoint(tmp_path)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [saving.NEWEST]


@pytest.mark.parametrize("continued", [False, True])
def test_a_file_that_the_system_does_not_let_grow(tmp_path, continued):
    """The kernel's own error, in the middle of a checkpoint: no file of this process may have more than 4,000 bytes."""
    with Saver(tmp_path) as saver:
        saver.save([saving.NEWEST], {"epoch": 1, "x": torch.ones(2)})
    source = tmp_path / saving.NEWEST if continued else None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        message = r"checkpoint\.pth of epoch 2 cannot be written .*: the checkpoint before it is as it was"
        with pytest.raises(UserError, match=message), Saver(tmp_path, source) as saver:
            saver.save([saving.NEWEST], {"epoch": 2, "x": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint(tmp_path)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [saving.NEWEST]


def test_a_checkpoint_holds_the_moment_it_was_asked_for(tmp_path):
    weights = torch.zeros(1_000_000)
    with Saver(tmp_path) as saver:
        for epoch in (1, 2):
            weights += 1
            saver.save(["checkpoint.pth"], {"epoch": epoch, "parts": [{"w": weights}]})
        weights += 1
    saved = [checkpoint(tmp_path, name) for name in (saving.NEWEST, saving.PREVIOUS)]
    assert [content["parts"][0]["w"].unique().tolist() for content in saved] == [[2], [1]]


def poisoned(monkeypatch, calls):
    """Make the training loss NaN in the calls of the criterion that `calls` names."""
    from deit.losses import Criterion

    real, count = Criterion.__call__, iter(range(10**6))
    monkeypatch.setattr(
        Criterion, "__call__", lambda self, *args: real(self, *args) * (float("nan") if next(count) in calls else 1)
    )


def test_a_nan_names_the_batch(images, tmp_path, monkeypatch):
    words = command(images, tmp_path, epochs=3, batch_size=16)
    poisoned(monkeypatch, {5})  # 60 entries, 16 per step: the second step of the second epoch
    path = tmp_path / stopping.BAD_BATCH
    with pytest.raises(UserError, match=rf"nan at epoch 2, step 2 of 4: .*ids of its batch are in {path}; --skip-non"):
        main(words)
    told = json.loads(path.read_text())
    assert (told["epoch"], told["step"], len(told["ids"])) == (2, 2, 16)
    assert set(told["ids"]) <= set(json.loads((images / "subset.json").read_text()))
    assert checkpoint(tmp_path)["epoch"] == 1
    poisoned(monkeypatch, {0})
    with pytest.raises(UserError, match=r"--output_dir DIR would save the ids"):
        main(command(images, None, epochs=1))
    poisoned(monkeypatch, {0})
    trial = command(images, tmp_path / "lp", epochs=2, mode="lp-ft", recipe="few-shot", batch_size=16, lr=1e-3)
    with pytest.raises(
        UserError, match=r"at epoch 1, step 1 of .*; that was in part 1/\d+ of cross-validation; --skip"
    ):
        main(trial)


def test_steps_without_a_finite_loss_are_left_out(images, tmp_path, monkeypatch, capsys):
    flags = {"epochs": 2, "batch_size": 16, "model": "resnet10t", "input_size": 32, "finetune": "none"}
    words = command(images, tmp_path, skip_nonfinite=True, **flags)
    poisoned(monkeypatch, {1, 2})
    main(words)
    lines = log_lines(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [2, 2]
    assert all(torch.isfinite(x).all() for x in checkpoint(tmp_path)["model"].values())
    poisoned(monkeypatch, range(4))
    with pytest.raises(UserError, match=r"every step of epoch 1 is not finite: try a smaller --lr or --amp off$"):
        main(words)


def murdered(words, said):
    """Train in this process, whose image loaders are killed when the first epoch begins."""
    real = deit_epochs.train_one_epoch

    def murder(learner, data, *args, **kwargs):
        next(data.plain(range(4), 2))  # starts the workers
        for worker in multiprocessing.active_children():
            worker.kill()
        return real(learner, data, *args, **kwargs)

    deit_epochs.train_one_epoch = murder
    train_into(words, said, {})


def test_a_worker_that_dies_is_named(images, tmp_path):
    """In a process of its own: PyTorch raises at a worker's death wherever the main thread is, in pytest, too."""
    said = tmp_path / "said"
    words = command(images, None, epochs=1, aa="rand-m9", num_workers=1)
    process = FORKS.Process(target=murdered, args=(words, str(said)))
    process.start()
    process.join(120)
    assert process.exitcode == 2, said.read_text()
    assert "error: a process that loads images has died (DataLoader worker" in said.read_text()
    assert "--num_workers" in said.read_text()
    assert "Traceback" not in said.read_text()


def test_writing_needs_no_previous_file(tmp_path):
    write(tmp_path, [saving.NEWEST, saving.BEST], {"epoch": 1}, keep=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [saving.BEST, saving.NEWEST]
