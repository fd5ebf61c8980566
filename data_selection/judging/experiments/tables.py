"""An experiment's entries as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from data_selection.judging.experiments.summary import Entry
from data_selection.judging.report import markdown_table

COLUMNS = (
    "pool", "evaluation", "method", "budget", "asked", "seeds", "mean", "sd", "minus_baseline", "low", "high",
    "baseline_needs", "bound",
)  # fmt: skip
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    **{sign: f"${sign}$" for sign in "<>|"}, **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


class Table(NamedTuple):
    """A grid of words: rows are as long as the header."""

    title: str
    header: list[str]
    rows: list[list[str]]


def grouped(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Entries by (pool, evaluation), in their order."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.pool, entry.evaluation), []).append(entry)
    return found


def make_tables(entries: Iterable[Entry], baseline: str) -> list[Table]:
    """Of each pool and evaluation: accuracies; differences to the baseline; the labels that it needs for the same."""
    tables = []
    for (pool, evaluation), some in grouped(entries).items():
        where = f"{pool}, {evaluation}"
        tables.append(_table(f"{where}: accuracy in %, mean ± standard deviation", some, lambda e: str(e.score)))
        others = [entry for entry in some if entry.method != baseline]
        if any(entry.gain for entry in others):
            title = f"{where}: minus {baseline}, seed by seed, in points, with the 95 % interval of the mean"
            tables.append(_table(title, others, lambda e: str(e.gain or "")))
        if any(entry.needed for entry in others):
            title = f"{where}: labels that {baseline} needs for the same accuracy, and the share saved"
            tables.append(_table(title, others, _needed))
    return tables


def _table(title: str, entries: Sequence[Entry], word: Callable[[Entry], str]) -> Table:
    budgets = sorted({(entry.budget, entry.asked) for entry in entries})
    cells = {(entry.method, entry.budget): word(entry) for entry in entries}
    header = ["chosen by", *(asked if asked == str(size) else f"{asked} ({size})" for size, asked in budgets)]
    methods = list(dict.fromkeys(entry.method for entry in entries))
    return Table(title, header, [[name, *(cells.get((name, size), "") for size, _ in budgets)] for name in methods])


def _needed(entry: Entry) -> str:
    if entry.needed is None or entry.saved is None:
        return ""
    more = f"{entry.bound} " if entry.bound else ""
    return f"{more}{entry.needed:.0f} ({more}{100 * entry.saved:.0f} %)"


def as_markdown(tables: Iterable[Table]) -> str:
    """All tables, each under its title; `|` in a name does not end a cell."""
    parts = []
    for table in tables:
        words = [[word.replace("|", "\\|") for word in row] for row in (table.header, *table.rows)]
        parts.append(f"**{table.title}**\n\n{markdown_table(words[0], words[1:])}\n")
    return "\n".join(parts)


def as_latex(tables: Iterable[Table]) -> str:
    """All tables as table environments with booktabs' rules (its package is needed), special signs escaped."""
    parts = []
    for table in tables:
        lines = [" & ".join(map(escape, row)) + r" \\" for row in (table.header, *table.rows)]
        parts += [
            r"\begin{table}", r"\centering", f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule",
            lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", f"\\caption{{{escape(table.title)}}}",
            r"\end{table}", "",
        ]  # fmt: skip
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text for LaTeX: its special signs as such, ± and those that its default fonts lack in mathematics."""
    return "".join(TEX.get(sign, sign) for sign in text)


def as_csv(entries: Iterable[Entry]) -> str:
    """One line per entry with the COLUMNS, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        gain = entry.gain or ("", "", "", "")
        needed = "" if entry.needed is None else entry.needed
        writer.writerow(
            [entry.pool, entry.evaluation, entry.method, entry.budget, entry.asked, entry.score.size, entry.score.mean,
             entry.score.sd, *gain[:3], needed, entry.bound]
        )  # fmt: skip
    return text.getvalue()
