"""ActiveFT against the released programs' outcomes and against the textbook version."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.common.subset_names import activeft_name
from data_selection.methods import activeft
from data_selection.methods.activeft import select_activeft
from data_selection.methods.activeft_objective import OBJECTIVES, through_normalisation
from data_selection.methods.configs import ACTIVEFT_PRESETS as PRESETS
from data_selection.methods.configs import ActiveFTConfig
from data_selection.nearest import screening
from data_selection.nearest.pool_reader import UnitPool
from tests.support import oracles
from tests.support.activeft_cases import ALONE, CPU, clusters, trace

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "golden.json").read_text())["activeft"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pool():
    return load_features(DATA / "FM3000_train.npy")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['variant']}-{case['percent']}")
def test_released_outcome(pool, case):
    config = ActiveFTConfig(max_iter=case["iterations"], **case["options"])
    count = len(case["init_ids"])
    start = activeft.initial(pool.features, count, torch.arange(3000), (), config, case["seed"], CPU)
    assert start.tolist() == case["init_ids"]
    ids, losses = trace(pool.features, count, config=config, seed=case["seed"])
    np.testing.assert_allclose(losses, case["losses"], rtol=0, atol=1e-3)  # rounding flips single nearest centroids
    assert ids == case["selected"]
    assert min(losses) >= math.log(1 + config.balance)
    assert activeft_name("FM3000_train", config, count) == case["filename"]


@pytest.mark.parametrize("objective", ["released", "paper"])
@pytest.mark.parametrize(("temperature", "balance"), [(0.07, 1.0), (0.3, 0.4), (0.02, 2.0)])
def test_gradient_is_that_of_autograd(objective, temperature, balance):
    rows, centroids = clusters(300, 20, 0), clusters(17, 20, 1).double() * 3
    loss, gradient = full_gradient(rows, centroids, objective, temperature, balance)
    leaf = centroids.clone().requires_grad_()
    textbook = {"released": oracles.activeft_loss, "paper": oracles.paper_loss}[objective]
    expected = textbook(rows.double(), leaf, temperature, balance)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-3, atol=1e-5 * leaf.grad.abs().max().item())


def full_gradient(rows, centroids, objective, temperature, balance, fixed=None):
    config = ActiveFTConfig(temperature=temperature, balance=balance, objective=objective)
    pool = UnitPool(rows, None, CPU, 1e9)
    fixed = rows[:0] if fixed is None else fixed
    search = screening.ProductSearch(64)
    memory = centroids.new_empty(2, len(fixed) + len(centroids), centroids.shape[1])
    return activeft.loss_and_gradient(pool, centroids, fixed, config, ALONE, None, search, memory)


def test_fixed_centroids_attract_and_repel():
    rows, centroids, fixed = clusters(300, 20, 0), clusters(9, 20, 1).double(), clusters(4, 20, 2)
    loss, gradient = full_gradient(rows, centroids, "released", 0.07, 1.0, fixed)
    leaf = centroids.clone().requires_grad_()
    expected = oracles.activeft_loss(rows.double(), leaf, fixed=fixed.double())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-3, atol=1e-5 * leaf.grad.abs().max().item())


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_low_temperature_does_not_overflow(objective):
    loss, gradient = full_gradient(clusters(200, 20, 0), clusters(30, 20, 1).double(), objective, 0.005, 1.0)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_one_centroid_goes_to_where_the_pool_points(objective):
    """There is no other one to be apart from: in the limit it is the mean of the unit rows, by either objective."""
    rows = clusters(300, 20, 0)
    ids, losses = trace(rows, 1, config=ActiveFTConfig(max_iter=300, lr=0.01, objective=objective), seed=0)
    assert ids == [(F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).mean(0)).argmax().item()]
    assert losses[-1] < losses[0] - 0.01
    _, gradient = full_gradient(rows, clusters(1, 20, 1).double(), objective, 0.07, 1.0)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [0.07, 0.009, 0.001])
def test_centroids_of_zeros_have_a_loss(temperature):
    rows, centroids = clusters(200, 20, 0), clusters(70, 20, 1).double()
    rows[150:] = centroids[60:] = 0
    centroids[3] *= 1e-14  # so short that normalisation leaves it short
    loss, gradient = full_gradient(rows, centroids, "released", temperature, 1.0)
    units = F.normalize(centroids, dim=1)
    similarity, index = (rows.double() @ units.T).max(1)
    log_sums = (units @ units.T / temperature).logsumexp(1)
    assert loss.item() == pytest.approx(F.softplus(log_sums[index] - similarity / temperature).mean().item(), rel=1e-5)
    assert torch.isfinite(gradient).all()


def test_rows_of_zeros_are_chosen_from_at_any_temperature():
    rows = clusters(400, 20, 0)
    rows[200:] = 0
    ids, losses = trace(rows, 70, config=ActiveFTConfig(temperature=0.009, max_iter=5))
    assert len(set(ids)) == 70
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("lr", [1e25, 1e300])
def test_a_loss_that_is_not_finite_names_a_row(lr):
    first = random.Random(0).sample(range(10, 200), 70)[0]
    with pytest.raises(UserError, match=f"loss is not finite: .* the centroid of row {first} "):
        select_activeft(clusters(200, 20, 0), 70, config=ActiveFTConfig(lr=lr), excluded=range(10))


def test_normalisation_keeps_the_gradient_tangential():
    gradient, centroids = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    torch.testing.assert_close((through_normalisation(gradient, centroids) * centroids).sum(1), torch.zeros(5).double())


def test_textbook_run():
    rows = clusters(1200, 80, 3)
    start = activeft.initial(rows, 70, torch.arange(1200), (), ActiveFTConfig(), 5, CPU)
    losses, units = oracles.optimise(rows, rows[start], 20)
    ids, ours = trace(rows, 70, config=ActiveFTConfig(max_iter=20), seed=5)
    np.testing.assert_allclose(ours, losses, rtol=1e-4)
    assert ids == sorted(oracles.greedy_assignment(units @ rows.T))


def test_sweep_against_the_textbook():
    """Sizes 1 to 2,000, repeated rows, budget 1 and all, float16 to float64."""
    draws = random.Random(0)
    for case in range(30):
        count = draws.choice([1, 2, 3, 17, 100, 400, 2000 if case % 10 == 0 else 50])
        rows = clusters(count, draws.choice([2, 8, 33]), case)
        if draws.random() < 0.4:
            rows = rows[torch.tensor([draws.randrange(count) for _ in range(count)])]
        rows = rows.to(draws.choice([torch.float16, torch.float32, torch.float64]))
        before = rows.clone()
        budget = draws.choice([1, count if count <= 400 else 40, draws.randint(1, min(count, 200))])
        ids, losses = trace(rows, budget, config=ActiveFTConfig(max_iter=3), seed=case)
        assert len(set(ids)) == budget
        assert ids == sorted(ids)
        assert torch.equal(rows, before)
        unit = F.normalize(rows.float(), dim=1)
        start = activeft.initial(rows, budget, torch.arange(count), (), ActiveFTConfig(), case, CPU)
        np.testing.assert_allclose(losses[0], oracles.activeft_loss(unit, unit[start]).item(), rtol=1e-4)


def test_block_size_memory_and_threads_change_nothing(pool, monkeypatch):
    config, features = ActiveFTConfig(max_iter=6), pool.features[:1500]
    expected = trace(features, 80, config=config)
    for size in (37, 5000):
        assert trace(features, 80, config=ActiveFTConfig(max_iter=6, slice=size)) == expected
    rows = pool.tensor()[:1500]  # is not copied, and with little memory its groups are gathered again and again
    for table in (rows, rows.T.contiguous().T, rows.clone().requires_grad_()):
        assert trace(table, 80, config=config) == expected
    monkeypatch.setattr(activeft, "working_memory", lambda *_: 10**5)
    for table in (features, rows, rows.T.contiguous().T):
        assert trace(table, 80, config=config) == expected
    torch.set_num_threads(2)
    assert trace(features, 80, config=config)[0] == expected[0]
    torch.set_num_threads(1)


def test_labelled_and_excluded(pool):
    labelled, excluded = [5, 900, 17], [2000, 3]
    config = ActiveFTConfig(max_iter=5)
    ids, _ = trace(pool.features, 50, config=config, labelled=labelled, excluded=excluded)
    assert not set(ids) & {*labelled, *excluded}
    small = pool.tensor()[:60]
    ids, _ = trace(small, 55, config=config, labelled=labelled[::2], excluded=[3, 9, 11])
    assert sorted(ids) == sorted(set(range(60)) - {5, 17, 3, 9, 11})
    without = torch.cat([small[:3], small[4:]])  # an excluded row is as good as absent
    left, losses = trace(small, 10, config=config, excluded=[3])
    gone, expected = trace(without, 10, config=config)
    assert losses == pytest.approx(expected, abs=1e-6)
    assert [i - (i > 3) for i in left] == gone


def test_threshold_stops_early(pool):
    assert len(trace(pool.features, 30, config=ActiveFTConfig(max_iter=60, threshold=1.0))[1]) == 11
    assert len(trace(pool.features, 30, config=ActiveFTConfig(max_iter=15, threshold=0))[1]) == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature 0 must be above 0"),
        ({"temperature": 1e-320}, r"is below 0\.0001"),
        ({"max_memory": 1e-3}, "max_memory 0.001 is outside 0.01.."),
        ({"max_memory": float("inf")}, "max_memory inf is outside 0.01.."),
        ({"lr": float("inf")}, "lr inf must be above 0 and finite"),
        ({"balance": float("nan")}, "balance nan must be above 0 and finite"),
        ({"init": "zeros"}, "use one of random, fps"),
        ({"objective": "x"}, "released, paper"),
        ({"threshold": -1}, "threshold -1"),
        ({"batch_size": 4000}, "batch_size 4000 is above the pool's 3000"),
    ],
)
def test_bad_settings(pool, options, message):
    with pytest.raises(UserError, match=message):
        select_activeft(pool.features, 3, config=ActiveFTConfig(**options))


def test_presets_keep_the_released_defaults():
    assert [preset.percent for preset in PRESETS.values()] == [2, 1, 0.5, 1]
    assert PRESETS["bilaf_imagenet"].config == ActiveFTConfig(max_iter=100, batch_size=100_000)


def test_launched_processes_select_the_same(tmp_path):
    """By the papers' command; three processes without a launcher are in test_ranks."""
    root = Path(__file__).resolve().parents[2]
    options = ["--feature_path", DATA / "FM3000_train.npy", "--percent", "1", "--output_dir", tmp_path]
    options += ["--max_iter", "20", "--filename", "chosen.json", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = root / "data_selection" / "sample_tools" / "ActiveFT_CIFAR.py"
    done = subprocess.run(
        [*command, str(script), *map(str, options)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    alone = select_activeft(load_features(DATA / "FM3000_train.npy").features, 30, config=ActiveFTConfig(max_iter=20))
    assert json.loads((tmp_path / "chosen.json").read_text()) == alone.tolist()


def test_nan_names_the_pool_row_also_where_rows_are_left_out():
    features = torch.rand(3000, 8)
    features[2500, 1] = float("nan")
    with pytest.raises(UserError, match="row 2500"):
        select_activeft(features, 5, excluded=[0], config=ActiveFTConfig(max_iter=1))
