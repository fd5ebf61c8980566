"""The picture of an experiment's curves: what stands in each panel, and that equal entries give equal bytes."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from data_selection.judging.evaluation import MeanSd
from data_selection.judging.experiments.curves import COLOURS, GREY, draw_curves
from data_selection.judging.experiments.summary import Entry


def entry(pool, method, budget, mean, sd=1.0, evaluation="probe"):
    return Entry(pool, evaluation, method, budget, str(budget), MeanSd(mean, sd, 3))


ENTRIES = [
    entry("one", "kmeans", 50, 60.0), entry("one", "kmeans", 10, 40.0, float("nan")), entry("one", "random", 10, 30.0),
    entry("one", "random", 50, 50.0), entry("two", "random", 1000, 70.0, 2.5), entry("two", "fps", 1000, 71.0),
    entry("one", "random", 10, 33.0, evaluation="csZ"), entry("three", "fps", 7, 20.0),
]  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn and closed; pictures of them take seconds, and are not made."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    closed, real = [], plt.close
    monkeypatch.setattr(plt, "close", lambda figure: (closed.append(figure), real(figure)))
    return closed


def colour(line):
    return colors.to_hex(line.get_color())


def test_a_panel_for_each_pool_and_evaluation(figures):
    draw_curves(ENTRIES, "random")
    (figure,) = figures
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["one, probe", "two, probe", "one, csZ", "three, probe"]
    assert len(figure.axes) == 6  # two rows of three: the rest is hidden
    assert {(axis.get_xscale(), axis.get_xlabel(), axis.get_ylabel()) for axis in panels} == {
        ("log", "labels", "accuracy, %")
    }
    assert [tick.get_text() for tick in panels[0].get_xticklabels()] == ["10", "50"]
    assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["1,000"]
    assert [line.get_label() for line in figure.legends[0].get_lines()] == ["random", "kmeans", "fps"]


def test_a_curve_is_a_methods_means_by_budget_within_a_standard_deviation(figures):
    draw_curves(ENTRIES, "random")
    panel = figures[0].axes[0]
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert lines["kmeans"].get_xydata().tolist() == [[10, 40], [50, 60]]
    assert lines["random"].get_xydata().tolist() == [[10, 30], [50, 50]]
    low, high = (np.array(panel.collections[1].get_paths()[0].vertices)[:, 1] for _ in range(2))
    assert (low.min(), high.max()) == (40, 61)  # of k-means: no band where one seed was run
    assert panel.collections[0].get_alpha() == pytest.approx(0.12)
    assert len(panel.collections) == 2


def test_the_baseline_is_grey_and_a_method_looks_alike_in_all_panels(figures):
    draw_curves(ENTRIES, "random")
    seen = {}
    for axis in figures[0].axes:
        for line in axis.get_lines():
            seen.setdefault(line.get_label(), set()).add((colour(line), line.get_marker()))
    assert {name: len(looks) for name, looks in seen.items()} == {"random": 1, "kmeans": 1, "fps": 1}
    assert next(iter(seen["random"]))[0] == GREY == "#888888"
    assert len({look for looks in seen.values() for look in looks}) == 3
    draw_curves([one for one in ENTRIES if one.method != "random"], "random")
    assert {colour(line) for axis in figures[1].axes for line in axis.get_lines()} == set(COLOURS[:2])


def test_methods_beyond_the_colours_have_other_marks(figures):
    count = 2 * len(COLOURS)
    draw_curves([entry("one", f"m{i}", 10, 50.0) for i in range(count)], "m0")
    lines = figures[0].axes[0].get_lines()
    assert len({(colour(line), line.get_marker()) for line in lines}) == count
    assert [line.get_label() for line in lines if colour(line) == GREY] == ["m0"]
    assert [line.get_linestyle() for line in lines] == ["-"] * (len(COLOURS) + 1) + ["--"] * (len(COLOURS) - 1)


def test_equal_entries_give_equal_bytes():
    one, two = (draw_curves(ENTRIES[:3], "random") for _ in range(2))
    assert one == two
    assert one["png"].startswith(b"\x89PNG")
    assert b"<svg" in one["svg"]
