"""Which image stands where in an epoch (a function of seed and epoch alone), and which process takes it."""

import itertools

import torch

from deit.samples.batches import Part, Step
from deit.samples.draws import ORDER, seed_of

REPEATS = 3  # of each image in an epoch, as in the released recipe
ROUND = 256  # the released sampler counts in this unit whatever the batch size is


def epoch_order(count: int, epoch: int, *, seed: int = 0, repeated: bool = True) -> torch.Tensor:
    """The training-set indices of one epoch in order, int64 (entries,).

    repeated: repeated augmentation: a fresh permutation, each image three times in a row, cut after
    min(3 count, 256 max(1, count // 256)) entries, so that about a third of a large set is seen per epoch and all of
    it over the epochs. Not repeated: a permutation of all images.

    Source: the released trainers' repeated-augmentation sampler. Deviations: it seeds with the epoch alone; it pads
    to a multiple of the processes (256 instead of 255 entries for 85 images on two) and truncates where they do not
    divide 256; and without a launcher it never changes the epoch, so that only 86 of 500 images are ever seen.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, ORDER, epoch))
    order = torch.randperm(count, generator=generator)
    if not repeated:
        return order
    return order.repeat_interleave(REPEATS)[: ROUND * max(1, count // ROUND)]


def split_rows(size: int, parts: int) -> list[torch.Tensor]:
    """Split the rows 0..size-1 of a global batch into `parts` mirror-symmetric int64 tensors of nearly equal length."""
    half = size // 2
    bounds = [half * part // parts for part in range(parts + 1)]
    result = []
    for part, (low, high) in enumerate(itertools.pairwise(bounds)):
        first = torch.arange(low, high)
        middle = torch.arange(half, half + size % 2) if part == parts - 1 else first[:0]
        result.append(torch.cat([first, middle, size - 1 - first.flip(0)]))
    return result


def plan_epoch(order: torch.Tensor, global_batch: int, batch: int, rank: int = 0, world_size: int = 1) -> list[Step]:
    """The Steps of one epoch for one process.

    order: epoch_order's result. global_batch: images per optimiser step, over all processes (the last step may have
    fewer). batch: images that one process handles at a time (one more where that makes pairs whole).
    """
    steps = []
    for start in range(0, len(order), global_batch):
        size = min(global_batch, len(order) - start)
        passes = -(-size // (batch * world_size))
        mine = split_rows(size, passes * world_size)[rank::world_size]
        parts = [Part(rows, order[start + rows], start + rows) for rows in mine if len(rows)]
        steps.append(Step(size, parts))
    return steps
