"""The rule by which a method is chosen without labels, and what the command says of it."""

import json

import numpy as np
import pytest
import torch

from data_selection.commands.any_method import main_select
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features
from data_selection.judging import advice
from data_selection.judging.advice import advise, evenness, use_of_labels
from data_selection.methods.table import METHODS
from tests.support.selection_commands import make_table


def pool(counts):
    """Clusters of these sizes, 12 dimensions."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(len(counts), 12, generator=generator)
    return centres.repeat_interleave(torch.tensor(counts), 0) + torch.randn(sum(counts), 12, generator=generator)


EVEN, TAIL = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)), pool([400, 100] + [4] * 30)


@pytest.mark.parametrize(
    ("budget", "labelled", "method"),
    [(10, 0, "facility"), (100, 0, "facility"), (101, 0, "voptimal"), (60, 41, "voptimal"), (550, 0, "voptimal")],
)
def test_even_pools(budget, labelled, method):
    found = advise(EVEN, budget, labelled=range(labelled))
    assert found.method == method
    assert found.reason.startswith(f"{budget + labelled} labels of 600 images, ")
    assert ("little more than from a random choice" in found.reason) == (budget + labelled >= 60)


@pytest.mark.parametrize("budget", [20, 100, 400])
def test_long_tails_are_for_kmeans(budget):
    found = advise(TAIL, budget)
    assert found.method == "kmeans"
    assert "long tail" in found.reason


def test_a_pool_as_even_as_the_bound_is_even(monkeypatch):
    monkeypatch.setattr(advice, "EVEN", evenness(EVEN, torch.arange(600)))
    assert advise(EVEN, 60).method == "facility"


def test_evenness_looks_at_what_may_be_chosen():
    everything = torch.arange(600)
    assert evenness(EVEN, everything) > advice.EVEN > evenness(TAIL, torch.arange(620))
    assert evenness(EVEN, everything[:499]) is None
    assert advise(EVEN, 60, excluded=range(101)).method == "facility"
    assert evenness(EVEN.numpy(), everything) == evenness(EVEN, everything)


def test_the_labels_of_a_large_share_do_without_the_pool():
    assert "--mode self-train" in use_of_labels(24, 100)
    assert "--mode lp-ft" in use_of_labels(25, 100)
    assert advise(EVEN, 20).labels == use_of_labels(20, 600)


def test_the_cores_are_those_that_bilaf_takes_by_itself():
    chosen = []

    def cores(features, count, **_):
        chosen.append(count)
        return torch.arange(count)

    for budget in (1, 20, 300):
        METHODS["bilaf"].select(EVEN, budget, cores=cores)
        assert advise(EVEN, budget).cores == chosen[-1]


def test_features_that_are_not_finite_are_refused():
    rows = EVEN.clone()
    rows[7, 2] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity, first in row 7"):
        advise(rows, 20)


def test_a_budget_beyond_the_pool_is_refused():
    with pytest.raises(UserError, match=r"outside 1\.\.600"):
        advise(EVEN, 601)


def test_the_command_takes_the_method_and_says_why(tmp_path, capsys):
    path, rows = make_table(tmp_path)
    words = ["--features", path, "--method", "auto", "--budget", 20, "--output_dir", tmp_path, "--device", "cpu"]
    main_select(list(map(str, words)))
    found = advise(rows, 20)
    said = capsys.readouterr().out
    assert f"--method auto takes {found.method}: {found.reason}. Then: {found.labels}\n" in said
    ids = json.loads((tmp_path / f"POOL_train_{found.method}_sampleNum_20.json").read_text())
    row = METHODS[found.method]
    assert sorted(ids) == sorted(row.select(load_features(path).features, 20, config=row.config()).tolist())
    with pytest.raises(UserError, match=r"--sigma is for herding; method .* has no such setting"):
        main_select([*map(str, words), "--sigma", "2"])


def test_auto_takes_labels_into_account(tmp_path, capsys):
    path = tmp_path / "TAIL_train.npy"
    save_features(path, TAIL.numpy(), np.zeros(len(TAIL), int))
    (tmp_path / "known.json").write_text(json.dumps([*range(45)]))
    words = ["--features", path, "--method", "auto", "--budget", 5, "--output_dir", tmp_path, "--device", "cpu",
             "--labelled", tmp_path / "known.json"]  # fmt: skip
    main_select(list(map(str, words)))
    said = capsys.readouterr().out
    assert "takes kmeans: 50 labels of 620 images" in said
    assert "quality without labels: distance to the nearest of the 50 images" in said  # the labelled count
    (made,) = [path for path in tmp_path.glob("TAIL_train_kmeans*.json") if "provenance" not in path.name]
    row = METHODS["kmeans"]
    assert json.loads(made.read_text()) == row.select(TAIL, 5, config=row.config(), labelled=range(45)).tolist()


def test_only_images_that_may_be_chosen_and_labels_in_all_decide(monkeypatch):
    crowd = 5 + 0.01 * torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
    whole = torch.cat([EVEN, crowd])
    assert advise(whole, 20).method == "kmeans"
    assert advise(whole, 20, excluded=range(600, 1000)).method == "facility"
    assert advise(EVEN, 130, excluded=range(100)).labels == use_of_labels(130, 500) != use_of_labels(130, 600)
    assert "little more than from a random choice" in advise(EVEN, 10, labelled=range(50)).reason
    monkeypatch.setattr(advice, "SAMPLE", 500)  # drawn from all, not the first ones
    assert evenness(whole[:600], torch.arange(600)) > advice.EVEN > evenness(whole, torch.arange(1000))


def test_the_seed_draws_the_images_that_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr(advice, "evenness", lambda features, ids, seed=0: seen.append(seed))
    advise(EVEN, 20, seed=7)
    assert seen == [7]


def test_a_choice_by_features_that_are_all_alike_is_warned_of(tmp_path, capsys):
    path = tmp_path / "ALIKE_train.npy"
    words = ["--features", path, "--method", "random", "--budget", 3, "--output_dir", tmp_path, "--device", "cpu"]
    for rows, warned in ((np.ones((40, 4)), True), (EVEN[:40].numpy(), False)):
        save_features(path, rows.astype(np.float32), None)
        main_select(list(map(str, [*words, "--overwrite"])))
        assert ("\nwarning: 95 % of the 40 images have the features of one" in capsys.readouterr().out) is warned
