"""The papers' configs are whole and right, and ours stands beside theirs."""

import re
from pathlib import Path

import pytest
import yaml

from data_selection.common.errors import UserError
from data_selection.judging.experiments.plan import method_of, read_plan
from data_selection.judging.experiments.published import Number, compare, outside, read_published, read_results
from data_selection.judging.experiments.summary import summarise
from data_selection.judging.experiments.tables import as_csv
from scripts import compare_with_paper
from scripts.experiments import trainer
from tests.support.experiments import make_config

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs" / "papers").glob("*.yaml"))
# published cells of each, counted in the papers' tables: methods x columns, less what they leave out
COUNTS = {
    "activeft_table1": 9 * 9 - 5 * 3, "bilaf_table1": 10 * 10 - 5 * 3, "bilaf_table2_lt": 9 * 3 - 4,
    "bilaf_table9_cub": 12,
    "bilaf_table10_probe": 36, "bilaf_ablation_parts": 28, "bilaf_ablation_core_number": 16,
    "bilaf_ablation_core_method": 16, "bilaf_figure4": 32,
}  # fmt: skip


def test_every_table_has_its_config():
    assert {path.stem for path in CONFIGS} == set(COUNTS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_papers_config_is_understood(path, monkeypatch):
    monkeypatch.setattr(trainer, "check_images", lambda *_: None)  # ImageNet's are not here
    plan = read_plan(path)
    theirs = read_published(plan)
    assert len(theirs) == COUNTS[path.stem]
    assert all(0 < number.mean < 100 for number in theirs.values())
    for row in plan.methods:  # each row that is run has a number to compare with, in every column
        for pool in plan.pools:
            for budget in pool.budgets or plan.budgets:
                assert (pool.name, "finetuned", row.name, str(budget)) in theirs
                method_of(row, pool.name, budget, path)
    (finetuned,) = [row for row in plan.evaluations if row.kind == "trainer"]
    for pool in plan.pools:
        flags = {name: value for name, value in finetuned.settings.items() if not isinstance(value, dict)}
        complete = trainer.check(flags, pool, path.name)
        assert complete["flags"]["recipe"] == "paper"
        assert complete["processes"] == 2
    text = path.read_text()
    for words in re.findall(r"scripts/\S+|configs/\S+\.yaml", text):
        assert (path.parents[2] / words).exists()


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((80, 0.3), (81.1, 0.4), True),  # two sd are 1.0
        ((80, 0.3), (80.9, 0.4), False),
        ((80, None), (80.7, 0.4), False),
        ((80, 0.1), (80.7, None), True),
        ((80, None), (90, None), None),
    ],
)
def test_what_is_outside_by_hand(ours, theirs, expected):
    assert outside(Number(*ours, ""), Number(*theirs, "")) is expected


@pytest.fixture
def compared(tmp_path):
    """A config with published numbers, and a folder with results of ours."""
    numbers = {"probe": {"one": {"random": ["50 ± 1", 60, None], "CoreSet": [None, "61 ± 2", 70]}}}
    path = make_config(tmp_path, published={"source": "A paper", "numbers": numbers})
    values = {
        ("one", "probe", "random", 8): {0: 50.5, 1: 51.5},
        ("one", "probe", "random", 12): {0: 70.0, 1: 70.2},
        ("one", "probe", "fps", 30): {0: 75.0},
    }
    (tmp_path / "table.csv").write_text(as_csv(summarise(values, "random", {("one", 12): "10%"})))
    return path


def test_ours_beside_theirs(compared, tmp_path, capsys):
    compare_with_paper.main([str(tmp_path), str(compared)])
    said = capsys.readouterr().out
    assert "**one, probe: ours (published)**" in said
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    assert rows == [
        ["chosen by", "8", "10%", "30"],
        ["random", "51.0 ± 0.7 (50 ± 1)", "70.1 ± 0.1 (60) !", "- (-)"],
        ["CoreSet", "- (-)", "- (61 ± 2)", "- (70)"],
        ["fps", "- (-)", "- (-)", "75.0 (-)"],
    ]
    assert "Published: A paper" in said
    assert "2 of 4 published cells are measured; outside of two standard deviations: 1" in said
    assert "- one, probe, random, 10%: 70.1 ± 0.1, published 60\n" in said
    assert compare(read_plan(compared), {}, {}) is not None


def test_results_are_found_by_any_file_beside_them(compared, tmp_path):
    assert read_results(tmp_path / "results.jsonl") == read_results(tmp_path)
    with pytest.raises(UserError, match=r"table\.csv does not exist: run scripts/run_experiment\.py"):
        read_results(tmp_path / "gone" / "results.jsonl")
    (tmp_path / "table.csv").write_text("pool,method,mean\none,random,50\n")
    with pytest.raises(UserError, match=r"table\.csv is no table of .*: it has no asked, evaluation, sd"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("published", "told"),
    [
        (None, "has no published numbers: take a config of configs/papers"),
        ({"numbers": {"prob": {}}}, r"published, numbers: unknown key 'prob' \(did you mean probe\?\)"),
        ({"numbers": {"probe": {"two": {}}}}, "published, probe: unknown key 'two'"),
        ({"numbers": {"probe": {"one": [1, 2, 3]}}}, r"probe, one must hold lines `method: .*`, not \[1, 2, 3\]"),
        ({"numbers": {"probe": {"one": {"random": [1]}}}}, r"random has \[1\]; a list with an entry for each of"),
        ({"numbers": {"probe": {"one": {"random": [1, "2 +- 1", 3]}}}}, r"'2 \+- 1' is neither a number nor"),
    ],
)
def test_mistakes_are_told(tmp_path, published, told):
    path = make_config(tmp_path, published=published)
    assert yaml.safe_load(path.read_text())["published"] == published
    with pytest.raises(UserError, match=told):
        read_published(read_plan(path))


def test_a_pool_with_budgets_of_its_own_is_compared_at_these(tmp_path):
    pools = {"one": {"train": "x.npy", "budgets": [5, "2%"]}}
    numbers = {"probe": {"one": {"random": [50, 60]}}}
    plan = read_plan(make_config(tmp_path, pools=pools, published={"numbers": numbers}))
    ours = {
        ("one", "probe", "random", "5"): Number(51.0, 1.0, "51"),
        ("one", "probe", "random", "8"): Number(9, 1, "9"),
    }
    lines = compare(plan, ours, read_published(plan)).splitlines()
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows == [["chosen by", "5", "2%"], ["random", "51 (50)", "- (60)"]]


def test_a_mistyped_folder_is_named_and_not_the_one_above_it(tmp_path):
    (tmp_path / "table.csv").write_text("pool,evaluation,method,asked,mean,sd\n")
    assert read_results(tmp_path) == {}
    with pytest.raises(UserError, match=r"nosuch/table\.csv does not exist: run "):
        read_results(tmp_path / "nosuch")
