"""The ActiveFT benchmark times both versions in turn, and their losses agree."""

import numpy as np
import pytest
import torch

from data_selection.common.feature_table import save_features
from scripts.benchmarks import activeft


def test_the_table_compares_times_and_losses(tmp_path, capsys, monkeypatch):
    """A clock on which our steps take 2 seconds (3 of a processor) and the textbook's 6 (12)."""
    steps, real = [], activeft.textbook_step

    def stepped(*words):
        steps.append(1)
        real(*words)

    def lap(_clock):
        took = (6.0, 12.0) if steps else (2.0, 3.0)
        steps.clear()
        return took

    monkeypatch.setattr(activeft, "textbook_step", stepped)
    monkeypatch.setattr(activeft.Clock, "lap", lap)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 24)).repeat(30, 0) + 0.3 * rng.normal(size=(1200, 24))
    save_features(tmp_path / "rows.npy", rows.astype(np.float32))
    flags = ["--features", tmp_path / "rows.npy", "--budgets", 70, "--iterations", 6, "--threads", 1]
    activeft.main([*map(str, flags), "--losses", "--workdir", str(tmp_path)])
    *numbers, losses, memory = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert numbers == ["70", "2.000", "6.000", "3.0", "4.0"]
    assert float(losses) == pytest.approx(1, abs=1e-3)
    assert float(memory.removesuffix(" MB")) > 0


def test_the_clock_waits_for_the_card(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = activeft.Clock("cuda:0")
    clock.lap()
    assert waited == [torch.device("cuda:0")] * 2
    activeft.Clock("cpu").lap()
    assert len(waited) == 2
