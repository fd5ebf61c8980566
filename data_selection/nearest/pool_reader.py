"""Unit features of a pool, read in fixed spans: resident where memory allows, else from the array or memory map."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data_selection.common.kinds import Device, Features
from data_selection.nearest.similarity import about, normalise, read_rows, take_rows

SPAN_ROWS = 16384  # rows whose sums are added up together; never depends on the memory limit, so results do not either
MIN_SPAN_ROWS = 1024
CGROUPS = {  # controller: its folder, and the names of the limit, of what is used and of the part of it that can go
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class UnitPool:
    """A pool's rows at unit length; positions 0..n-1 are the kept rows in ascending order.

    features: (N, D) tensor, array or memory map. ids: (n,) int64, the kept rows, or None for all. max_bytes: working
    memory; a copy of the unit rows stays resident where half of it holds them. centre: (D,), taken off the unit rows,
    which are brought to unit length again (similarity.about), or None. own: spans that this one of several processes
    reads again and again; on a GPU, and where all rows do not fit, a copy of these stays instead. Reads every value
    once: NaN raises UserError.
    """

    def __init__(
        self,
        features: Features,
        ids: torch.Tensor | None,
        device: torch.device,
        max_bytes: float,
        centre: torch.Tensor | None = None,
        own: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.features: Features = features.detach() if torch.is_tensor(features) else features
        self.ids, self.device = ids, device
        self.centre = None if centre is None else centre.to(device)
        self.count = len(features) if ids is None else len(ids)
        self.dimensions = features.shape[1]
        most = max_bytes / 2 / (4 * self.dimensions)  # rows
        whole = self.count <= most and (own is None or device.type == "cpu")
        copy = torch.empty(self.count, self.dimensions, device=device) if whole else None
        mine = set(own or ()) if copy is None and sum(stop - start for start, stop in own or ()) <= most else set()
        self.kept: dict[tuple[int, int], torch.Tensor] = {}
        for start, stop in self.spans(self.count):
            block = self._read(start, stop)
            if copy is not None:
                copy[start:stop] = block
            elif (start, stop) in mine:
                self.kept[start, stop] = block
        self.resident = copy  # (n, D)

    @staticmethod
    def spans(count: int) -> list[tuple[int, int]]:
        """(start, stop) pairs over `count` rows: an eighth each, at least 1,024 and at most 16,384 rows."""
        step = min(SPAN_ROWS, max(MIN_SPAN_ROWS, -(-count // 8)))
        return [(start, min(count, start + step)) for start in range(0, count, step)]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Unit rows at positions start..stop, (B, D) float32 on the device, not to be written to."""
        if self.resident is not None:
            return self.resident[start:stop]
        kept = self.kept.get((start, stop))
        return self._read(start, stop) if kept is None else kept

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Unit rows at positions (B,) on the CPU, (B, D); ascending ones read a memory map onwards."""
        if self.resident is not None:
            return self.resident.index_select(0, positions.to(self.device))
        return self._gather(positions if self.ids is None else self.ids[positions])

    def _read(self, start: int, stop: int) -> torch.Tensor:
        if self.ids is None:
            return self._unit(read_rows(self.features, start, stop, self.device))
        return self._gather(self.ids[start:stop])

    def _unit(self, rows: torch.Tensor) -> torch.Tensor:
        return normalise(rows) if self.centre is None else about(rows, self.centre)

    def _gather(self, ids: torch.Tensor) -> torch.Tensor:
        return self._unit(take_rows(self.features, ids, self.device))


def unit_mean(features: Features, device: torch.device) -> torch.Tensor:
    """The mean of a pool's unit rows, (D,) float32 on the device, summed up in float64."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for start, stop in UnitPool.spans(len(features)):
        total += normalise(read_rows(features, start, stop, device)).double().sum(0)
    return (total / len(features)).float()


UNTOLD = 4 << 30  # bytes: what a machine is taken to have that does not say


def working_memory(max_memory: float | None, device: torch.device) -> int:
    """Bytes of working memory: max_memory in GB, or a quarter of what is free."""
    return own_memory(device) // 4 if max_memory is None else int(max_memory * 1e9)


def own_memory(device: torch.device) -> int:
    """Bytes that this process can take on the device; the machine's processes share what is free of a CPU's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def available_memory() -> int:
    """Bytes that programs can take here: Linux's MemAvailable (free memory and caches that can go), or less.

    Less where a container's limit leaves less.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # another system: all of its memory is the best guess there is
        told = hasattr(os, "sysconf")  # Windows does not say
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if told else UNTOLD
    return min([free, *container_memory()])


def container_memory(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that are left of every memory limit on this process's control groups, of version 2 and 1.

    Within a container the path that the kernel names may not be there, but its own group is then the root.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # another system
        return
    for _, controllers, path in lines:
        if controllers in ("", "memory"):
            top, limit, used, cached = CGROUPS[controllers]
            group = Path(path.lstrip("/"))
            for folder in (root / top / part for part in (group, *group.parents)):
                with contextlib.suppress(OSError, ValueError):  # no limit: no file, or `max`
                    most, taken = (int((folder / name).read_text()) for name in (limit, used))
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield max(0, most - taken + int(stat.get(cached, 0)))


def pool_device(features: Features, device: Device | None) -> torch.device:
    """The device to work on: the one asked for, else the tensor's own, else the CPU."""
    if device is not None:
        return torch.device(device)
    return features.device if torch.is_tensor(features) else torch.device("cpu")
