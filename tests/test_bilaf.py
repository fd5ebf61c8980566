"""BiLAF: golden lists, agreement with the plain-loop textbook, budgets of every size, errors, entries."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from oracles_bilaf import released_program, textbook

from data_selection import bilaf, bilaf_cores, distributed
from data_selection.bilaf import CHOICES, PRESETS, BiLAFConfig, default_core_number, select_bilaf
from data_selection.bilaf_classes import Pairs
from data_selection.bilaf_cores import Coarse, CoreSearch, assign
from data_selection.bilaf_steps import allocate, kept_count
from data_selection.cli_bilaf import main_bilaf
from data_selection.errors import UserError
from data_selection.narrow import Scratch

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "golden.json").read_text())["bilaf"]


@pytest.fixture(scope="module")
def fashion():
    return np.load(DATA / "FM3000_train.npy")[:, :-1]


def make_pool(kind, seed):
    """(N, D) float64 features of a named kind."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(30, 110)), int(rng.integers(2, 9))
    if kind == "uniform":
        return rng.random((n, d))
    if kind == "clusters":
        return rng.normal(size=(5, d))[rng.integers(0, 5, n)] * 4 + rng.normal(size=(n, d)) / 2 + 10
    x = rng.normal(size=(n, d))
    if kind == "duplicates":
        x[rng.integers(0, n, n // 2)] = x[rng.integers(0, n, n // 2)]
    elif kind == "tiny":  # classes of one or two far away
        x[:5] = x[:5] * 0.1 + 20 * np.arange(1, 6)[:, None]
    return x


KINDS = ("uniform", "clusters", "duplicates", "tiny")


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: f"{entry['defaults']}-{entry['budget']}")
def test_released_gives_the_golden_lists(fashion, entry):
    config = PRESETS["released" if entry["defaults"] == "CIFAR" else "released_imagenet"]
    chosen = select_bilaf(fashion, entry["budget"], cores=entry["core_ids"], config=config).tolist()
    if len(set(entry["selected"])) == entry["budget"]:
        assert chosen == entry["selected"]
    assert len(set(chosen)) == entry["budget"]
    assert set(entry["core_ids"]) <= set(chosen)


@pytest.mark.parametrize("variant", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_textbook(kind, variant):
    compared = 0
    for seed in range(2):
        x = make_pool(kind, seed)
        rng = np.random.default_rng(seed + 100)
        for k in (1, int(rng.integers(2, 8)), int(rng.integers(8, 15))):
            cores = rng.permutation(len(x))[:k].tolist()
            for budget in {k, min(len(x), 3 * k), int(rng.integers(k, len(x) + 1))}:
                config = PRESETS[variant]
                chosen = select_bilaf(torch.from_numpy(x), budget, cores=cores, config=config).tolist()
                assert chosen == textbook(x, cores, budget, config), (seed, cores, budget)
                compared += variant == "paper" or agrees_with_program(x, cores, budget, config, chosen)
    assert compared > 3


def agrees_with_program(x, cores, budget, config, chosen):
    """Compare with the released program where it works and repeats nothing."""
    try:
        expected = released_program(x, cores, budget, remove=config.remove_share)
    except (ArithmeticError, ValueError, IndexError, AssertionError):
        return False
    if len(set(expected)) < budget:
        return False
    assert chosen == expected, (cores, budget)
    return True


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("start", ["paper", "released"])
def test_each_field_alone_agrees_with_the_textbook(field, start):
    x = make_pool("clusters", 7)
    other = next(value for value in CHOICES[field] if value != getattr(PRESETS[start], field))
    config = dataclasses.replace(PRESETS[start], **{field: other})
    cores = [3, 20, 11, 27]
    assert select_bilaf(x, 17, cores=cores, config=config).tolist() == textbook(x, cores, 17, config)


@pytest.mark.parametrize("variant", PRESETS)
def test_whole_pool_and_cores_alone(variant):
    x = make_pool("duplicates", 3)
    cores = [5, 2, 9]
    assert select_bilaf(x, 3, cores=cores, config=PRESETS[variant]).tolist() == cores
    everything = select_bilaf(x, len(x), cores=cores, config=PRESETS[variant]).tolist()
    assert sorted(everything) == list(range(len(x)))
    assert everything == textbook(x, cores, len(x), PRESETS[variant])


@pytest.mark.parametrize("variant", PRESETS)
def test_identical_samples_and_twin_cores(variant):
    x = torch.ones(30, 4)
    chosen = select_bilaf(x, 25, cores=[29, 3], config=PRESETS[variant])
    assert len(chosen.unique()) == 25


@pytest.mark.parametrize("variant", PRESETS)
def test_cores_that_are_all_the_same(variant):
    x = make_pool("uniform", 4)
    cores = list(range(5, 25))
    x[cores] = 1
    chosen = select_bilaf(torch.from_numpy(x), 27, cores=cores, config=PRESETS[variant]).tolist()
    assert chosen == textbook(x, cores, 27, PRESETS[variant])


def test_kept_counts_of_the_released_program():
    sizes = torch.tensor([9, 10, 11, 15, 19, 20, 25, 29, 35, 39, 45, 57, 99, 105, 199, 200, 1000])
    expected = [9, 9, 9, 13, 17, 18, 21, 25, 29, 35, 39, 49, 89, 90, 171, 180, 900]
    assert kept_count(sizes, PRESETS["released"]).tolist() == expected
    few = kept_count(torch.tensor([10, 20, 57, 100, 1000]), PRESETS["released_imagenet"])
    assert few.tolist() == [8, 16, 44, 80, 800]


def test_paper_removes_exactly_its_share():
    sizes = torch.arange(1, 2000)
    assert kept_count(sizes, PRESETS["paper"]).tolist() == [n - n // 10 for n in range(1, 2000)]


def test_allocation_rules():
    sizes = torch.tensor([70, 20, 10])
    ones = torch.ones(3, dtype=torch.int64)
    assert allocate(sizes, 90, ones, sizes, "smallest").tolist() == [62, 18, 10]  # 7/10 x 90 is 62.99.. in float64
    assert allocate(sizes, 90, ones, sizes, "remainder").tolist() == [63, 18, 9]
    uneven = torch.tensor([819] + [1] * 9)
    lower = torch.ones(10, dtype=torch.int64)
    for rule in CHOICES["budget_rule"]:
        assert allocate(uneven, 10, lower, uneven, rule).tolist() == [1] * 10
        assert allocate(uneven, 828, lower, uneven, rule).tolist() == uneven.tolist()
        assert allocate(uneven, 200, lower, uneven, rule).sum() == 200


def test_assignment_far_from_the_origin_is_exact():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) + 300
    x[200:] = x[:200]
    cores = list(range(0, 60, 3))
    own, rival = assign(torch.from_numpy(x), torch.tensor(cores), PRESETS["released"], torch.device("cpu"), 1 << 20)
    dist = np.stack([np.square(x - x[core]).sum(1) for core in cores], axis=1)
    order = dist.argsort(1, kind="stable")
    assert own.tolist() == order[:, 0].tolist()
    assert rival[:, 0].tolist() == order[:, 1].tolist()


@pytest.mark.parametrize("coarse", [False, True])
def test_assignment_in_a_narrow_cone_is_exact(coarse, monkeypatch):
    """float32 rounds unit vectors by nearly a hundredth of what tells these apart."""
    monkeypatch.setattr(bilaf_cores, "MANY_CORES", 0 if coarse else 10**9)
    monkeypatch.setattr(bilaf_cores, "narrow_is_faster", lambda: True)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=16) + 1e-5 * rng.normal(size=(3000, 16)))
    unit = x / x.norm(dim=1, keepdim=True)
    unit -= unit.mean(0)
    own, _ = assign(x, torch.arange(600), PRESETS["paper"], torch.device("cpu"), 1 << 25)
    square = torch.cat([(part[:, None] - unit[:600]).square().sum(2) for part in unit.split(500)])
    assert own.equal(square.argmin(1))


