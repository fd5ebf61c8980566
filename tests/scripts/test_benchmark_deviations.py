"""The table of BiLAF's deviations: what is known of the same files is not measured again."""

import json

import pytest

from scripts import benchmark
from scripts.benchmarks import deviations
from tests.support.experiments import blobs


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Runs the command on two files of a folder. Returns how many lists were judged."""
    judged = []
    monkeypatch.setattr(deviations, "judge_subset", lambda ids, train, test: judged.append(ids) or (0.0, 50.0))

    def run(folder):
        files = [str(tmp_path / folder / f"toy_{part}.npy") for part in ("train", "test")]
        words = ["--train", files[0], "--test", files[1], "--scores", str(tmp_path / "scores.json")]
        before = len(judged)
        deviations.main([*words, "--percents", "10", "--seeds", "2", "--rows", "random", "paper"])
        return len(judged) - before

    return run


def test_accuracies_are_those_of_the_files_not_of_their_names(measure, tmp_path, capsys):
    for seed, folder in enumerate(("one", "other")):
        (tmp_path / folder).mkdir()
        for part in ("train", "test"):
            blobs(tmp_path / folder / f"toy_{part}.npy", 60, seed)
    assert measure("one") == 4
    assert measure("one") == 0
    assert measure("other") == 4
    blobs(tmp_path / "other" / "toy_test.npy", 60, seed=2)
    assert measure("other") == 4
    assert len(json.loads((tmp_path / "scores.json").read_text())) == 12
    assert "| random    | 50.00 ± 0.00 |" in capsys.readouterr().out


@pytest.mark.parametrize("seeds", ["0", "-1"])
@pytest.mark.parametrize("subject", ["deviations", "objective", "loops"])
def test_no_seed_at_all_is_refused(subject, seeds, capsys):
    words = ["--train", "F", "--test", "F"] if subject == "deviations" else ["--features", "F"]
    with pytest.raises(SystemExit) as ended:
        benchmark.main([subject, *words, "--seeds", seeds])
    assert ended.value.code == 2
    assert f"argument --seeds: {seeds} is below 1" in capsys.readouterr().err
