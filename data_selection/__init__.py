"""Choose which images to annotate, in one shot and without labels. The public names below are imported when used."""

import importlib
from typing import Any

# Imported on first use: `--help` of an entry must not wait seconds for torch.
_HOMES = {
    "FeatureTable": "common.feature_table",
    "load_features": "common.feature_table",
    "save_features": "common.feature_table",
    "labels_like": "common.feature_table",
    "METHODS": "methods.table",
    "ActiveFTConfig": "methods.configs",
    "select_activeft": "methods.activeft",
    "BiLAFConfig": "methods.configs",
    "select_bilaf": "methods.bilaf.selection",
    "select_random": "methods.random_choice",
    "select_farthest": "methods.farthest",
    "select_kmeans": "methods.kmeans",
    "select_stratified": "methods.stratified",
    "select_typiclust": "methods.typiclust",
    "select_probcover": "methods.probcover",
    "select_herding": "methods.herding",
    "select_zcore": "methods.zcore",
    "quality": "judging.quality",
    "advise": "judging.advice",
    "knn_accuracy": "judging.evaluation",
    "probe_accuracy": "judging.evaluation",
    "judge_subset": "judging.evaluation",
    "fit_smoothed": "judging.smoothed",
    "calibration_error": "judging.calibration",
    "nearest_neighbours": "nearest.graph",
    "pool_graph": "nearest.stored_graph",
    "load_subset": "common.subset_files",
    "save_subset": "common.subset_files",
    "budget_from_percent": "common.subset_files",
    "choose_images": "commands.run_choose",
    "open_pool": "images.pools",
    "UserError": "common.errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
