"""One distinct sample per centroid, without sorting the pool for each (ActiveFT, section 3.3)."""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from data_selection.common.distributed import World
from data_selection.nearest.narrow import COARSE_FROM, narrow_is_faster, settle, wide_pairs
from data_selection.nearest.screening import Screen
from data_selection.nearest.similarity import block_rows

Blocks = Callable[[int], Iterable[tuple[int, torch.Tensor]]]  # of at most so many rows: (first, rows)


def distinct_nearest(
    blocks: Blocks, units: torch.Tensor, barred: torch.Tensor, world: World, max_bytes: float
) -> torch.Tensor:
    """Centroid after centroid takes its most similar sample that no earlier one took; returns (K,) int64 on the CPU.

    blocks: called with a row count, yields (first, rows) of this process's part of the pool in ascending order: rows
    (B, D) float32 unit vectors, `first` the index of the first. units: (K, D) unit centroids in the order in which
    they choose. barred: (N,) bool, samples that nobody may take. Similarities are compared in float64 (see
    similarity.py); of equal ones the lowest index is taken.

    The released programs sort the pool for every centroid. Here every centroid proposes to its favourite; a sample
    holds the earliest centroid that asked and turns the others away, who then propose to their best sample that no
    earlier centroid holds, until nobody is turned away. A sample's holder only ever becomes earlier, so no proposal
    that is skipped could have been accepted, and the one stable outcome is that of choosing in turn.
    """
    count = len(units)
    holder = torch.where(barred.to(units.device), -1, count)  # (N,) who holds each sample; `count`: nobody
    choice = torch.zeros(count, dtype=torch.int64, device=units.device)
    asking = torch.arange(count, device=units.device)
    while len(asking):
        choice[asking] = favourites(blocks, units[asking], asking, holder, world, max_bytes)
        holder.scatter_reduce_(0, choice[asking], asking, "amin")
        asking = (holder[choice] != torch.arange(count, device=units.device)).nonzero()[:, 0]
    return choice.cpu()


def favourites(
    blocks: Blocks, units: torch.Tensor, turns: torch.Tensor, holder: torch.Tensor, world: World, max_bytes: float
) -> torch.Tensor:
    """The most similar sample of every centroid among those that no earlier centroid holds, (P,) pool indices.

    units: (P, D); turns: (P,) the place of each in the order of choice. One product per block finds the pairs that can
    beat a centroid's best so far; float64 decides.
    """
    best = torch.full((len(units),), -torch.inf, dtype=torch.float64, device=units.device)
    index = torch.full((len(units),), len(holder), device=units.device)
    screen = None
    if units.device.type == "cpu" and len(units) >= COARSE_FROM and narrow_is_faster():
        screen = Screen(units)
    for first, rows in blocks(block_rows((0.6 if screen else 3) * len(units) + 2 * units.shape[1], max_bytes)):
        held = holder[first : first + len(rows)]  # (B,)
        taken = (held < turns.max()).any()
        find = screen.narrow(rows).pairs if screen else partial(wide_pairs, units=rows)
        parts = [slice(0, len(units))]
        while parts:
            part = parts.pop()
            barred = held < turns[part, None] if taken else None  # (p, B)
            pairs = find(units[part], best=best[part].float(), barred=barred)
            if pairs is None:  # so many are close that memory counts
                middle = (part.start + part.stop) // 2
                parts += [slice(middle, part.stop), slice(part.start, middle)]
                continue
            which, row = pairs
            free = held[row] >= turns[part][which]
            settle(units[part], rows, which[free], row[free], best[part], index[part], first)
    return merge(best, index, world)


def merge(best: torch.Tensor, index: torch.Tensor, world: World) -> torch.Tensor:
    """The winner over the ranks: highest value, then lowest index."""
    if world.size == 1:
        return index
    values = best.new_zeros(world.size, len(best))
    values[world.rank] = best.clamp(min=-2)  # a sum over ranks must stay finite; similarities are at least -1
    indices = index.new_zeros(world.size, len(best))
    indices[world.rank] = index
    world.sum_(values)
    world.sum_(indices)
    indices[values < values.amax(0)] = torch.iinfo(torch.int64).max
    return indices.amin(0)
