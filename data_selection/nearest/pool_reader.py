"""Unit features of a pool, read in fixed spans: resident where memory allows, else from the array or memory map."""

import os

import torch

from data_selection.common.checks import check_finite
from data_selection.nearest.narrow import Scratch
from data_selection.nearest.similarity import lengths, normalise, read_rows

SPAN_ROWS = 16384  # rows whose sums are added up together; never depends on the memory limit, so results do not either
MIN_SPAN_ROWS = 1024


class UnitRows:
    """A float32 table on the CPU as rows of unit length, which are divided by their lengths when they are read.

    To copy the table at unit length would save a fiftieth of ActiveFT's time (50,000 x 384, 1,000 centroids).
    """

    def __init__(self, table):
        self.table, self.shape = table, table.shape
        self.lengths = table.new_empty(len(table), 1)
        self.scratch = Scratch(torch.float32)

    def __getitem__(self, part):
        """Rows of a slice; those of the slice read before are gone."""
        rows = self.table[part]
        return torch.div(rows, self.lengths[part], out=self.scratch.take(*rows.shape))

    def index_select(self, dim, index):
        """A copy of the rows at index, as by a tensor's method."""
        return self.table.index_select(dim, index).div_(self.lengths.index_select(dim, index))


class UnitPool:
    """A pool's rows at unit length; positions 0..n-1 are the kept rows in ascending order.

    features: (N, D) tensor, array or memory map. ids: (n,) int64, the kept rows, or None for all. max_bytes: working
    memory; a copy of the unit rows stays resident where half of it holds them. A float32 tensor on the CPU whose rows
    are all kept is not copied (see UnitRows) and must not change. Reads every value once: NaN raises UserError.
    """

    def __init__(self, features, ids, device, max_bytes):
        self.features = features.detach() if torch.is_tensor(features) else features
        self.ids, self.device = ids, device
        self.count = len(features) if ids is None else len(ids)
        self.dimensions = features.shape[1]
        self.resident = None  # (n, D) tensor or UnitRows
        here = torch.is_tensor(features) and features.device == device and device.type == "cpu"
        if here and ids is None and features.dtype == torch.float32:
            self.resident = UnitRows(self.features)
            for start, stop in self.spans(self.count):
                self.resident.lengths[start:stop] = lengths(read_rows(features, start, stop))
            return
        if 4 * self.count * self.dimensions <= max_bytes / 2:
            self.resident = torch.empty(self.count, self.dimensions, device=device)
        for start, stop in self.spans(self.count):
            rows = self._read(start, stop)
            if self.resident is not None:
                self.resident[start:stop] = rows

    @staticmethod
    def spans(count):
        """(start, stop) pairs over `count` rows: an eighth each, at least 1,024 and at most 16,384 rows."""
        step = min(SPAN_ROWS, max(MIN_SPAN_ROWS, -(-count // 8)))
        return [(start, min(count, start + step)) for start in range(0, count, step)]

    def read(self, start, stop):
        """Unit rows at positions start..stop, (B, D) float32 on the device; those read before may be gone."""
        return self._read(start, stop) if self.resident is None else self.resident[start:stop]

    def take(self, positions):
        """Unit rows at positions (B,) on the CPU, (B, D); ascending ones read a memory map onwards."""
        if self.resident is not None:
            return self.resident.index_select(0, positions.to(self.device))
        return self._gather(positions if self.ids is None else self.ids[positions])

    def _read(self, start, stop):
        if self.ids is None:
            return normalise(read_rows(self.features, start, stop, self.device))
        return self._gather(self.ids[start:stop])

    def _gather(self, ids):
        rows = self.features[ids.to(self.features.device) if torch.is_tensor(self.features) else ids.numpy()]
        rows = torch.as_tensor(rows).to(self.device, torch.float32)
        check_finite(rows, ids=ids)
        return normalise(rows)


def working_memory(max_memory, device):
    """Bytes of working memory: max_memory in GB, or a quarter of what is free, shared by the machine's processes."""
    if max_memory is not None:
        return int(max_memory * 1e9)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return available_memory() // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def available_memory():
    """Bytes that programs can take on this machine: Linux's MemAvailable (free memory and caches that can go)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            lines = dict(line.split(":", 1) for line in handle)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # another system: all of its memory is the best guess there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def pool_device(features, device):
    """The device to work on: the one asked for, else the tensor's own, else the CPU."""
    if device is not None:
        return torch.device(device)
    return features.device if torch.is_tensor(features) else torch.device("cpu")
