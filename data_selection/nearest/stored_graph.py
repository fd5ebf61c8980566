"""A pool's nearest neighbours kept beside its feature file: looked up once, mended where images came or went.

X.neighbours.npz holds, for each row of X.npy, its neighbours and similarities, the point that all rows are seen from,
and a hash of the row; X.neighbours.json says how many there are of what. Unfinished work lies in X.neighbours.partial.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_selection.common.distributed import World, on_main
from data_selection.common.feature_table import FeatureTable
from data_selection.common.files import atomic_write, check_writable, one_at_a_time
from data_selection.common.progress import open_bar
from data_selection.nearest.graph import SPREAD_NEIGHBOURS, Finder, check_neighbours, nearest_neighbours
from data_selection.nearest.neighbour_files import FORMAT, Neighbours, neighbours_file, read_neighbours, row_hashes
from data_selection.nearest.pool_reader import pool_device, unit_mean, working_memory
from data_selection.nearest.similarity import exact_dot

DRIFT = 0.02  # of the mean of the unit rows: nearer ones keep the point that a stored graph was seen from
WORTH = 0.7  # of a fresh graph's products: mending one must need fewer
BLOCK_PRODUCTS = 2.5e11  # of two numbers: what is lost by a kill, some seconds' work
REQUEST = "request.json"  # among unfinished blocks, what they are of
FEWEST_BLOCKS, LEAST_ROWS = 16, 1024  # so that several processes have work, and each of them enough to be worth it


def pool_graph(
    table: FeatureTable,
    k: int,
    *,
    world: World | None = None,
    max_bytes: int | None = None,
    progress: Callable[..., Any] | None = None,
) -> Neighbours:
    """The k nearest neighbours of every row of a feature table, kept beside its file and found there the next time.

    At least SPREAD_NEIGHBOURS are kept: rounds of choosing ask for fewer than the training that follows them.

    Rows are compared at unit length about the mean of the unit rows. Where rows came, went or changed since, only what
    that touches is looked up again (while the mean stays within DRIFT, and the rest has kept its order): the result is
    that of a fresh search about the stored mean. Ranks share the work, and all get the result; a killed search goes on
    with the blocks that it lacks. A table without a file, or in a folder that cannot be written, is searched and not
    kept. max_bytes, progress, errors: as for graph.nearest_neighbours.
    """
    check_neighbours(k)
    world = world or World(0, 1, pool_device(table.features, None))
    hashes = row_hashes(table.features)
    if (stored := _stored(table, hashes, k, world)) is not None:
        on_main(world, lambda: _tidy(table, world))
        return stored
    path = on_main(world, lambda: _place(table, world))
    if path is None:
        plan = _planned(table, hashes, k, world)
        found = nearest_neighbours(
            table.features, k, world=world, max_bytes=max_bytes, centre=plan.centre, progress=progress
        )
        return Neighbours(found[0].cpu(), found[1].cpu(), plan.centre, hashes)
    with contextlib.ExitStack() as ours:
        # of two commands that start together one looks up, the other waits and finds
        on_main(world, lambda: ours.enter_context(one_at_a_time(path, world.say)))
        if (stored := _stored(table, hashes, k, world)) is not None:
            return stored
        plan = _planned(table, hashes, k, world)
        if plan.old is not None:
            world.say(f"{path.name}: {plan.told()}")
        width = max(k, SPREAD_NEIGHBOURS) if plan.old is None else plan.old.index.shape[1]
        work = _Work(table.features, hashes, plan, width, path, world, max_bytes)
        on_main(world, work.prepare)
        work.run(progress)
        world.barrier()
        on_main(world, work.finish)
        done = read_neighbours(path)
        assert done is not None
        return done.first(k)


def _stored(table: FeatureTable, hashes: np.ndarray, k: int, world: World) -> Neighbours | None:
    """The k nearest neighbours as kept beside the table's file, where they are those of its rows today."""
    box: list[Neighbours | None] = []

    def look() -> bool:
        stored = None if table.path is None else read_neighbours(neighbours_file(table.path))
        serves = stored is not None and np.array_equal(stored.hashes, hashes)
        box.append(stored if serves and stored and stored.index.shape[1] >= min(k, len(hashes) - 1) else None)
        return box[0] is not None

    if not on_main(world, look):  # rank 0 tells: another command may bring it between two ranks' looks
        return None
    if not box:
        look()
    assert box[0] is not None
    return box[0].first(k)


def _planned(table: FeatureTable, hashes: np.ndarray, k: int, world: World) -> "_Plan":
    stored = None if table.path is None else read_neighbours(neighbours_file(table.path))
    return _plan(stored, hashes, unit_mean(table.features, world.device).cpu(), k)