@pytest.mark.parametrize("rivals", [1, 3, 50])
def test_rivals_are_the_nearest_other_cores(rivals):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 5))
    x[40:50] = x[30]  # cores among them: twins
    cores = torch.arange(0, 60, 3)
    own, rival = assign(x, cores, PRESETS["released"], torch.device("cpu"), 1 << 20, rivals=rivals)
    dist = np.stack([np.square(x - x[core]).sum(1) for core in cores], axis=1).round(12)
    for i, near in enumerate(dist.argsort(1, kind="stable")):
        mine = i // 3 if i % 3 == 0 and i < 60 else near[0]
        assert own[i] == mine
        assert set(rival[i].tolist()) == set([j for j in near if j != mine][:rivals]), i


@pytest.mark.parametrize("kind", ["spread", "twins", "far", "close"])
def test_coarse_products_find_the_same_cores(kind):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(700, 12)) * (1e-4 if kind == "close" else 1) + (30 if kind == "far" else 0)
    if kind == "twins":
        x[300:] = x[:400]
    x = torch.from_numpy(x)
    search = CoreSearch(x, torch.arange(0, 640, 2), PRESETS["released"], torch.device("cpu"))
    for count in (1, 5, 40):
        search.coarse = None
        expected = search.nearest(x.float(), count, x.__getitem__)
        search.coarse = Coarse(search.narrow, search.half)
        found = search.nearest(x.float(), count, x.__getitem__)
        assert found[:, 0].equal(expected[:, 0])
        assert found.sort(1).values.equal(expected.sort(1).values)


