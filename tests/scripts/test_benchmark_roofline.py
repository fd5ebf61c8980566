"""The roofline benchmark: its arithmetic, and that it runs on a CPU and on a pretended GPU."""

import contextlib

import pytest

from scripts.benchmarks import roofline
from scripts.benchmarks.roofline import Measured, Rates, main, row
from tests.support.pretend_cuda import pretended

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_row_is_beside_the_larger_of_two_bounds_shared_by_the_devices():
    best = Rates(single=100.0, double=10.0, memory=50.0)
    assert row(Measured("x", 8.0, 200.0, "single", 25.0), best, 1) == ["x", "8", "2", "0.5", "0.25"]
    assert row(Measured("x", 8.0, 200.0, "double", 25.0), best, 2) == ["x", "8", "10", "0.25", "1.25"]
    assert row(Measured("x", 8.0, 100.0, "single", 400.0), best, 2) == ["x", "8", "0.5", "4", "0.50"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_selection_is_measured_on_either_device(device, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "SIDE", {"cuda": 64, "cpu": 64})
    words = ["--parts", "activeft", "bilaf", "--rows", "200", "--columns", "8", "--budget", "8", "--iterations", "2"]
    with pretended() if device == "cuda" else contextlib.nullcontext():
        main([*words, "--device", device])
    first, *table = [line for line in capsys.readouterr().out.splitlines() if line]
    assert first.startswith("1 x pretended: " if device == "cuda" else "1 x CPU: ")
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "ActiveFT, an iteration, 200 x 8, 8 to choose", "BiLAF, 200 x 8, 2 cores, 8 to choose"
    ]  # fmt: skip
    assert all(float(cell) > 0 for line in table[2:] for cell in line.split("|")[2:5])
