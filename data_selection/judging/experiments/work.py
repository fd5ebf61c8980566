"""Compute an experiment's missing cells, in one process or beside others that do the same."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from data_selection.common.distributed import pick_device
from data_selection.common.errors import UserError
from data_selection.common.files import plain
from data_selection.common.subset_files import load_subset, save_subset
from data_selection.judging.experiments.cells import Cell, Kind, LoadedPool, Task
from data_selection.judging.experiments.store import Store
from data_selection.judging.quality import quality

PAUSE = 0.5  # seconds between looks at what other processes have finished


def missing(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """The cells without a record, one of those with the same digest."""
    known = store.known()
    return list({cell.digest: cell for cell in cells if cell.digest not in known}.values())


def compute(
    cells: Sequence[Cell], store: Store, pools: Mapping[str, LoadedPool], kinds: Mapping[str, Kind], device: str,
    each: Callable[[int], object] = lambda _: None,
) -> None:  # fmt: skip
    """Compute the cells that have no record yet, but those that another living process computes: wait for these.

    device: as pick_device takes it. each: called with the number of cells that are still missing, after every look.
    Every finished cell is on the disk when the next one begins, so that a kill costs one cell. Raises UserError where a
    cell cannot be computed.
    """
    while left := missing(cells, store):
        each(len(left))
        done = 0
        for cell in left:
            if cell.digest not in store.known() and store.claim(cell.digest):
                try:
                    if cell.digest not in store.known() and compute_one(cell, store, pools[cell.pool], kinds, device):
                        done += 1
                        each(len(missing(left, store)))
                finally:
                    store.release(cell.digest)
        if not done:
            time.sleep(PAUSE)
    each(0)


def compute_one(cell: Cell, store: Store, pool: LoadedPool, kinds: Mapping[str, Kind], device: str) -> bool:
    """Compute a claimed cell and write its record. Returns False where another process is choosing its list."""
    path = list_path(store.folder, cell)
    seconds = None
    if not path.exists():
        if not store.claim(cell.list_digest):
            return False
        try:
            if not path.exists():
                seconds = choose(cell, pool, path, device)
        finally:
            store.release(cell.list_digest)
    ids = torch.from_numpy(np.searchsorted(pool.rows, load_subset(path, len(pool.train)).numpy()))
    run = store.folder / "runs" / cell.digest[:16]
    task = Task(pool, ids.sort().values, path, cell.seed, cell.settings, run, device)
    told_by_list = json.loads(path.with_suffix(".provenance.json").read_text())
    began = time.monotonic()
    try:
        scores = kinds[cell.judged["kind"]].run(task)
    except UserError as error:
        raise UserError(f"{told(cell)}: {error}") from None
    store.append(
        {
            "digest": cell.digest, "pool": cell.pool, "method": cell.method, "evaluation": cell.evaluation,
            "budget": cell.budget, "seed": cell.seed, "scores": scores, "chosen": dict(cell.chosen),
            "judged": dict(cell.judged), "list": path.name, "seconds": round(time.monotonic() - began, 3),
            "seconds_choosing": seconds or told_by_list["seconds"],
            "quality": told_by_list.get("quality"),  # lists of earlier versions have none
            "versions": pool.provenance["versions"],
        }
    )  # fmt: skip
    shutil.rmtree(run, ignore_errors=True)
    return True


def choose(cell: Cell, pool: LoadedPool, path: Path, device: str) -> float:
    """Choose a cell's list and write it, with its record. Returns the seconds that the choice took."""
    began = time.monotonic()
    try:
        ids = cell.select.select(
            pool.features, cell.budget, config=cell.config, seed=cell.seed, device=pick_device(device)
        )
        seconds = round(time.monotonic() - began, 3)
        found = quality(pool.features, ids.cpu())._asdict()
    except UserError as error:
        raise UserError(f"{told(cell)}: {error}") from None
    rows = torch.from_numpy(pool.rows)[ids.cpu()]
    record = pool.provenance | {
        "method": cell.chosen["method"], "config": cell.chosen["config"], "seed": cell.seed, "budget": cell.budget,
        "imbalance": cell.chosen["imbalance"], "seconds": seconds,
        "quality": {name: None if math.isnan(value) else value for name, value in found.items()},
    }  # fmt: skip
    save_subset(path, rows, record)
    return seconds


def list_path(folder: Path, cell: Cell) -> Path:
    """The file of a cell's list: readable, and told apart from other settings by the digest."""
    name = plain(f"{cell.pool}_{cell.chosen['method']}")
    return folder / "lists" / f"{name}_{cell.budget}_seed_{cell.seed}_{cell.list_digest[:12]}.json"


def told(cell: Cell) -> str:
    """A cell in words."""
    return f"{cell.pool}, {cell.method}, {cell.budget} labels, seed {cell.seed}, {cell.evaluation}"