@pytest.mark.parametrize("nested", [False, True])  # nested: some classes need more rivals than were kept
def test_many_cores_are_sorted_out_first(nested, monkeypatch):
    x = make_pool("duplicates", 5)
    config = BiLAFConfig(nested=nested)
    expected = select_bilaf(x, 25, cores=list(range(0, 24, 3)), config=config)
    for module in (bilaf, bilaf_cores):
        monkeypatch.setattr(module, "FEW_CORES", 0)
    assert select_bilaf(x, 25, cores=list(range(0, 24, 3)), config=config).equal(expected)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_equally_near_cores_are_taken_by_number(most):
    x = torch.from_numpy(np.random.default_rng(4).integers(0, 4, (300, 2)).astype(float))
    search = CoreSearch(x, torch.arange(60), PRESETS["released"], torch.device("cpu"))
    square = (x[:, None] - x[:60]).square().sum(2)
    own = square.argmin(1)
    expected = square.scatter(1, own[:, None], torch.inf).sort(dim=1, stable=True).indices[:, :most]
    others = torch.tensor([[j for j in range(60) if j != i] for i in own.tolist()])
    for near in (None, others):
        found = bilaf_cores._nearest_of(search, x - search.mean, own, torch.ones(300, 1) * 1024, near, most)[0]
        assert found.equal(expected)


def test_distances_held_and_on_demand_are_the_same():
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 600, 7))) * 2.0**14
    held, demand = Pairs.build(x, 1 << 30, Scratch(torch.float64)), Pairs(x, 1 << 20)
    assert held.held is not None
    assert (held.held - torch.cdist(x, x).square()).abs().max() <= 1
    local = torch.stack([torch.randperm(600, generator=torch.Generator().manual_seed(g))[:450] for g in range(2)])
    for a, b in ((held, demand), (held.take(local), demand.take(local))):
        some = local[:, :20] % 450
        assert a.between(some).equal(b.between(some))
        assert a.sums(some, some > 100).allclose(b.sums(some, some > 100))


def test_memory_limit_changes_nothing(fashion, monkeypatch):
    cores = GOLDEN[0]["core_ids"]
    for variant in ("paper", "released"):
        free = select_bilaf(fashion[:600], 40, cores=[5, 70, 300], config=PRESETS[variant])
        config = dataclasses.replace(PRESETS[variant], max_memory=0.01)
        assert select_bilaf(fashion[:600], 40, cores=[5, 70, 300], config=config).equal(free)
    full = select_bilaf(fashion, 150, cores=cores)
    monkeypatch.setattr(Pairs, "build", classmethod(lambda cls, x, *_: cls(x, 1 << 16)))  # no distances held
    assert select_bilaf(fashion, 150, cores=cores).equal(full)
    assert select_bilaf(fashion, 150, cores=cores, config=PRESETS["released"]).tolist() == GOLDEN[1]["selected"]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_nested_lists_begin_with_the_smaller_ones(variant):
    x = make_pool("clusters", 2)
    config = dataclasses.replace(PRESETS[variant], nested=True)
    full = select_bilaf(x, len(x), cores=[4, 8, 1], config=config).tolist()
    assert full[:3] == [4, 8, 1]
    for budget in (3, 4, 7, 12, 20, len(x) - 1):
        assert select_bilaf(x, budget, cores=[4, 8, 1], config=config).tolist() == full[:budget]


def test_labelled_and_excluded(fashion):
    cores = GOLDEN[0]["core_ids"]
    labelled, excluded = [cores[0], 17, 400, 2999], [8, 9, 1000]
    for variant in PRESETS:
        for nested in (False, True):
            config = dataclasses.replace(PRESETS[variant], nested=nested)
            chosen = select_bilaf(
                fashion, 90, cores=cores, config=config, labelled=labelled, excluded=excluded
            ).tolist()
            assert set(cores[1:]) <= set(chosen)
            assert not set(labelled + excluded) & set(chosen)
            assert len(set(chosen)) == 90
    rest = len(fashion) - 7
    assert len(select_bilaf(fashion, rest, cores=cores, labelled=labelled, excluded=excluded).unique()) == rest


