"""Intervals and labels saved against numbers calculated by hand, and against SciPy's paired t-test."""

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from data_selection.judging.experiments.summary import labels_needed, paired, summarise
from data_selection.judging.experiments.tables import as_csv, make_tables


def test_a_paired_interval_by_hand():
    """Differences 1, 2, 3, 6: mean 3, sd sqrt(14/3), t(0.975, 3) = 3.18245."""
    found = paired({0: 11, 1: 22, 2: 33, 3: 46, 9: 0}, {0: 10, 1: 20, 2: 30, 3: 40, 8: 0})
    half = 3.182446305 * math.sqrt(14 / 3) / 2
    assert found == (3, pytest.approx(3 - half), pytest.approx(3 + half), 4)
    assert str(found) == "+3.00 [-0.44, +6.44]"
    assert not found.beyond_chance
    assert paired({0: 5, 1: 6, 2: 7}, {0: 1, 1: 2, 2: 3.1}).beyond_chance


def test_it_is_the_interval_of_the_paired_t_test():
    values, others = np.random.default_rng(0).normal(70, 2, (2, 7))
    found = paired(dict(enumerate(values)), dict(enumerate(others)))
    expected = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval_and_none_no_difference():
    found = paired({0: 3.0}, {0: 1.0})
    assert str(found) == "+2.00"
    assert math.isnan(found.low)
    assert not found.beyond_chance
    assert paired({0: 3.0}, {1: 1.0}) is None


def test_labels_needed_by_hand():
    """60 % lies halfway between 50 % at 100 and 70 % at 400 labels, which is 200 on a logarithmic scale."""
    budgets, means = [100, 400, 1000, 2000], [50, 70, 65, 80]
    assert labels_needed(60, budgets, means) == (pytest.approx(200), "")
    assert labels_needed(40, budgets, means) == (100, "<")
    assert labels_needed(70, budgets, means) == (pytest.approx(400), "")
    assert labels_needed(75, budgets, means) == (pytest.approx(math.sqrt(1000 * 2000)), "")  # 65 counts as 70
    assert labels_needed(80.1, budgets, means) == (2000, ">")


def test_entries():
    values = {
        ("p", "e", "random", 100): {0: 49.0, 1: 51.0},
        ("p", "e", "random", 400): {0: 70.0, 1: 70.0},
        ("p", "e", "best", 100): {0: 59.0, 1: 61.0},
        ("p", "e", "best", 400): {},
        ("q", "e", "best", 100): {0: 59.0},
    }
    entries = summarise(values, "random", {("p", 100): "1%"})
    assert [(entry.pool, entry.method, entry.asked) for entry in entries] == [
        ("p", "random", "1%"), ("p", "random", "400"), ("p", "best", "1%"), ("q", "best", "100")
    ]  # fmt: skip
    best = entries[2]
    assert best.score[:2] == (60, pytest.approx(math.sqrt(2)))
    assert best.gain[:3] == (10, 10, 10)
    assert best.needed == pytest.approx(200)
    assert best.saved == pytest.approx(0.5)
    assert entries[0].gain is None
    assert entries[3].gain is None
    assert entries[3].needed is None


def test_what_lies_below_all_that_random_reached_is_marked():
    values = {("p", "e", "random", 8): {0: 50.0}, ("p", "e", "random", 16): {0: 60.0}}
    values |= {("p", "e", "bad", 16): {0: 49.0}, ("p", "e", "even", 16): {0: 50.0}, ("p", "e", "good", 16): {0: 61.0}}
    entries = summarise(values, "random", {})
    table = next(table for table in make_tables(entries, "random") if "needs" in table.title)
    told = {row[0]: row[-1] for row in table.rows}
    assert told == {"bad": "< 8 (< -100 %)", "even": "8 (-100 %)", "good": "> 16 (> 0 %)"}
    rows = csv.DictReader(io.StringIO(as_csv(entries)))
    assert {row["method"]: row["bound"] for row in rows} == {"random": "", "bad": "<", "even": "", "good": ">"}


def test_without_a_seed_in_common_there_is_no_table_of_differences():
    values = {("p", "e", "random", 100): {0: 49.0}, ("p", "e", "best", 100): {1: 59.0}}
    assert [table.title for table in make_tables(summarise(values, "random", {}), "random")] == [
        "p, e: accuracy in %, mean ± standard deviation",
        "p, e: labels that random needs for the same accuracy, and the share saved",
    ]
    values["p", "e", "best", 100][0] = 59.0
    assert "minus random, seed by seed" in make_tables(summarise(values, "random", {}), "random")[1].title
