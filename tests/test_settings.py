"""Numbers that were set by measurement or by the papers: the documented results hold for these, and for no others."""

import importlib

import pytest

SETTINGS = {
    "data_selection.judging.probe": {
        "SMOOTH_C": 30.0, "GRID": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0), "FOLDS": 5,
    },
    "data_selection.nearest.graph": {"NEIGHBOURS": 10, "SPREAD_NEIGHBOURS": 15},
    "data_selection.judging.correction": {"SPREAD_STEPS": 10, "SPREAD_SHARE": 0.9},
    "data_selection.judging.calibration": {"TEMPERATURES": (1.0, 0.7, 1.4, 0.5, 2.0, 0.25, 3.0, 5.0)},
    "deit.learner.linear": {"STRENGTH": 30.0},
    "deit.learner.building": {"REFERENCE_BATCH": 512},
    "deit.selftrain": {"CHUNK": 200, "LABELLED": 8, "SHARPEN": 1.5, "OWN_WEIGHT": 1.5},
    "deit.crossval": {"STEPS": 200},
    "deit.job": {"FEWEST": 5, "MOST": 60},
    "deit.samplers": {"REPEATS": 3, "ROUND": 256},
    "deit.samples.pipeline": {"SMALL": 32, "MARGIN": 4, "SHIFT": 8},
    "deit.samples.resizing": {"SCALE": (0.08, 1.0), "RATIO": (3 / 4, 4 / 3), "TRIES": 10},
    "deit.samples.sources": {"FEW": 10},
    "data_selection.methods.bilaf.cores": {"NO_RIVAL": 1e9 + 7},
}  # fmt: skip


@pytest.mark.parametrize("module", SETTINGS)
def test_numbers_are_those_that_were_measured(module):
    found = importlib.import_module(module)
    assert {name: getattr(found, name) for name in SETTINGS[module]} == SETTINGS[module]


def test_epochs_by_the_number_of_labels():
    from deit.job import auto_epochs

    assert [auto_epochs(count) for count in (1, 10, 100, 1000, 10**6)] == [60, 60, 30, 15, 5]
