"""What a cell's digest depends on, which cells a plan has, and the pool that they are computed in."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features
from data_selection.common.files import sha256
from data_selection.images.record import PoolRecord, save_record
from data_selection.judging.experiments import hashes as module
from data_selection.judging.experiments.cells import LoadedPool, make_cells
from data_selection.judging.experiments.evaluations import FROZEN
from data_selection.judging.experiments.hashes import Hashes
from data_selection.judging.experiments.list_settings import told_settings
from data_selection.judging.experiments.plan import PoolSpec, read_plan
from data_selection.judging.smoothed import smoothing_of
from data_selection.methods.configs import ActiveFTConfig, BiLAFConfig
from data_selection.methods.configs_design import MaxHerdingConfig
from data_selection.methods.table import METHODS
from tests.support.experiments import blobs, make_config


def cells_of(folder, **changes):
    """The cells of a config, whose feature files are those of make_config."""
    plan = read_plan(make_config(folder, **({"seeds": 1, "budgets": [8]} | changes)))
    hashes = Hashes(folder)
    return make_cells(plan, {spec.name: LoadedPool(spec, hashes) for spec in plan.pools}, FROZEN)


def files(folder):
    return {"train": f"{folder}/one_train.npy", "test": f"{folder}/one_test.npy"}


def loaded(folder, **changes):
    make_config(folder)
    spec = PoolSpec("one", folder / "one_train.npy", folder / "one_test.npy", **changes)
    return LoadedPool(spec, Hashes(folder))


def test_a_cut_is_another_pool_than_the_whole_file(tmp_path):
    pools = {"whole": files(tmp_path), "cut": files(tmp_path) | {"imbalance": 4}}
    found = cells_of(tmp_path, pools=pools, methods={"random": None}, evaluations={"knn": {}})
    assert len({cell.digest for cell in found}) == len({cell.list_digest for cell in found}) == 2


def test_lists_around_other_cores_are_other_lists(tmp_path):
    methods = {name: {"method": "bilaf", "cores": name} for name in ("random", "kmeans")}
    found = cells_of(tmp_path, methods=methods, evaluations={"knn": {}})
    assert len({cell.list_digest for cell in found}) == 2


@pytest.mark.parametrize(
    ("name", "settings", "config"),
    [
        ("activeft", {"slice": 1000, "max_memory": 2}, ActiveFTConfig()),
        ("bilaf", {"max_memory": 2, "cores_slice": 1000, "cores_max_memory": 2}, BiLAFConfig()),
    ],
)
def test_what_changes_speed_and_memory_alone_leaves_a_list_what_it_is(name, settings, config, tmp_path):
    cores = {"cores": METHODS[name].cores} if METHODS[name].cores else {}
    digests = {}
    for more in ({}, settings, {"cores_lr" if cores else "lr": 0.5}):
        (found,) = cells_of(tmp_path, methods={name: more}, evaluations={"knn": {}})
        assert all(getattr(found.config, field) == value for field, value in more.items() if field[:6] != "cores_")
        digests[str(more)] = found.list_digest
        if more in ({}, settings):
            assert found.chosen["config"] == dataclasses.asdict(config) | cores
    plain, quick, other = digests.values()
    assert plain == quick != other


def test_other_test_images_are_judged_anew_on_the_same_lists(tmp_path):
    before = cells_of(tmp_path)
    blobs(tmp_path / "one_test.npy", 61, seed=9)
    after = cells_of(tmp_path)
    assert [cell.list_digest for cell in after] == [cell.list_digest for cell in before]
    assert not {cell.digest for cell in after} & {cell.digest for cell in before}


def test_pools_have_budgets_methods_and_evaluations_of_their_own(tmp_path):
    pools = {"one": files(tmp_path), "two": files(tmp_path) | {"budgets": [5, "10%"]}}
    found = cells_of(
        tmp_path, pools=pools, methods={"random": None, "fps": {"pools": ["one"]}},
        evaluations={"knn": {}, "probe": {"pools": ["two"]}},
    )  # fmt: skip
    assert [(cell.pool, cell.budget, cell.method, cell.evaluation) for cell in found] == [
        ("one", 8, "random", "knn"), ("one", 8, "fps", "knn"),
        ("two", 5, "random", "knn"), ("two", 5, "random", "probe"),
        ("two", 12, "random", "knn"), ("two", 12, "random", "probe"),
    ]  # fmt: skip


def test_a_file_is_hashed_again_where_its_size_or_time_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(b"one")
    first = Hashes(tmp_path).of(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 7))
    second = Hashes(tmp_path).of(path)
    assert second == sha256(path) != first
    path.write_bytes(b"three")
    os.utime(path, ns=(0, 7))
    third = Hashes(tmp_path).of(path)
    assert third == sha256(path) != second
    monkeypatch.setattr(module, "sha256", None)
    assert Hashes(tmp_path).of(path) == third


def test_test_labels_are_told_in_the_pools_class_numbers(tmp_path):
    names = tuple("abcd")
    for part in ("train", "test"):
        blobs(tmp_path / f"one_{part}.npy", 60, seed=1)
        table = load_features(tmp_path / f"one_{part}.npy")
        labels = table.labels if part == "train" else 3 - table.labels
        words = names if part == "train" else names[::-1]
        save_features(tmp_path / f"two_{part}.npy", table.features, labels, class_names=words)
    pool = LoadedPool(PoolSpec("two", tmp_path / "two_train.npy", tmp_path / "two_test.npy"), Hashes(tmp_path))
    assert pool.tensors[3].equal(pool.tensors[1])  # the same images, though numbered the other way round


@pytest.mark.parametrize("imbalance", [None, 4])
def test_a_pool_is_smoothed_as_it_is_asked_for_over_its_own_rows(tmp_path, imbalance):
    pool = loaded(tmp_path, imbalance=imbalance)
    rows = torch.from_numpy(np.array(pool.train.features[pool.rows]))
    assert len(rows) == 120 or imbalance
    for steps in (1, 0, 1):
        base, outside = pool.smoothed(5, steps)
        expected = smoothing_of(rows, k=5, steps=steps)
        torch.testing.assert_close(base.smoothed, expected.smoothed)
        torch.testing.assert_close(outside.smoothed, expected.outside(pool.tensors[2]).smoothed)


def test_test_images_that_are_copies_of_the_pools_are_named(tmp_path):
    pool = loaded(tmp_path)
    assert pool.copied() == []  # nothing is known of the images
    hashes = [f"{row:032x}" for row in range(len(pool.train))]
    save_record(pool.spec.train, PoolRecord(tuple(["", *hashes[1:]])))
    others = [f"{row + 10_000:032x}" for row in range(len(pool.test))]
    assert pool.copied() == []
    others[:3] = ["", hashes[5], hashes[9]]
    save_record(pool.spec.test, PoolRecord(tuple(others)))
    assert pool.copied() == ["1", "2"]
    save_record(pool.spec.test, PoolRecord(tuple(others), tuple(f"{row}.png" for row in range(len(others)))))
    assert pool.copied() == ["1.png", "2.png"]
    pool.rows = np.array([3, 9])  # of a cut only what is left in it
    assert pool.copied() == ["2.png"]


@pytest.mark.parametrize("kind", ["knn", "probe", "smoothed"])
@pytest.mark.parametrize(("part", "count"), [("train", 120), ("test", 60)])
def test_images_without_a_label_do_not_count_as_mistakes(tmp_path, kind, part, count):
    config = {"methods": {"random": None}, "evaluations": {kind: {}}}
    assert len(cells_of(tmp_path, **config)) == 1
    table = load_features(tmp_path / f"one_{part}.npy")
    save_features(tmp_path / f"one_{part}.npy", table.features, np.where(np.arange(count) < 7, -1, table.labels))
    with pytest.raises(
        UserError, match=rf"7 of the {count} images in .*one_{part}\.npy have no label, and nothing can be judged"
    ):
        cells_of(tmp_path, **config)


def test_both_files_are_of_one_width(tmp_path):
    make_config(tmp_path)
    save_features(tmp_path / "one_test.npy", np.ones((9, 3), np.float32), np.zeros(9, int))
    with pytest.raises(UserError, match=r"pool 'one': .*one_train\.npy has \d+ columns and .*one_test\.npy 3: extract"):
        LoadedPool(PoolSpec("one", tmp_path / "one_train.npy", tmp_path / "one_test.npy"), Hashes(tmp_path))


def test_lists_in_batches_are_told_from_those_that_earlier_versions_drew(tmp_path):
    for settings, known in (({}, False), ({"batch_size": 50}, True)):
        (first, *_) = cells_of(tmp_path, methods={"activeft": settings}, budgets=[8])
        assert (first.chosen["config"].get("batches") == "released") is known
        (first, *_) = cells_of(
            tmp_path,
            methods={"bilaf": {"core_number": 2} | {f"cores_{name}": value for name, value in settings.items()}},
        )
        assert (first.chosen["config"].get("cores_config", {}).get("batches") == "released") is known


def test_lists_of_probcover_and_of_few_clients_are_told_from_those_of_earlier_versions(tmp_path):
    (first, *_) = cells_of(tmp_path, methods={"probcover": {}}, budgets=[8])
    assert first.chosen["config"]["ties"] == "random"
    for clients, told in ((20, 24), (24, 24), (30, 30)):
        (first, *_) = cells_of(tmp_path, methods={"maxherding": {"clients": clients}}, budgets=[8])
        assert first.chosen["config"]["clients"] == told
    few = told_settings(METHODS["maxherding"], MaxHerdingConfig(clients=30), images=24, budget=20)
    assert few["clients"] == 30  # as ever in a pool of fewer images


def test_settings_of_the_cores_make_another_list(tmp_path):
    settings = ({}, {"cores": "activeft"}, {"cores_max_iter": 7}, {"cores_max_iter": 8}, {"cores": "kmeans"})
    digests = [cells_of(tmp_path, methods={"bilaf": {"core_number": 2, **given}})[0].list_digest for given in settings]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_two_budgets_of_one_size_need_one_meaning(tmp_path):
    numbers = {"one 12": 5, "one 10%": 6}
    evaluations = {"5-NN": {"kind": "knn"}}
    for settings, refused in (({"max_iter": numbers}, True), ({"max_iter": 5}, False)):
        methods = {"kmeans": settings}
        changes = {"methods": methods, "budgets": [12, "10%"], "evaluations": evaluations}
        if refused:
            with pytest.raises(UserError, match=r"budgets 12 and 10% are both 12 images of pool one, with other sett"):
                cells_of(tmp_path, **changes)
        else:
            assert len(cells_of(tmp_path, **changes)) == 2


def test_classes_that_only_test_images_have_are_known(tmp_path):
    pool = loaded(tmp_path)
    assert pool.unknown_classes() == []
    pool.test.labels[:3] = [7, -1, 9]
    assert pool.unknown_classes() == [7, 9]
    pool.rows = pool.rows[pool.train.labels != 1]  # of a cut what is left of it counts
    assert pool.unknown_classes() == [1, 7, 9]
    pool.rows = pool.rows[pool.train.labels[pool.rows] != 0]
    assert pool.unknown_classes() == [0, 1, 7, 9]
