"""The one table of selection methods that commands, configurations and tests read."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from data_selection.activeft import ActiveFTConfig, select_activeft
from data_selection.baselines import (
    FarthestConfig,
    KMeansConfig,
    RandomConfig,
    select_farthest,
    select_kmeans,
    select_random,
)
from data_selection.bilaf import BiLAFConfig, select_bilaf


class Method(NamedTuple):
    """select(features, budget, *, config, labelled, excluded, seed, device, progress) -> (budget,) pool indices."""

    select: Callable
    config: type


METHODS = {
    "random": Method(select_random, RandomConfig),
    "fps": Method(select_farthest, FarthestConfig),
    "kmeans": Method(select_kmeans, KMeansConfig),
    "activeft": Method(select_activeft, ActiveFTConfig),
    "bilaf": Method(partial(select_bilaf, cores=select_activeft), BiLAFConfig),  # cores by ActiveFT, as in the paper
}
