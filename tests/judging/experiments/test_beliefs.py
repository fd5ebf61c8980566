"""Rank correlations of qualities and accuracy."""

from types import SimpleNamespace

from data_selection.judging.experiments.beliefs import QUALITIES, belief_tables


def grid(rows):
    """Cells and records of rows (budget, radius, accuracy); the other qualities stay equal."""
    cells, records = [], {}
    for number, (budget, radius, accuracy) in enumerate(rows):
        cells.append(SimpleNamespace(digest=str(number), pool="p", evaluation="e", budget=budget, score="accuracy"))
        quality = dict.fromkeys(QUALITIES, 1.0) | {"radius_mean": radius, "redundancy": None}
        records[str(number)] = {"scores": {"accuracy": accuracy}, "quality": quality}
    return cells, records


def test_correlation_is_within_a_budget_and_budgets_do_not_drive_it():
    few = [(10, 0.9, 50), (10, 0.8, 40), (10, 0.7, 30)]  # within a budget the wider one is better: rho 1
    many = [(99, 0.3, 90), (99, 0.2, 80), (99, 0.1, 85)]  # 0.5, though over both budgets it falls
    (table,) = belief_tables(*grid(few + many))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row == {"pool": "p", "evaluation": "e"} | dict.fromkeys(QUALITIES, "") | {"radius_mean": "0.75 (2)"}


def test_two_lists_and_records_without_quality_have_none():
    assert belief_tables(*grid([(10, 0.9, 50), (10, 0.8, 40)])) == []
    cells, records = grid([(10, 0.9, 50), (10, 0.8, 40), (10, 0.7, 30)])
    for record in records.values():
        del record["quality"]
    assert belief_tables(cells, records) == []


def test_a_list_that_two_budgets_ask_for_counts_once():
    cells, records = grid([(10, 0.9, 50), (10, 0.8, 30), (10, 0.7, 40)])
    assert belief_tables([*cells, cells[0], cells[0]], records) == belief_tables(cells, records)
    assert belief_tables([*cells[:2], *cells[:2]], records) == []