def _tidy(table: FeatureTable, world: World) -> None:
    """Remove the blocks of a finished graph that a kill has left; unfinished ones may be another process's."""
    assert table.path is not None
    path = neighbours_file(table.path)
    blocks = path.with_suffix(".partial")
    if (done := _request(blocks / REQUEST)) is not None and done == _request(path.with_suffix(".json")):
        with contextlib.suppress(OSError), one_at_a_time(path, world.say):  # another process may be removing them
            shutil.rmtree(blocks)


def _request(path: Path) -> object:
    """What a file says that blocks are of; None where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _place(table: FeatureTable, world: World) -> Path | None:
    """Where the neighbours go; None where nothing is to be kept, with a line where the folder cannot be written."""
    features = table.path
    if features is None or len(table) < 2:  # a single row has none: the search says so
        return None
    path = neighbours_file(features)
    try:
        return check_writable(path)
    except OSError as error:  # no right to write, a disk that is mounted to be read alone, or a full one
        world.say(f"the neighbours of {features} are not kept beside it ({error}): they are looked up again next time")
        return None


@dataclass(frozen=True)
class _Plan:
    """What is to be looked up: `whole` rows among all; `intact` ones among the `added` alone, beside their old ones.

    place: (M,) int64, what a stored row is called today, -1 where it is gone. All empty without an old graph.
    """

    old: Neighbours | None
    centre: torch.Tensor
    whole: torch.Tensor
    intact: torch.Tensor
    added: torch.Tensor
    place: torch.Tensor

    def told(self) -> str:
        gone = int((self.place < 0).sum())
        return f"{len(self.added)} rows are new and {gone} gone: {len(self.whole)} of all are looked up anew"


def _plan(stored: Neighbours | None, hashes: np.ndarray, mean: torch.Tensor, k: int) -> _Plan:
    """A plan that mends the stored neighbours, or, where that does not pay or would not be the same, one without."""
    none, every = torch.zeros(0, dtype=torch.int64), torch.arange(len(hashes))
    fresh = _Plan(None, mean, every, none, none, none)
    if stored is None or stored.centre.shape != mean.shape or stored.index.shape[1] < k:
        return fresh
    if (stored.centre - mean).norm() > DRIFT:
        return fresh
    place = _places(stored.hashes, hashes)
    kept = place[place >= 0]
    if len(kept) == 0 or bool((kept.diff() < 0).any()):
        return fresh
    whole = torch.zeros(len(hashes), dtype=torch.bool)
    lost = (place[stored.index] < 0).any(1)  # a neighbour is gone: who follows the last is not known
    whole[place[lost & (place >= 0)]] = True
    fresh_row = torch.ones(len(hashes), dtype=torch.bool)
    fresh_row[kept] = False
    added = fresh_row.nonzero()[:, 0]
    whole |= fresh_row
    intact = (~whole).nonzero()[:, 0]
    if int(whole.sum()) * len(hashes) + len(intact) * len(added) > WORTH * len(hashes) ** 2:
        return fresh
    return _Plan(stored, stored.centre, whole.nonzero()[:, 0], intact, added, place)


def _places(before: np.ndarray, after: np.ndarray) -> torch.Tensor:
    """What each row of a pool is called today, (M,) int64, -1 where it is gone; of equal rows the n-th is the n-th."""
    found: dict[bytes, list[int]] = {}
    for place in range(len(after) - 1, -1, -1):
        found.setdefault(after[place].tobytes(), []).append(place)
    result = torch.full((len(before),), -1)
    for number, row in enumerate(before):
        if same := found.get(row.tobytes()):
            result[number] = same.pop()
    return result


class _Work:
    """The blocks of a plan, each a file in X.neighbours.partial, made by any process."""

    def __init__(
        self, features: Any, hashes: np.ndarray, plan: _Plan, k: int, path: Path, world: World, max_bytes: int | None
    ) -> None:
        self.features, self.hashes, self.plan, self.k, self.path, self.world = features, hashes, plan, k, path, world
        self.limit = working_memory(None, world.device) if max_bytes is None else max_bytes
        self.folder = path.with_suffix(".partial")
        count, dimensions = features.shape
        rows = min(int(BLOCK_PRODUCTS / (count * dimensions)), -(-count // FEWEST_BLOCKS))
        rows = max(LEAST_ROWS, rows)
        parts = [("whole", ids) for ids in plan.whole.split(rows) if len(ids)]
        parts += [("intact", ids) for ids in plan.intact.split(rows) if len(ids) and len(plan.added)]
        self.blocks = [(f"{number:06}.npz", kind, ids) for number, (kind, ids) in enumerate(parts)]
        digest = hashlib.sha256(hashes.tobytes() + plan.centre.numpy().tobytes())
        if plan.old is not None:
            digest.update(plan.old.hashes.tobytes())
        self.request = {"format": FORMAT, "k": k, "rows": count, "block": rows, "digest": digest.hexdigest()}

    def prepare(self) -> None:
        """Make the folder; leave in it what a killed run of the same request has done."""
        told = self.folder / REQUEST
        if _request(told) != self.request and self.folder.exists():
            shutil.rmtree(self.folder)
        with atomic_write(told, "w") as handle:
            json.dump(self.request, handle)
        done = sum((self.folder / name).exists() for name, _, _ in self.blocks)
        if done:
            self.world.say(f"{self.path.name}: going on with {done} of {len(self.blocks)} blocks done")

    def run(self, progress: Callable[..., Any] | None) -> None:
        """Make those of the missing blocks that are this process's."""
        waiting = [block for block in self.blocks if not (self.folder / block[0]).exists()]
        self.world.barrier()  # all have looked before the first one writes
        mine = waiting[self.world.rank :: self.world.size]
        finders: dict[str, Finder] = {}
        with open_bar(progress, sum(len(ids) for _, _, ids in mine), "neighbours", "row") as bar:
            for name, kind, ids in mine:
                if kind not in finders:
                    finders[kind] = self.finder(kind)
                finder, found = finders[kind], []
                for some in ids.split(finder.step):
                    both = self.mended(finder, some) if kind == "intact" else finder.find(some)
                    found.append([part.cpu() for part in both])
                    bar.update(len(some))
                index, similarity = (torch.cat(part).numpy() for part in zip(*found, strict=True))
                with atomic_write(self.folder / name) as handle:
                    np.savez(handle, index=index, similarity=similarity)

    def finder(self, kind: str) -> Finder:
        """Looks among all rows, or for intact ones among those that were added."""
        device, centre = self.world.device, self.plan.centre
        if kind == "whole":
            return Finder(self.features, self.k, device, self.limit, centre=centre)
        added = self.features[self.plan.added.numpy()]
        return Finder(added, self.k, device, self.limit, self.features, centre)

    def mended(self, finder: Finder, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index, similarity), (B, k) each, of rows ids (B,) among their neighbours, all there, and the added."""
        index, similarity = self.kept(ids)
        place, new = (part.cpu() for part in finder.find(ids))
        near = (new[:, 0] >= similarity[:, -1]).nonzero()[:, 0]
        if len(near):
            rivals = torch.cat([index[near], self.plan.added[place[near]]], 1)  # (b, k + k')
            asking = finder.asking.take(ids[near]).repeat_interleave(rivals.shape[1], 0)
            value = exact_dot(asking, finder.asking.take(rivals.flatten())).view(rivals.shape).cpu()
            order = rivals.argsort(1)
            order = order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, : self.k]
            index[near], similarity[near] = rivals.gather(1, order), value.gather(1, order).float()
        return index, similarity

    def kept(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index, similarity), (B, k) each, as they were, by today's names, of rows ids (B,)."""
        plan = self.plan
        assert plan.old is not None
        before = torch.zeros(len(self.hashes), dtype=torch.int64)  # of those that stayed alone
        stayed = (plan.place >= 0).nonzero()[:, 0]
        before[plan.place[stayed]] = stayed
        return plan.place[plan.old.index[before[ids]]], plan.old.similarity[before[ids]]

    def finish(self) -> None:
        """Put the blocks together, in a file that has its name when it is whole."""
        count, k = len(self.hashes), min(self.k, len(self.hashes) - 1)
        index = np.zeros((count, k), dtype=np.int32 if count < 2**31 else np.int64)
        similarity = np.zeros((count, k), dtype=np.float32)
        if len(self.plan.intact):
            index[self.plan.intact.numpy()], similarity[self.plan.intact.numpy()] = self.kept(self.plan.intact)
        for name, _, ids in self.blocks:
            with np.load(self.folder / name, allow_pickle=False) as block:
                index[ids.numpy()], similarity[ids.numpy()] = block["index"], block["similarity"]
        with atomic_write(self.path.with_suffix(".json"), "w") as handle:  # first: by it _tidy knows finished blocks
            json.dump(self.request, handle, indent=1)
        with atomic_write(self.path) as handle:
            np.savez(
                handle, format=FORMAT, index=index, similarity=similarity, centre=self.plan.centre.numpy(),
                hashes=self.hashes,
            )  # fmt: skip
        shutil.rmtree(self.folder)
