"""What the tests of ActiveFT share: rows that resemble features, and a selection with its losses."""

import torch
import torch.nn.functional as F

from data_selection.common.distributed import World
from data_selection.methods.activeft import select_activeft

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def clusters(count, dimensions, seed, noise=0.3):
    """Unit rows around a few directions, with quickly falling variances, as real features have."""
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / torch.arange(1, dimensions + 1)
    centres = torch.randn(12, dimensions, generator=generator) * scale
    rows = centres[torch.randint(12, (count,), generator=generator)]
    return F.normalize(rows + noise * torch.randn(count, dimensions, generator=generator) * scale, dim=1)


def trace(features, budget, **options):
    """(ids, losses) of a selection."""
    losses = []
    ids = select_activeft(features, budget, on_iteration=lambda step, lr, loss: losses.append(loss), **options)
    return ids.tolist(), losses
