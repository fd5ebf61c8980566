"""Write an experiment's outcome: tables, curves, a page; again only where something has changed."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write, read_json
from data_selection.judging.experiments.beliefs import belief_tables
from data_selection.judging.experiments.cells import Cell, digest_of
from data_selection.judging.experiments.plan import Plan
from data_selection.judging.experiments.summary import Entry, Key, summarise
from data_selection.judging.experiments.tables import Table, as_csv, as_latex, as_markdown, make_tables

PICTURES = ("curves.png", "curves.svg")
FILES = ("table.md", "table.csv", "table.tex", "page.html", *PICTURES)
BESIDE = "outcome.json"  # says what they were written from, and that they are ours
NOTHING = "No cell has a number yet.\n"  # of table.md
TEMPLATE = Path(__file__).with_name("page.html")
SOURCES = [
    TEMPLATE.with_name(name) for name in ("page.html", "beliefs.py", "curves.py", "summary.py", "tables.py")
]  # of the outcome


def values_of(
    plan: Plan, cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]]
) -> dict[Key, dict[int, float]]:
    """{(pool, evaluation, method, budget): {seed: percent}} of the cells that have records, in the config's order."""
    values: dict[Key, dict[int, float]] = {}
    for cell in sorted(cells, key=_order(plan)):
        some = values.setdefault((cell.pool, cell.evaluation, cell.method, cell.budget), {})
        found = records.get(cell.digest, {}).get("scores", {}).get(cell.score)
        if found is not None:
            some[cell.seed] = found
    return values


def _order(plan: Plan) -> Callable[[Cell], tuple[int, int, int, int]]:
    pools = [pool.name for pool in plan.pools]
    evaluations, methods = ([row.name for row in rows] for rows in (plan.evaluations, plan.methods))
    return lambda cell: (
        pools.index(cell.pool), evaluations.index(cell.evaluation), methods.index(cell.method), cell.budget,
    )  # fmt: skip


def check_ours(folder: Path) -> None:
    """Raise UserError where write_outcome would replace a file that it has not written."""
    beside = folder / BESIDE
    held = read_json(beside) if beside.exists() else None
    if isinstance(held, dict) and "stamp" in held:
        return
    for name in (BESIDE, *FILES):
        if (folder / name).exists():
            raise UserError(
                f"{folder / name} is there and is no outcome of an experiment: it would be lost; name another "
                "--output_dir, or move it away"
            )


def write_outcome(plan: Plan, cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Write FILES to a folder, PICTURES only where there is a number to draw, and return the Markdown tables.

    Where the same numbers under the same config were written before, they are left as they are, which takes no time.
    """
    values = values_of(plan, cells, records)
    sources = [path.read_text(encoding="utf-8") for path in (plan.path, *SOURCES)]
    stamp = digest_of([sources, files_of(plan, cells), len(cells), [[*key, scores] for key, scores in values.items()]])
    beside = folder / BESIDE
    wanted = [name for name in FILES if any(values.values()) or name not in PICTURES]
    if beside.exists() and read_json(beside).get("stamp") == stamp and all((folder / name).exists() for name in wanted):
        return (folder / "table.md").read_text(encoding="utf-8")
    from data_selection.judging.experiments.curves import draw_curves  # a second to import

    entries, tables = entries_of(plan, cells, values), tables_of(plan, cells, records)
    pictures = draw_curves(entries, plan.baseline) if entries else {"png": b"", "svg": b""}
    done = sum(cell.digest in records for cell in cells)
    page = render(plan, tables, pictures["svg"], f"{done} of {len(cells)} cells are computed.", records, cells)
    if not beside.exists():  # first, or what a kill leaves would be taken for another's
        _write(beside, json.dumps({"stamp": ""}).encode())
    contents = {
        "table.md": (as_markdown(tables) or NOTHING).encode(), "table.csv": as_csv(entries).encode(),
        "table.tex": as_latex(tables).encode(), "curves.png": pictures["png"], "curves.svg": pictures["svg"],
        "page.html": page.encode(), BESIDE: json.dumps({"stamp": stamp}).encode(),
    }  # fmt: skip
    for name, content in contents.items():
        if name not in wanted and name in FILES:
            (folder / name).unlink(missing_ok=True)
            continue
        _write(folder / name, content)
    return contents["table.md"].decode()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as handle:
        handle.write(content)


def entries_of(plan: Plan, cells: Sequence[Cell], values: dict[Key, dict[int, float]]) -> list[Entry]:
    return summarise(values, plan.baseline, {(cell.pool, cell.budget): cell.asked for cell in cells})


def tables_of(plan: Plan, cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The tables of some of a plan's cells; nothing is written."""
    entries = entries_of(plan, cells, values_of(plan, cells, records))
    return make_tables(entries, plan.baseline) + belief_tables(cells, records)


def files_of(plan: Plan, cells: Sequence[Cell]) -> list[str]:
    """A line for each pool: its name, the feature files that its numbers are of, and their SHA-256.

    They may be others than the config's.
    """
    lines = []
    for pool in plan.pools:
        mine = [cell for cell in cells if cell.pool == pool.name]
        hashes = [next((cell.chosen["features"] for cell in mine), ""),
                  next((cell.judged["test"] for cell in mine if "test" in cell.judged), "")]  # fmt: skip
        files = [
            f"{path} {digest}".strip() for path, digest in zip((pool.train, pool.test), hashes, strict=True) if path
        ]
        lines.append(f"{pool.name}: {', '.join(files)}")
    return lines


def render(
    plan: Plan, tables: Sequence[Table], svg: bytes, told: str, records: Mapping[str, Mapping[str, Any]],
    cells: Sequence[Cell],
) -> str:  # fmt: skip
    """The page: one file that loads nothing, names and numbers escaped."""
    import jinja2

    used = [records[cell.digest]["versions"] for cell in cells if cell.digest in records]
    versions = sorted({json.dumps(one, sort_keys=True) for one in used})
    return jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True).render(
        title=f"Experiment {plan.path.stem}", told=told, picture=base64.b64encode(svg).decode(), tables=tables,
        files=files_of(plan, cells), config=plan.path.read_text(encoding="utf-8"), versions="; ".join(versions),
    )  # fmt: skip