def test_length_changes_nothing_where_features_are_normalised():
    """Not even where a class holds one direction only, whose radius is the rounding error of the lengths."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(12, 5))[rng.integers(0, 12, 80)]
        cores, lengths = rng.permutation(80)[:4].tolist(), rng.uniform(0.5, 2, (80, 1))
        assert select_bilaf(x * lengths, 30, cores=cores).equal(select_bilaf(x, 30, cores=cores)), seed


def test_cores_may_come_from_a_function():
    x = make_pool("uniform", 1)
    asked = []

    def first(features, count, *, labelled, excluded, seed, device, progress):
        asked.append((count, seed))
        return torch.arange(count)

    chosen = select_bilaf(x, 12, cores=first, seed=3)
    assert asked == [(6, 3)]
    assert set(range(6)) <= set(chosen.tolist())
    select_bilaf(x, 12, cores=first, config=BiLAFConfig(core_number=2))
    assert asked[1] == (2, 0)
    assert default_core_number(50_000, 1) == 1
    assert default_core_number(50_000, 1000) == 250
    assert default_core_number(12_000, 1200) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 2}, "budget 2 is smaller than the 3 cores"),
        ({"cores": [1, 1]}, "id 1 is repeated"),
        ({"cores": [1, 5000]}, "core id 5000 is outside"),
        ({"cores": None}, "give cores="),
        ({"cores": []}, "list of cores is empty"),
        ({"excluded": [2]}, "core 2 is excluded"),
        ({"budget": 10**6}, "budget 1000000 is outside"),
    ],
)
def test_bad_requests(change, message):
    request = {"budget": 10, "cores": [1, 2, 3], **change}
    with pytest.raises(UserError, match=message):
        select_bilaf(make_pool("uniform", 0), **request)


def test_nan_and_bad_settings_are_refused():
    x = make_pool("uniform", 0)
    x[13, 0] = np.nan
    with pytest.raises(UserError, match="row 13"):
        select_bilaf(x, 5, cores=[1])
    with pytest.raises(UserError, match="neighbours 'near' is unknown: use cluster or position"):
        BiLAFConfig(neighbours="near")
    with pytest.raises(UserError, match=r"penalty 0.9 is outside"):
        BiLAFConfig(penalty=0.9)


def _one_rank(rank, path, out):
    import os

    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT="29613"
    )
    torch.set_num_threads(1)
    features = np.load(path)[:1500, :-1]
    with distributed.start("cpu"):
        chosen = select_bilaf(features, 60, cores=list(range(0, 1500, 100)), config=BiLAFConfig(max_memory=0.01))
        torch.save(chosen, f"{out}/{rank}.pt")


def test_two_processes_choose_the_same(fashion, tmp_path):
    mp.spawn(_one_rank, (str(DATA / "FM3000_train.npy"), str(tmp_path)), nprocs=2)
    alone = select_bilaf(fashion[:1500], 60, cores=list(range(0, 1500, 100)))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True).equal(alone)


def test_command_line(tmp_path, capsys):
    core_file = tmp_path / "cores.json"
    core_file.write_text(json.dumps(GOLDEN[0]["core_ids"]))
    common = ["--features_inputs", str(DATA / "FM3000_train.npy"), "--output_dir", str(tmp_path), "--device", "cpu"]
    common += ["--init_indices", str(core_file)]
    main_bilaf("density_cluster", [*common, "--budget", "75", "--variant", "released", "--cur_number", "30"])
    written = tmp_path / "Density_75_from_ActiveFT30_variant_released.json"
    assert json.loads(written.read_text()) == GOLDEN[0]["selected"]
    assert json.loads((tmp_path / f"{written.stem}.provenance.json").read_text())["config"]["variant"]
    assert capsys.readouterr().out.startswith(f"wrote {written}: 75 of 3000 images")
    main_bilaf("density_cluster_imagenet", [*common, "--budget", "75", "--variant", "released", "--seed", "4"])
    assert (
        json.loads((tmp_path / "Density_75_from_ActiveFT30_variant_released_seed_4.json").read_text())
        == GOLDEN[2]["selected"]
    )
    main_bilaf("density_cluster", [*common, "--budget", "75", "--remove_percentage", "0.2", "--nested"])
    assert (tmp_path / "Density_75_from_ActiveFT30_remove_share_0.2_nested_yes.json").exists()
    with pytest.raises(UserError, match="--budget 20 is smaller than the 30 cores"):
        main_bilaf("density_cluster", [*common, "--budget", "20"])
    with pytest.raises(UserError, match=r"--cur_number 31, but .* holds 30 cores"):
        main_bilaf("density_cluster", [*common, "--cur_number", "31"])
    with pytest.raises(UserError, match=r"iter_300_sampleNum_250.json does not exist: write it with"):
        main_bilaf("density_cluster", common[:-2] + ["--dataset", "NOWHERE"])
    with pytest.raises(UserError, match=r"iter_100_sampleNum_6405.json or .*iter_300_sampleNum_6405.json does not"):
        main_bilaf("density_cluster_imagenet", common[:-2] + ["--dataset", "NOWHERE"])
