"""The ActiveFT benchmark times both versions in turn, and their losses agree."""

import numpy as np
import pytest
import torch

from data_selection.common.feature_table import save_features
from scripts.benchmarks.activeft import Clock, main


def test_the_table_compares_losses(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 24)).repeat(30, 0) + 0.3 * rng.normal(size=(1200, 24))
    save_features(tmp_path / "rows.npy", rows.astype(np.float32))
    flags = ["--features", tmp_path / "rows.npy", "--budgets", 70, "--iterations", 6, "--threads", 1]
    main([*map(str, flags), "--losses", "--workdir", str(tmp_path)])
    budget, ours, textbook, *_, losses, memory = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert budget == "70"
    assert min(float(ours), float(textbook)) >= 0
    assert float(losses) == pytest.approx(1, abs=1e-3)
    assert float(memory.removesuffix(" MB")) > 0


def test_the_clock_waits_for_the_card(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = Clock("cuda:0")
    clock.lap()
    assert waited == [torch.device("cuda:0")] * 2
    Clock("cpu").lap()
    assert len(waited) == 2
