"""Smoothed rows of a pool for the methods that look at them."""

import torch

from data_selection.common.kinds import Features
from data_selection.common.progress import OpenBar
from data_selection.nearest.graph import NEIGHBOURS, build_graph, nearest_neighbours, smooth
from data_selection.nearest.similarity import normalise, read_rows

STEPS = 2
LARGE = 200_000  # rows above which a graph takes too long to be made unasked


def smoothed_rows(
    features: Features, steps: int | None, device: torch.device, progress: OpenBar | None
) -> torch.Tensor | None:
    """(N, D) float32 unit rows, averaged `steps` times over the pool's graph; None where there is nothing to smooth.

    The rows are taken about their mean, as the smoothed probe takes them. steps: None: 2, and 0 in pools above LARGE.
    """
    if steps is None:
        steps = STEPS if len(features) <= LARGE else 0
    if steps == 0 or len(features) < 2:
        return None
    rows = normalise(read_rows(features, 0, len(features), device))
    rows = normalise(rows - rows.double().mean(0).float())
    graph = build_graph(*nearest_neighbours(rows, NEIGHBOURS, progress=progress))
    return smooth(rows, graph, steps)[0]
