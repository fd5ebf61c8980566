"""Curves of accuracy over labels with bands, one panel per pool and evaluation."""

import io
from collections.abc import Sequence
from typing import Any

from data_selection.judging.experiments.summary import Entry
from data_selection.judging.experiments.tables import grouped

COLUMNS = 3
GREY = "#888888"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7a5195", "#66a61e")
MARKS = "os^Dv<>P*X"
LINES = ("-", "--", ":", "-.")


def styles(names: Sequence[str], baseline: str) -> dict[str, dict[str, Any]]:
    """{method: colour, mark and line of its curve}: grey is the baseline's alone, no two methods look alike."""
    found = {baseline: {"color": GREY, "marker": MARKS[0], "linestyle": LINES[0]}} if baseline in names else {}
    for i, name in enumerate(name for name in names if name != baseline):
        turn, place = divmod(i, len(COLOURS))
        mark = MARKS[(1 + place + 3 * turn) % len(MARKS)]
        found[name] = {"color": COLOURS[place], "marker": mark, "linestyle": LINES[turn % len(LINES)]}
    return found


def draw_curves(entries: Sequence[Entry], baseline: str) -> dict[str, bytes]:
    """{png, svg: the picture}: mean accuracy over labels (logarithmic), band: one standard deviation.

    The same entries give the same bytes. The baseline is grey; colours and marks are those of the method in all panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    panels = grouped(entries)
    names = list(dict.fromkeys(entry.method for entry in entries))
    names.sort(key=lambda name: name != baseline)  # the baseline first, in grey
    style = styles(names, baseline)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context({"svg.hashsalt": "experiment", "svg.fonttype": "path", "text.parse_math": False}):
        figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows + 0.6), squeeze=False, dpi=110)
        for axis, ((pool, evaluation), some) in zip(axes.flat, panels.items(), strict=False):
            for name in names:
                mine = sorted((entry for entry in some if entry.method == name), key=lambda entry: entry.budget)
                if not mine:
                    continue
                x, y = [entry.budget for entry in mine], np.array([entry.score.mean for entry in mine])
                spread = np.nan_to_num([entry.score.sd for entry in mine])
                axis.plot(x, y, label=name, markersize=4, linewidth=1.4, **style[name])
                axis.fill_between(x, y - spread, y + spread, color=style[name]["color"], alpha=0.12, linewidth=0)
            axis.set_xscale("log")
            budgets = sorted({entry.budget for entry in some})
            axis.set_xticks(budgets, [f"{size:,}" for size in budgets], fontsize=8)
            axis.minorticks_off()
            axis.set_title(f"{pool}, {evaluation}", fontsize=10)
            axis.set_xlabel("labels")
            axis.set_ylabel("accuracy, %")
            axis.grid(alpha=0.25)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        handles = [plt.Line2D([], [], label=name, **style[name]) for name in names]
        figure.legend(handles=handles, loc="lower center", ncols=min(6, len(names)), frameon=False, fontsize=9)
        figure.tight_layout(rect=(0, 0.05 + 0.02 * ((len(names) - 1) // 6), 1, 1))
        found = {}
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {})
            found[kind] = buffer.getvalue()
        plt.close(figure)
    return found
