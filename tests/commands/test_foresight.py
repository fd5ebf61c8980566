"""What comes before a choice: its time, told from two small ones, and the class names."""

import pytest

from data_selection.commands import foresight, run_choose
from data_selection.methods.configs import KMeansConfig
from data_selection.methods.configs_design import FacilityConfig

LAWS = {
    "a start and the same for each": lambda rows, budget: budget * (0.002 + 1e-6 * rows),
    "each image with each": lambda rows, budget: budget * 1e-9 * rows**2,
    "between": lambda rows, budget: budget * 1e-7 * rows**1.5,
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize(("count", "budget"), [(60_000, 200), (50_000, 5_000), (3_000, 100)])
def test_the_time_of_a_choice_is_told_from_two_small_ones(monkeypatch, law, count, budget):
    clock, asked = [0.0], []

    def select(features, some):
        asked.append((len(features), some))
        clock[0] += law(len(features), some)

    monkeypatch.setattr(foresight.time, "monotonic", lambda: clock[0])
    told = foresight.try_choice(select, count, budget, 2)
    assert told == pytest.approx(law(count, budget), rel=0.01)
    assert max(rows for rows, _ in asked) <= min(4_000, count // 2)


def test_rows_that_a_method_does_not_look_at_take_no_time(monkeypatch):
    """Facility location covers 10,000 random rows by 10,000, or by five for each to choose."""
    law, clock = LAWS["each image with each"], [0.0]

    def select(features, some):
        clock[0] += law(len(features), some)

    monkeypatch.setattr(foresight.time, "monotonic", lambda: clock[0])
    few, many = FacilityConfig(), FacilityConfig(clients=70_000)
    for config, budget, rows in (
        (few, 100, 10_000),
        (few, 3_000, 15_000),
        (many, 100, 60_000),
        (KMeansConfig(), 100, 60_000),
    ):
        enough = foresight.rows_looked_at(config, budget)
        told = foresight.try_choice(select, 60_000, budget, 2, enough)
        assert told == pytest.approx(law(rows, budget), rel=0.01)


def test_a_method_that_refuses_the_small_pools_is_told_as_nothing(monkeypatch):
    def select(features, some):
        raise foresight.UserError("too few")

    monkeypatch.setattr(foresight.time, "monotonic", lambda: 5.0)
    assert foresight.try_choice(select, 60_000, 200, 2) == 0


def test_class_names_come_from_words_or_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("b\na, c\n\nb\n")
    assert run_choose.class_words(str(tmp_path / "names.txt")) == ["b", "a, c"]
    assert run_choose.class_words("b, a,,b") == ["b", "a"]
    assert run_choose.class_words(["x", " "]) == ["x"]
