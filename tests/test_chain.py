"""The main job in process on real images: extract -> ActiveFT -> BiLAF -> finetuning, on one and two processes."""

import json

import numpy as np
import pytest

from data_selection.commands.activeft import main_activeft
from data_selection.commands.any_method import main_select
from data_selection.commands.bilaf import main_bilaf
from data_selection.commands.extract import main_extract
from data_selection.common.feature_table import load_features
from data_selection.common.subset_files import load_subset
from deit.main import main as main_deit
from tests.support.trainer_runs import launch

TRAIN = [
    "--data-set", "DEMOSUBSET", "--recipe", "paper", "--epochs", "2", "--warmup-epochs", "0", "--lr", "0.1",
    "--global-batch-size", "64", "--device", "cpu", "--no-model-ema", "--eval-interval", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder after extraction and both selections: DEMO_train.npy, cores.json, Density_100_from_ActiveFT50.json."""
    folder = tmp_path_factory.mktemp("chain")
    main_extract(["--dataset", "DEMO", "--output_dir", str(folder), "--device", "cpu"])
    features = str(folder / "DEMO_train.npy")
    main_activeft(
        "activeft_cifar",
        ["--feature_path", features, "--budget", "50", "--max_iter", "30", "--output_dir", str(folder),
         "--filename", "cores.json"],
    )  # fmt: skip
    main_bilaf(
        "density_cluster",
        ["--features_inputs", features, "--indices_file_name", str(folder / "cores.json"), "--budget", "100",
         "--output_dir", str(folder)],
    )  # fmt: skip
    return folder


def test_features_are_those_of_every_image(chain):
    table = load_features(chain / "DEMO_train.npy")
    assert table.features.shape == (10_000, 192)
    assert np.isfinite(table.features).all()
    assert set(table.labels) == set(range(10))


def test_bilaf_holds_the_cores_and_the_budget(chain):
    cores = load_subset(chain / "cores.json", 10_000).tolist()
    chosen = load_subset(chain / "Density_100_from_ActiveFT50.json", 10_000).tolist()
    assert len(cores) == 50
    assert cores == sorted(cores)
    assert len(chosen) == 100
    assert set(cores) < set(chosen)


def test_provenance_leads_from_the_subset_to_the_weights(chain):
    record = json.loads((chain / "Density_100_from_ActiveFT50.provenance.json").read_text())
    assert record["budget"] == 100
    assert record["features"]["shape"] == [10_000, 192]
    backbone = record["features"]["provenance"]["backbone"]
    assert backbone["arch"] == "demo_vit"
    assert len(backbone["weights_sha256"]) == 64


def losses(folder):
    return [json.loads(line)["train_loss"] for line in (folder / "log.txt").read_text().splitlines()]


def test_finetuning_on_one_and_on_two_processes_is_the_same_run(chain, tmp_path):
    subset = ["--subset_ids", str(chain / "Density_100_from_ActiveFT50.json")]
    main_deit([*TRAIN, *subset, "--output_dir", str(tmp_path / "one")])
    done = launch([*TRAIN, *subset, "--output_dir", str(tmp_path / "two")])
    assert done.stdout.count("Creating model") == 1
    for name in ("one", "two"):
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"log.txt", "checkpoint.pth", "best_checkpoint.pth", "result.json"} <= files
    assert len(losses(tmp_path / "one")) == 2
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["last"]["acc1"] == pytest.approx(results[1]["last"]["acc1"], abs=0.3)
    assert results[0]["last"]["acc1"] > 20  # pretrained and trained: chance is 10


def test_own_folder_from_images_to_names_for_annotators(tmp_path):
    from PIL import Image

    from data_selection.images.pools import load_demo

    images = load_demo()["train_images"]
    for i in range(12):
        path = tmp_path / "pets" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(path)
    main_extract(
        ["--dataset", str(tmp_path / "pets" / "train"), "--arch", "demo_vit", "--output_dir", str(tmp_path),
         "--num_workers", "0", "--device", "cpu"]
    )  # fmt: skip
    main_select(["--features", str(tmp_path / "pets_train.npy"), "--budget", "4", "--output_dir", str(tmp_path)])
    ids = load_subset(tmp_path / "pets_train_activeft_sampleNum_4.json", 12).tolist()
    names = json.loads((tmp_path / "pets_train.names.json").read_text())
    listed = (tmp_path / "pets_train_activeft_sampleNum_4.txt").read_text().splitlines()
    assert listed == [names[i] for i in ids]
    assert all((tmp_path / "pets" / "train" / name).is_file() for name in listed)
