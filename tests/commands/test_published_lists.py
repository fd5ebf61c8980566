"""The lists in subsets/: whole, by the methods that there are, and of the features that their records name."""

import dataclasses
import json
from pathlib import Path

import pytest

from data_selection.common.subset_files import budget_from_percent, load_subset
from data_selection.methods.table import LABEL_FREE, METHODS

ROOT = Path(__file__).parents[2] / "subsets"
SIZES = {"DEMO": 10_000, "FashionMNIST": 60_000}
PERCENTS = (0.1, 0.2, 0.5, 1, 2, 5)


def lists(pool):
    return sorted(path for path in (ROOT / pool).glob("*.json") if not path.name.endswith(".provenance.json"))


@pytest.mark.parametrize("pool", SIZES)
def test_every_method_has_a_list_at_every_budget(pool):
    budgets = [budget_from_percent(SIZES[pool], percent) for percent in PERCENTS]
    found, features = {}, {}
    for path in lists(pool):
        record = json.loads(path.with_suffix(".provenance.json").read_text())
        ids = load_subset(path, SIZES[pool])
        assert len(set(ids)) == len(ids) == record["budget"]
        assert (record["seed"], record["taken"]) == (0, {})
        config = dataclasses.asdict(METHODS[record["method"]].config())
        assert record["config"] == config, "a default is not what the lists were made with"
        assert record["features"]["shape"][0] == SIZES[pool]
        assert "/" not in " ".join(record["features"]["provenance"]["command"]).replace("outputs/lists", "")
        features.setdefault(record["features"]["sha256"], set()).add(record["method"])
        found.setdefault(record["method"], set()).add(record["budget"])
    assert found == {method: set(budgets) for method in LABEL_FREE}
    assert sorted(map(len, features.values())) == [1, len(LABEL_FREE) - 1]  # ProbCover's were made later, elsewhere
    assert {"probcover"} in features.values()
