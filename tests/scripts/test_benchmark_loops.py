"""The textbook loop's schedule is the trainer's, and the benchmark's table has a row for each loop."""

import numpy as np
import pytest
import torch

from data_selection.common.feature_table import save_features
from data_selection.images import pools
from deit.learner.optimizers import make_optimizer
from deit.learner.schedules import make_scheduler
from deit.options import parse
from scripts.benchmarks.loops import main
from tests.support.oracles_finetune import rate


def test_the_textbook_schedule_is_the_trainers():
    args = parse(["--epochs", "12", "--lr", "0.0125"])
    optimizer = make_optimizer(args, torch.nn.Linear(2, 2), args.lr)
    scheduler = make_scheduler(args, optimizer, 1)
    for epoch in range(12):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate(epoch, 12, 0.0125), rel=1e-6)
        scheduler.step(epoch + 1)


def test_the_table_has_a_row_for_each_loop(tmp_path, monkeypatch, capsys):
    arrays = {key: value[:40] for key, value in pools.load_demo().items()}
    monkeypatch.setattr(pools, "load_demo", lambda: arrays)
    save_features(tmp_path / "DEMO_train.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    main(["--features", str(tmp_path), "--methods", "random", "--budget", "10", "--seeds", "1", "--epochs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["textbook", "full", "linear", "lp-ft"]
