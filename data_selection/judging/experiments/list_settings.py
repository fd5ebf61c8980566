"""The settings that a list depends on, so that lists of earlier versions are not taken for today's."""

import dataclasses
from typing import Any

from data_selection.methods.configs import ActiveFTConfig, Config, without_speed
from data_selection.methods.configs_clusters import ProbCoverConfig
from data_selection.methods.configs_design import SERVED, FacilityConfig
from data_selection.methods.table import Method


def told_settings(method: Method, config: Config, images: int, budget: int) -> dict[str, Any]:
    """For the record and digest of a list of `budget` of a pool's images: settings, and what came otherwise before."""
    settings = _told(config) | ({"cores": method.cores} if method.cores else {})
    cores = method.cores_config and without_speed(method.cores_config)
    if cores and cores != type(cores)():
        settings["cores_config"] = _told(cores)
    if isinstance(config, FacilityConfig) and config.clients < min(images, SERVED * budget):
        settings["clients"] = SERVED * budget
    return settings


def _told(config: Config) -> dict[str, Any]:
    """The settings; batches of ActiveFT were drawn otherwise, and ties of ProbCover went by the order of the rows."""
    settings = dataclasses.asdict(without_speed(config))
    if isinstance(config, ActiveFTConfig) and config.batch_size is not None:
        settings["batches"] = "released"
    if isinstance(config, ProbCoverConfig):
        settings["ties"] = "random"
    return settings
