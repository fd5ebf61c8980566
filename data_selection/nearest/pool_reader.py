"""Unit features of a pool, read in fixed spans: resident where memory allows, else from the array or memory map."""

import os
from pathlib import Path

import torch

from data_selection.common.checks import as_tensor, check_finite
from data_selection.common.kinds import Device, Features
from data_selection.nearest.narrow import Scratch
from data_selection.nearest.similarity import lengths, normalise, read_rows

SPAN_ROWS = 16384  # rows whose sums are added up together; never depends on the memory limit, so results do not either
MIN_SPAN_ROWS = 1024


class UnitRows:
    """A float32 table on the CPU as rows of unit length, which are divided by their lengths when they are read.

    To copy the table at unit length would save a fiftieth of ActiveFT's time (50,000 x 384, 1,000 centroids).
    """

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.shape = table, table.shape
        self.lengths = table.new_empty(len(table), 1)
        self.scratch = Scratch(torch.float32)

    def __getitem__(self, part: slice, /) -> torch.Tensor:
        """Rows of a slice; those of the slice read before are gone."""
        rows = self.table[part]
        return torch.div(rows, self.lengths[part], out=self.scratch.take(*rows.shape))

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """A copy of the rows at index, as by a tensor's method."""
        return self.table.index_select(dim, index).div_(self.lengths.index_select(dim, index))


class UnitPool:
    """A pool's rows at unit length; positions 0..n-1 are the kept rows in ascending order.

    features: (N, D) tensor, array or memory map. ids: (n,) int64, the kept rows, or None for all. max_bytes: working
    memory; a copy of the unit rows stays resident where half of it holds them. A float32 tensor on the CPU whose rows
    are all kept is not copied (see UnitRows) and must not change. Reads every value once: NaN raises UserError.
    """

    def __init__(self, features: Features, ids: torch.Tensor | None, device: torch.device, max_bytes: float) -> None:
        self.features: Features = features.detach() if torch.is_tensor(features) else features
        self.ids, self.device = ids, device
        self.count = len(features) if ids is None else len(ids)
        self.dimensions = features.shape[1]
        self.resident: torch.Tensor | UnitRows | None = None  # (n, D)
        here = device.type == "cpu" and ids is None
        if here and torch.is_tensor(features) and features.device == device and features.dtype == torch.float32:
            rows = UnitRows(features.detach())
            for start, stop in self.spans(self.count):
                rows.lengths[start:stop] = lengths(read_rows(features, start, stop))
            self.resident = rows
            return
        fits = 4 * self.count * self.dimensions <= max_bytes / 2
        copy = torch.empty(self.count, self.dimensions, device=device) if fits else None
        for start, stop in self.spans(self.count):
            block = self._read(start, stop)
            if copy is not None:
                copy[start:stop] = block
        self.resident = copy

    @staticmethod
    def spans(count: int) -> list[tuple[int, int]]:
        """(start, stop) pairs over `count` rows: an eighth each, at least 1,024 and at most 16,384 rows."""
        step = min(SPAN_ROWS, max(MIN_SPAN_ROWS, -(-count // 8)))
        return [(start, min(count, start + step)) for start in range(0, count, step)]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Unit rows at positions start..stop, (B, D) float32 on the device; those read before may be gone."""
        return self._read(start, stop) if self.resident is None else self.resident[start:stop]

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Unit rows at positions (B,) on the CPU, (B, D); ascending ones read a memory map onwards."""
        if self.resident is not None:
            return self.resident.index_select(0, positions.to(self.device))
        return self._gather(positions if self.ids is None else self.ids[positions])

    def _read(self, start: int, stop: int) -> torch.Tensor:
        if self.ids is None:
            return normalise(read_rows(self.features, start, stop, self.device))
        return self._gather(self.ids[start:stop])

    def _gather(self, ids: torch.Tensor) -> torch.Tensor:
        features = self.features
        rows = features[ids.to(features.device)] if torch.is_tensor(features) else as_tensor(features[ids.numpy()])
        rows = rows.to(self.device, torch.float32)
        check_finite(rows, ids=ids)
        return normalise(rows)


def working_memory(max_memory: float | None, device: torch.device) -> int:
    """Bytes of working memory: max_memory in GB, or a quarter of what is free, shared by the machine's processes."""
    if max_memory is not None:
        return int(max_memory * 1e9)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return available_memory() // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def available_memory() -> int:
    """Bytes that programs can take on this machine: Linux's MemAvailable (free memory and caches that can go)."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as handle:
            lines = dict(line.split(":", 1) for line in handle)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # another system: all of its memory is the best guess there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def pool_device(features: Features, device: Device | None) -> torch.device:
    """The device to work on: the one asked for, else the tensor's own, else the CPU."""
    if device is not None:
        return torch.device(device)
    return features.device if torch.is_tensor(features) else torch.device("cpu")
