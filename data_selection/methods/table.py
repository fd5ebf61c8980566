"""The one table of selection methods that commands, configurations and tests read. Imports nothing slow."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from data_selection.methods.configs import (
    ActiveFTConfig,
    BiLAFConfig,
    Config,
    FarthestConfig,
    KMeansConfig,
    RandomConfig,
)
from data_selection.methods.configs_clusters import (
    HerdingConfig,
    ProbCoverConfig,
    StratifiedConfig,
    TypiClustConfig,
    ZCoreConfig,
)
from data_selection.methods.configs_design import (
    FacilityConfig,
    HalfConfig,
    MarginClustersConfig,
    MarginConfig,
    MaxHerdingConfig,
    UncertaintyHerdingConfig,
    VOptimalConfig,
    WeightedConfig,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Method:
    """A row: the config's class, and where the functions are (`module.function` below data_selection.methods).

    cores: of a method that builds on other samples, the function that chooses those, by cores_config where it is not
    that function's default. rounds: whether it asks a model
    that was fitted to labels (`probabilities=`, (N, C)). smoothed: whether it takes `smoothed=`, smoothed features.
    """

    config: type[Config]
    home: str
    cores: str | None = None
    cores_config: Config | None = None
    rounds: bool = False
    smoothed: bool = False

    @property
    def select(self) -> "Callable[..., Tensor]":
        """The function: (features, budget, *, config, labelled, excluded, seed, device, progress) -> (budget,) ids."""
        function = find(self.home)
        if not self.cores:
            return function
        cores = find(self.cores)
        return partial(function, cores=partial(cores, config=self.cores_config) if self.cores_config else cores)


def find(home: str) -> "Callable[..., Tensor]":
    """The function of a `module.function`, imported on first use: that takes seconds, which --help must not wait."""
    module, _, name = home.rpartition(".")
    function: Callable[..., Tensor] = getattr(importlib.import_module(f"data_selection.methods.{module}"), name)
    return function


METHODS = {
    "random": Method(RandomConfig, "random_choice.select_random"),
    "fps": Method(FarthestConfig, "farthest.select_farthest"),
    "kmeans": Method(KMeansConfig, "kmeans.select_kmeans"),
    "stratified": Method(StratifiedConfig, "stratified.select_stratified"),
    "typiclust": Method(TypiClustConfig, "typiclust.select_typiclust"),
    "probcover": Method(ProbCoverConfig, "probcover.select_probcover"),
    "herding": Method(HerdingConfig, "herding.select_herding"),
    "zcore": Method(ZCoreConfig, "zcore.select_zcore"),
    "activeft": Method(ActiveFTConfig, "activeft.select_activeft"),
    "bilaf": Method(BiLAFConfig, "bilaf.selection.select_bilaf", "activeft.select_activeft"),  # cores as in the paper
    "facility": Method(FacilityConfig, "design.facility.select_facility"),
    "maxherding": Method(MaxHerdingConfig, "design.facility.select_maxherding"),
    "voptimal": Method(VOptimalConfig, "design.voptimal.select_voptimal", smoothed=True),
    "wvoptimal": Method(WeightedConfig, "design.doubt.select_weighted_voptimal", rounds=True, smoothed=True),
    "margin": Method(MarginConfig, "design.doubt.select_margin", rounds=True),
    "margin-clusters": Method(MarginClustersConfig, "design.doubt.select_margin_clusters", rounds=True, smoothed=True),
    "herding-uncertainty": Method(UncertaintyHerdingConfig, "design.doubt.select_uncertainty_herding", rounds=True),
    "half": Method(HalfConfig, "design.doubt.select_half", rounds=True, smoothed=True),
}

LABEL_FREE = {name: method for name, method in METHODS.items() if not method.rounds}  # which need no model
