"""Farthest-point choice: k-center greedy."""

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar
from data_selection.methods.configs import FarthestConfig
from data_selection.methods.starts import farthest_point


@full_float32()
def select_farthest(
    features: Features,
    budget: int,
    *,
    config: FarthestConfig = FarthestConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """k-center greedy: again and again the sample farthest from all chosen; (budget,) int64, in order of choice.

    labelled samples count as chosen; without any, the first sample is drawn. Distances are between unit features.
    Source: Sener and Savarese 2018 (the greedy part); the `fps` start of the released ActiveFT.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    chosen = farthest_point(features, budget, candidates, labelled, config.distance, seed, device, progress)
    return check_selection(chosen, budget, len(features), labelled, excluded)
