"""How much memory a selection may take: limits of containers, and what was asked for."""

import contextlib
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_selection.methods.starts import PointDistances
from data_selection.nearest import pool_reader
from data_selection.nearest.pool_reader import UnitPool, available_memory, container_memory, working_memory
from tests.support.pretend_cuda import pretended

MB = 1 << 20


def group(folder, version, limit, used=100 * MB, cached=30 * MB):
    """A control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current", ""), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")}
    most, current, total = names[version]
    (folder / most).write_text(f"{limit}\n")
    (folder / current).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{total}inactive_file {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", [False, True], ids=["host", "container"])
def test_limits_of_control_groups_are_seen(tmp_path, version, inside):
    own, top = tmp_path / "own", tmp_path / "fs" / ("memory" if version == 1 else "")
    own.write_text(f"9:name=systemd:/x\n{'4:memory' if version == 1 else '0:'}:/jobs/mine\n")
    if inside:  # the group's folder is mounted as the root
        group(top, version, 512 * MB)
    else:
        group(top / "jobs", version, 512 * MB)
        group(top / "jobs" / "mine", version, "max" if version == 2 else 1 << 62)
    assert min(container_memory(own, tmp_path / "fs")) == 442 * MB


def test_no_limit_and_no_control_groups_are_no_limit(tmp_path):
    (tmp_path / "own").write_text("0::/\n")
    assert list(container_memory(tmp_path / "own", tmp_path)) == []
    assert list(container_memory(tmp_path / "missing", tmp_path)) == []


def test_the_least_of_all_limits_counts(monkeypatch):
    free = available_memory()
    monkeypatch.setattr(pool_reader, "container_memory", lambda: iter([1 << 62, 40 * MB]))
    assert available_memory() == 40 * MB < free
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert working_memory(None, torch.device("cpu")) == 10 * MB
    assert working_memory(0.05, torch.device("cpu")) == 50_000_000


def test_what_the_kernel_calls_available_counts_and_processes_share_it(monkeypatch):
    told = SimpleNamespace(read_text=lambda encoding: "MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable:  400 kB\n")
    monkeypatch.setattr(pool_reader, "Path", lambda path: told)
    monkeypatch.setattr(pool_reader, "container_memory", lambda: iter([]))
    assert available_memory() == 400 * 1024
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert working_memory(None, torch.device("cpu")) == 400 * 1024 // 16
    assert working_memory(0.05, torch.device("cpu")) == 50_000_000


@pytest.mark.parametrize("limit", [0, 1e9], ids=["read anew", "resident"])
def test_rows_that_were_read_stay_as_they_were(limit):
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    pool = UnitPool(rows, None, torch.device("cpu"), limit)
    first = pool.read(0, 1)
    distances = PointDistances(pool, "cosine").to(torch.tensor([0]))
    unit = F.normalize(rows, dim=1)
    torch.testing.assert_close(distances, 1 - unit @ unit[0])
    torch.testing.assert_close(first, unit[:1])


class Counted(np.ndarray):
    """Rows that say which of them are read."""

    seen: ClassVar[list[tuple[int, int]]] = []

    def __getitem__(self, key):
        if isinstance(key, slice):
            Counted.seen.append((key.start, key.stop))
        return np.asarray(super().__getitem__(key))


@pytest.mark.parametrize(
    ("device", "most", "kept"),
    [("cpu", 1.0, "all"), ("cpu", 0.6, "own"), ("cpu", 0.4, "none"), ("cuda", 1.0, "own"), ("cuda", 0.4, "none")],
)
def test_one_of_several_processes_keeps_its_own_spans(device, most, kept):
    """Half of the pool is its own. On a GPU that is all it keeps; on a CPU the whole pool where there is room."""
    rows = np.random.default_rng(0).normal(size=(8 * 1024, 4)).astype(np.float32)
    unit = F.normalize(torch.from_numpy(rows), dim=1)
    own = UnitPool.spans(len(rows))[1::2]
    assert len(own) == 4
    with pretended() if device == "cuda" else contextlib.nullcontext():
        pool = UnitPool(rows.view(Counted), None, torch.device(device), 2 * most * rows.nbytes, own=own)
        Counted.seen.clear()
        for _ in range(2):
            for start, stop in own:
                torch.testing.assert_close(pool.read(start, stop).cpu(), unit[start:stop])
        read = list(Counted.seen)
        torch.testing.assert_close(pool.read(0, 1024).cpu(), unit[:1024])
        torch.testing.assert_close(pool.take(torch.tensor([1030, 5])).cpu(), unit[[1030, 5]])
    assert read == (2 * own if kept == "none" else [])
    assert (pool.resident is not None) == (kept == "all")
    assert sum(map(len, pool.kept.values())) == (len(rows) / 2 if kept == "own" else 0)
