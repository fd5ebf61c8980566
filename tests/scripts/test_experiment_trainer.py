"""A run of the trainer in a process of its own: what it gives, and what is left where it fails."""

import pytest

from data_selection.common.errors import UserError
from scripts.experiments import trainer

DONE = {name: {"acc1": 71.0} for name in trainer.SCORES} | {"graph": None, "verdict": {"kept": "finetuned"}}
MAIN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
print("it begins with", *sys.argv[1:3])
if "--fail" in sys.argv:
    print("error: no such thing", file=sys.stderr)
    sys.exit(2)
(folder / "result.json").write_text(json.dumps(DONE))
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """trainer.train of a program that takes no time."""
    (tmp_path / "deit").mkdir()
    (tmp_path / "deit" / "main.py").write_text(MAIN.replace("DONE", f"{DONE}"))
    monkeypatch.setattr(trainer, "ROOT", tmp_path)
    return trainer.train


def test_a_run_gives_its_scores_and_leaves_its_folder_alone(train, tmp_path, monkeypatch):
    clock = iter([100.0, 190.0])
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(clock))
    found = train(["--seed", 3], tmp_path / "out" / "run")
    assert {name: found[name] for name in trainer.SCORES} == {"last": 71.0, "best": 71.0, "ema": 71.0, "graph": None}
    assert found["verdict"] == {"kept": "finetuned"}
    assert found["minutes"] == 1.5
    assert found["gib"] > 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]


def test_a_run_that_fails_is_told_by_its_last_words_which_stay(train, tmp_path):
    log = tmp_path / "run.log"
    with pytest.raises(UserError, match=rf"ended with 2, error: no such thing \({log}\): .*--seed 3 --fail"):
        train(["--seed", 3, "--fail"], tmp_path / "run")
    assert sorted(log.read_text().splitlines()) == ["error: no such thing", "it begins with --seed 3"]
