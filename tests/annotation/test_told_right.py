"""What pages and reports tell, where it is easily told wrong."""

import json

import numpy as np
import torch

from data_selection.annotation import label_report
from data_selection.annotation.arrangement import arrange
from data_selection.annotation.label_report import report_values
from data_selection.annotation.outlook import last_round
from data_selection.annotation.run_folder import rounds_of
from tests.support.reports import facts

ROUND = {"labels": 100, "accuracy": 60.0, "low": 58.0, "high": 62.0}


def test_both_spreads():
    told = last_round([ROUND, {"labels": 200, "accuracy": 62.0, "low": 60.0, "high": 64.0}])
    assert "moved the accuracy by +2.0 points (-0.8 to +4.8)" in told


def test_words_of_regions(monkeypatch):
    monkeypatch.setattr(label_report, "REGION_ROWS", 4)
    rows = np.sort(np.random.default_rng(0).choice(10, 4, replace=False))
    pool = torch.eye(3)[[0] * 10].clone()
    pool[rows] = torch.eye(3)[2]
    found = report_values(facts(pool=pool))["regions"]
    assert {word for part in found for word in part["mostly"]} == {facts().classes[2]}


def test_twins_are_closer_than_usual():
    assert sum(map(bool, arrange(np.random.default_rng(2).normal(size=(300, 3))).twins)) < 150


def test_rounds_by_labels(tmp_path):
    later = ROUND | {"labels": 200, "accuracy": 50.0}
    for name, rounds in (("b", [later]), ("a", [ROUND]), ("c", [ROUND, later])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({"rounds": rounds}))
    assert rounds_of([tmp_path / name for name in "bac"]) == [ROUND, later]
