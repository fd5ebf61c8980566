"""BiLAF: golden lists, agreement with the plain-loop textbook, budgets of every size, errors, entries."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_selection.commands.bilaf import main_bilaf
from data_selection.common.errors import UserError
from data_selection.methods.bilaf import cores as bilaf_cores
from data_selection.methods.bilaf import selection as bilaf
from data_selection.methods.bilaf import steps as bilaf_steps
from data_selection.methods.bilaf.classes import Distances
from data_selection.methods.bilaf.selection import default_core_number, select_bilaf
from data_selection.methods.configs import BILAF_PRESETS as PRESETS
from data_selection.methods.configs import CHOICES, BiLAFConfig
from tests.support.oracles_bilaf import released_program, textbook

DATA = Path(__file__).parents[1] / "data"
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


@pytest.mark.parametrize("nested", [False, True])  # nested: some classes need more rivals than were kept
def test_many_cores_are_sorted_out_first(nested, monkeypatch):
    x = make_pool("duplicates", 5)
    config = BiLAFConfig(nested=nested)
    expected = select_bilaf(x, 25, cores=list(range(0, 24, 3)), config=config)
    for module in (bilaf, bilaf_cores):
        monkeypatch.setattr(module, "FEW_CORES", 0)
    assert select_bilaf(x, 25, cores=list(range(0, 24, 3)), config=config).equal(expected)


def test_memory_limit_changes_nothing(fashion, monkeypatch):
    cores = GOLDEN[0]["core_ids"]
    for variant in ("paper", "released"):
        free = select_bilaf(fashion[:600], 40, cores=[5, 70, 300], config=PRESETS[variant])
        config = dataclasses.replace(PRESETS[variant], max_memory=0.01)
        assert select_bilaf(fashion[:600], 40, cores=[5, 70, 300], config=config).equal(free)
    full = select_bilaf(fashion, 150, cores=cores)
    monkeypatch.setattr(Distances, "build", classmethod(lambda cls, x, *_: cls(x, 1 << 16)))  # no distances held
    assert select_bilaf(fashion, 150, cores=cores).equal(full)
    assert select_bilaf(fashion, 150, cores=cores, config=PRESETS["released"]).tolist() == GOLDEN[1]["selected"]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_columns_merged_at_a_time_change_nothing(fashion, variant, monkeypatch):
    chosen = select_bilaf(fashion, 60, cores=[5, 70], config=PRESETS[variant])
    monkeypatch.setattr(bilaf_steps, "MERGED", 7)
    assert select_bilaf(fashion, 60, cores=[5, 70], config=PRESETS[variant]).equal(chosen)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_nested_lists_begin_with_the_smaller_ones(variant):
    x = make_pool("clusters", 2)
    config = dataclasses.replace(PRESETS[variant], nested=True)
    full = select_bilaf(x, len(x), cores=[4, 8, 1], config=config).tolist()
    assert full[:3] == [4, 8, 1]
    for budget in (3, 4, 7, 12, 20, len(x) - 1):
        assert select_bilaf(x, budget, cores=[4, 8, 1], config=config).tolist() == full[:budget]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("number", [300, 1000])
def test_many_labelled_images_leave_every_core_and_the_whole_budget(fashion, number, preset):
    """Denoising keeps what is labelled: one that is not kept would be chosen again, by another of its class."""
    cores = list(range(0, 3000, 60))
    generator = torch.Generator().manual_seed(number)
    labelled = [i for i in torch.randperm(3000, generator=generator)[:number].tolist() if i % 60]
    orders = []
    with pytest.MonkeyPatch.context() as patch:
        real = bilaf._in_order
        patch.setattr(bilaf, "_in_order", lambda *args: orders.append(real(*args)) or orders[-1])
        chosen = select_bilaf(fashion, 200, cores=cores, config=PRESETS[preset], labelled=labelled).tolist()
    assert len(orders[0]) == 200
    assert set(cores) <= set(chosen)


def test_a_class_with_labels_beyond_its_share_costs_the_others_no_core():
    """Labels count as chosen in their class, and its core comes besides: the rest of the budget is the others'."""
    generator = torch.Generator().manual_seed(0)
    x = 10 * torch.eye(4).repeat_interleave(50, 0) + 0.3 * torch.randn(200, 4, generator=generator)
    cores, labelled = [0, 50, 100, 150], list(range(1, 30))
    for budget in range(4, 41):
        chosen = select_bilaf(x, budget, cores=cores, labelled=labelled).tolist()
        counts = torch.bincount(torch.tensor(chosen) // 50, minlength=4).tolist()
        assert set(cores) <= set(chosen)
        assert counts[0] == 1
        assert max(counts[1:]) - min(counts[1:]) <= 1


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
    for name, value in (("penalty", 0.9), ("penalty", float("inf")), ("max_memory", float("inf")), ("ring_share", 1.5)):
        with pytest.raises(UserError, match=rf"{name} {value} is outside"):
            BiLAFConfig(**{name: value})


def test_command_line(tmp_path, capsys):
    core_file = tmp_path / "cores.json"
    core_file.write_text(json.dumps(GOLDEN[0]["core_ids"]))
    common = ["--features_inputs", str(DATA / "FM3000_train.npy"), "--output_dir", str(tmp_path), "--device", "cpu"]
    common += ["--init_indices", str(core_file)]
    main_bilaf("density_cluster", [*common, "--budget", "75", "--variant", "released", "--cur_number", "30"])
    written = tmp_path / "Density_75_from_ActiveFT30_variant_released.json"
    assert json.loads(written.read_text()) == GOLDEN[0]["selected"]
    assert json.loads((tmp_path / f"{written.stem}.provenance.json").read_text())["config"]["variant"]
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {written}: 75 of 3000 images")
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
        main_bilaf("density_cluster", [*common[:-2], "--dataset", "NOWHERE"])
    with pytest.raises(UserError, match=r"iter_100_sampleNum_6405.json or .*iter_300_sampleNum_6405.json does not"):
        main_bilaf("density_cluster_imagenet", [*common[:-2], "--dataset", "NOWHERE"])
