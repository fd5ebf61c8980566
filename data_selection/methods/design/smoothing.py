"""Smoothed rows of a pool for the methods that look at them."""

import torch

from data_selection.common.kinds import Features
from data_selection.common.progress import OpenBar
from data_selection.nearest.graph import NEIGHBOURS, build_graph, nearest_neighbours, smooth
from data_selection.nearest.similarity import normalise, take_rows

STEPS = 2
LARGE = 200_000  # rows above which a graph takes too long to be made unasked


def smoothed_rows(
    features: Features, kept: torch.Tensor, steps: int | None, device: torch.device, progress: OpenBar | None
) -> torch.Tensor | None:
    """(N, D) float32 unit rows, averaged `steps` times over the pool's graph; None where there is nothing to smooth.

    kept: (n,) ascending ids of the rows that make the pool; the others are 0, and no row is averaged over them. The
    rows are taken about their mean, as the smoothed probe takes them. steps: None: 2, and 0 in pools above LARGE.
    """
    if steps is None:
        steps = STEPS if len(kept) <= LARGE else 0
    if steps == 0 or len(kept) < 2:
        return None
    rows = normalise(take_rows(features, kept, device))
    rows = normalise(rows - rows.double().mean(0).float())
    graph = build_graph(*nearest_neighbours(rows, NEIGHBOURS, progress=progress))
    smoothed = smooth(rows, graph, steps)[0]
    if len(kept) == len(features):
        return smoothed
    return torch.zeros(features.shape, device=device).index_copy_(0, kept.to(device), smoothed)
