"""Random choice, the baseline beside which every other method is judged."""

import random

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.progress import OpenBar
from data_selection.methods.configs import RandomConfig


def select_random(
    features: Features,
    budget: int,
    *,
    config: RandomConfig = RandomConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """Draw `budget` samples uniformly without replacement; (budget,) int64 pool indices, ascending."""
    labelled, candidates = check_request(features, budget, labelled, excluded)
    chosen = torch.tensor(random.Random(seed).sample(candidates.tolist(), budget)).sort().values
    return check_selection(chosen, budget, len(features), labelled, excluded)
