"""Choose which images to annotate, in one shot and without labels. The public names below are imported when used."""

import importlib

# Imported on first use: `--help` of an entry must not wait seconds for torch.
_HOMES = {
    "FeatureTable": "feature_table",
    "load_features": "feature_table",
    "save_features": "feature_table",
    "METHODS": "methods",
    "ActiveFTConfig": "activeft",
    "select_activeft": "activeft",
    "BiLAFConfig": "bilaf",
    "select_bilaf": "bilaf",
    "select_random": "baselines",
    "select_farthest": "baselines",
    "select_kmeans": "baselines",
    "knn_accuracy": "evaluation",
    "probe_accuracy": "evaluation",
    "judge_subset": "evaluation",
    "load_subset": "subset_files",
    "save_subset": "subset_files",
    "budget_from_percent": "subset_files",
    "open_pool": "pools",
    "UserError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return __all__
