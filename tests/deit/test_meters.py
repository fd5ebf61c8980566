"""What a run shows: one bar, lines per step when asked for, TensorBoard's events where the package is there."""

import io
import json
import sys
import types

import pytest
import torch

from data_selection.common.errors import UserError
from deit.main import main
from deit.runs.meters import RunLog
from tests.support.trainer_runs import command, log_lines, make_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_one_bar_with_loss_accuracy_and_the_time_left(images, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log = RunLog(tmp_path, True)
    log.start(1, 2, 6, 0, {})
    for number in range(3):
        log.read = 0.0  # as if two seconds had passed
        log.step(1, number, 3, torch.tensor(0.25), 4.0)
    log.bar.refresh()
    log.record({"train_loss": 0.5, "train_lr": 0.1, "test_acc1": 81.5, "test_loss": 0.4, "epoch": 1}, None)
    log.bar.refresh()
    log.step(2, 0, 3, torch.tensor(0.1), 1.0)  # read a moment ago: no look at the device
    log.close()
    said = terminal.getvalue()
    assert "finetune:" in said
    assert "loss 1.0000" in said
    assert "loss 0.5000, top-1 81.50 %" in said
    assert "3/6 [" in said
    assert "<" in said.split("3/6 [")[1]  # tqdm's time left
    assert "loss 0.1000" not in said


@pytest.mark.parametrize(("stream", "is_main", "verbose"), [(io.StringIO, True, False), (Terminal, False, False),
                                                            (Terminal, True, True)])  # fmt: skip
def test_no_bar_without_a_terminal_nor_beside_lines_nor_twice(stream, is_main, verbose, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    log = RunLog(None, is_main, verbose=verbose)
    log.start(1, 2, 6, 0, {})
    log.bar.refresh()
    log.close()
    assert sys.stderr.getvalue() == ""


def test_verbose_prints_a_line_for_each_step(images, capsys):
    main(command(images, None, epochs=2, batch_size=16, verbose=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch") and " step " in line]
    assert len(lines) == 8
    assert lines[5].startswith("epoch 2/2 step 2/4: loss 0.")


def test_tensorboard_gets_the_numbers_of_log_txt(images, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, epoch):
            written.append((name, value, epoch))

        def close(self):
            written.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    main(command(images, tmp_path, epochs=1, tensorboard=True))
    line = log_lines(tmp_path)[0]
    assert written[0] == str(tmp_path / "tensorboard")
    assert ("test/acc1", line["test_acc1"], 1) in written
    assert ("train/loss", line["train_loss"], 1) in written
    assert written[-1] == "closed"


def test_tensorboard_that_is_missing_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"--tensorboard needs the package tensorboard .*pip install tensorboard"):
        main(command(images, tmp_path, epochs=1, tensorboard=True))
    with pytest.raises(UserError, match="--tensorboard needs --output_dir"):
        main(command(images, None, epochs=1, tensorboard=True))


def test_the_result_tells_what_a_paper_reports(images, tmp_path):
    main(command(images, tmp_path, epochs=2))
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"last", "best", "ema", "seconds", "train_seconds", "images_per_second", "processes"} <= set(result)
    assert result["ema"].keys() >= {"loss", "acc1", "acc5"}
    assert result["images_per_second"] == pytest.approx(120 / result["train_seconds"])
