"""What a choice will take, told from two small ones."""

import pytest

from data_selection.commands import foresight

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


def test_a_method_that_refuses_the_small_pools_is_told_as_nothing(monkeypatch):
    def select(features, some):
        raise foresight.UserError("too few")

    monkeypatch.setattr(foresight.time, "monotonic", lambda: 5.0)
    assert foresight.try_choice(select, 60_000, 200, 2) == 0
