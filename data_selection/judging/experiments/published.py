"""A paper's numbers in a config, and ours beside them."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_selection.common.errors import UserError
from data_selection.judging.experiments.plan import Plan, known
from data_selection.judging.experiments.tables import Table, as_markdown

Place = tuple[str, str, str, str]  # pool, evaluation, method, budget as the config writes it


class Number(NamedTuple):
    """A mean with its standard deviation, None where it is not told, as the paper or the table writes it."""

    mean: float
    sd: float | None
    text: str


def read_published(plan: Plan) -> dict[Place, Number]:
    """The paper's numbers in a config: published: {source: words, numbers: {evaluation: {pool: {method: [...]}}}}.

    A method's list has one entry per budget of the pool: a number, `mean ± sd`, or null. The method may be one that the
    config does not run. Raises UserError where there are none, and where names or lengths do not fit the config.
    """
    where = f"{plan.path}: published"
    if not plan.published:
        raise UserError(f"{plan.path} has no published numbers: take a config of configs/papers")
    known(plan.published, ("source", "numbers"), where)
    numbers = plan.published.get("numbers") or {}
    known(numbers, [row.name for row in plan.evaluations], f"{where}, numbers")
    pools = {pool.name: [str(one) for one in pool.budgets or plan.budgets] for pool in plan.pools}
    found = {}
    for evaluation, some in numbers.items():
        known(some, pools, f"{where}, {evaluation}")
        for pool, rows in some.items():
            if not isinstance(rows, dict):
                raise UserError(f"{where}, {evaluation}, {pool} must hold lines `method: [numbers]`, not {rows!r}")
            for method, values in rows.items():
                if not isinstance(values, list) or len(values) != len(pools[pool]):
                    raise UserError(
                        f"{where}, {evaluation}, {pool}: {method} has {values!r}; a list with an entry for each of "
                        f"the budgets {', '.join(pools[pool])} is needed"
                    )
                for budget, value in zip(pools[pool], values, strict=True):
                    if value is not None:
                        found[pool, evaluation, method, budget] = number(value, f"{where}, {evaluation}, {pool}")
    return found


def number(value: Any, where: str) -> Number:
    """The Number of a YAML value such as 77.3 or `77.3 ± 2.6`."""
    try:
        mean, *sd = (float(part) for part in str(value).split("±"))
        return Number(mean, sd[0] if sd else None, str(value))
    except ValueError:
        raise UserError(f"{where}: {value!r} is neither a number nor `mean ± sd`") from None


def read_results(path: Path) -> dict[Place, Number]:
    """Our numbers, from the table.csv that run_experiment.py wrote; path: it, its folder or a file beside it."""
    file = (path if path.is_dir() or not path.suffix else path.parent) / "table.csv"
    if not file.exists():
        raise UserError(f"{file} does not exist: run scripts/run_experiment.py on the config, then name its folder")
    found = {}
    with file.open(encoding="utf-8", newline="") as handle:
        table = csv.DictReader(handle)
        lacking = {"pool", "evaluation", "method", "asked", "mean", "sd"} - set(table.fieldnames or ())
        if lacking:
            raise UserError(f"{file} is no table of run_experiment.py: it has no {', '.join(sorted(lacking))}")
        for row in table:
            mean, sd = float(row["mean"]), None if row["sd"] == "nan" else float(row["sd"])
            text = f"{mean:.1f}" + ("" if sd is None else f" ± {sd:.1f}")
            found[row["pool"], row["evaluation"], row["method"], row["asked"]] = Number(mean, sd, text)
    return found


def outside(ours: Number, theirs: Number) -> bool | None:
    """Whether the means differ by more than two standard deviations of the difference of one run to one run.

    These are sqrt(sd^2 + sd^2); one that is not told counts as 0, and where neither is told the answer is None.
    """
    if ours.sd is None and theirs.sd is None:
        return None
    return bool(abs(ours.mean - theirs.mean) > 2 * ((ours.sd or 0) ** 2 + (theirs.sd or 0) ** 2) ** 0.5)


def compare(plan: Plan, ours: Mapping[Place, Number], theirs: Mapping[Place, Number]) -> str:
    """Markdown: of each pool and evaluation a table `ours (theirs)`, marked `!` outside of two sd, then these by name.

    Every method is a row that the paper has a number of, or we.
    """
    tables, strange, both = [], [], 0
    for pool in plan.pools:
        budgets = [str(one) for one in pool.budgets or plan.budgets]
        for evaluation in (row.name for row in plan.evaluations):
            places = [place for place in (*theirs, *ours) if place[:2] == (pool.name, evaluation)]
            rows = []
            for method in dict.fromkeys(place[2] for place in places):
                words = [method]
                for budget in budgets:
                    place = (pool.name, evaluation, method, budget)
                    mine, published = ours.get(place), theirs.get(place)
                    mark = ""
                    if mine and published:
                        both += 1
                        if outside(mine, published):
                            mark = " !"
                            strange.append(f"{', '.join(place)}: {mine.text}, published {published.text}")
                    words.append(f"{mine.text if mine else '-'} ({published.text if published else '-'}){mark}")
                rows.append(words)
            if rows:
                tables.append(Table(f"{pool.name}, {evaluation}: ours (published)", ["chosen by", *budgets], rows))
    told = "".join(f"\n- {line}" for line in strange)
    return (
        f"{as_markdown(tables)}\nPublished: {plan.published.get('source')}\n\n"
        f"{both} of {len(theirs)} published cells are measured; outside of two standard deviations: "
        f"{len(strange)}{told}"
    )
