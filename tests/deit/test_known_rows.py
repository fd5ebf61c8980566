"""The head on a frozen backbone is scikit-learn's on the extracted features, which are used where they are known."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from data_selection.commands.any_method import main_select
from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.subset_files import load_subset
from data_selection.embedding.backbones import DEMO_WEIGHTS, build_model
from data_selection.images import pools
from deit.learner import known_rows
from deit.main import main
from tests.support.flag_runs import row
from tests.support.trainer_runs import command, few_shot

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN, TEST, CHOSEN = 150, 400, 60
BACKBONES = {"demo_vit": ("demo_vit", 28), "test_resnet": ("timm:test_resnet", 32), "test_vit": ("timm:test_vit", 32)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """pets/train and pets/val of demo images in class folders."""
    root, arrays = tmp_path_factory.mktemp("images") / "pets", pools.load_demo()
    for split, source, count in (("train", "train", TRAIN), ("val", "test", TEST)):
        for i in range(count):
            path = root / split / f"class{arrays[f'{source}_labels'][i]}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"{source}_images"][i]).save(path)
    return root


@pytest.fixture(scope="module")
def few(images, tmp_path_factory):
    """The same training images, and one evaluation image of a class."""
    root = tmp_path_factory.mktemp("few") / "pets"
    root.mkdir()
    (root / "train").symlink_to(images / "train")
    for folder in (images / "val").iterdir():
        (root / "val" / folder.name).mkdir(parents=True)
        shutil.copy(min(folder.iterdir()), root / "val" / folder.name)
    return root


def extracted(images, folder, model, splits=("train", "val")):
    """(feature file of the training images, weights) in a folder; the evaluation images' beside it."""
    arch, size = BACKBONES[model]
    weights = DEMO_WEIGHTS
    if model != "demo_vit":
        weights = folder / f"{model}.pth"
        torch.manual_seed(0)
        torch.save(build_model(arch).state_dict(), weights)
    for split in splits:
        main_extract([
            "--dataset", str(images / split), "--arch", arch, "--pretrained_weights", str(weights), "--input_size",
            str(size), "--amp", "off", "--num_workers", "0", "--device", "cpu", "--output_dir", str(folder),
        ])  # fmt: skip
    return folder / "pets_train.npy", weights


def choose(folder):
    """A list of CHOSEN images of the features in a folder, at random."""
    main_select(["--features", str(folder / "pets_train.npy"), "--method", "random", "--budget", str(CHOSEN),
                 "--output_dir", str(folder), "--filename", "chosen.json", "--device", "cpu"])  # fmt: skip
    return folder / "chosen.json"


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """Folder of the demo backbone's features and a list."""
    folder = tmp_path_factory.mktemp("features")
    extracted(images, folder, "demo_vit", ["train"])
    choose(folder)
    return folder


def linear(images, folder, model, weights, **flags):
    """A command line that fits the head to the chosen images."""
    usual = {"mode": "linear", "data_set": "FOLDERSUBSET", "subset_ids": folder / "chosen.json", "epochs": None,
             "lr": None, "global_batch_size": None, "batch_size": 64, "smoothing": 0, "model": model,
             "finetune": weights, "input_size": BACKBONES[model][1]}  # fmt: skip
    return few_shot(images, **usual | flags)


def labels(table):
    """The class folder of each image."""
    return np.array([name.split("/")[0] for name in table.names])


def accuracy(words, folder):
    main([*words, "--output_dir", str(folder)])
    return json.loads((folder / "result.json").read_text())["last"]["acc1"]


@pytest.mark.parametrize("model", BACKBONES)
def test_the_head_is_scikit_learns_on_the_extracted_features(images, tmp_path, monkeypatch, model):
    path, weights = extracted(images, tmp_path, model)
    ids = load_subset(choose(tmp_path), TRAIN).numpy()
    train, test = load_features(path), load_features(tmp_path / "pets_val.npy")
    rows = train.features[ids].astype(np.float64)
    centre = rows.mean(0)
    scale = np.linalg.norm(rows - centre, axis=1).mean()
    oracle = LogisticRegression(C=30, max_iter=5000, tol=1e-6).fit((rows - centre) / scale, labels(train)[ids])
    wanted = 100 * oracle.score((test.features - centre) / scale, labels(test))
    assert wanted > 35  # of ten classes
    words = linear(images, tmp_path, model, weights)
    assert accuracy(words, tmp_path / "rows") == pytest.approx(wanted, abs=0.3)
    monkeypatch.setattr(known_rows, "at_hand", lambda lists: None)
    assert accuracy(words, tmp_path / "images") == pytest.approx(wanted, abs=0.3)


@pytest.fixture
def read(monkeypatch):
    """The files that are decoded."""
    seen, real = [], pools.Pool.image
    monkeypatch.setattr(pools.Pool, "image", lambda pool, i: seen.append(pool.paths[i]) or real(pool, i))
    return seen


def decoded(read):
    """How many training images were decoded; forgets them."""
    count = sum("/train/" in path for path in read)
    read.clear()
    return count


def test_known_features_leave_the_training_images_closed(few, made, tmp_path, monkeypatch, read, capsys):
    words = linear(few, made, "demo_vit", DEMO_WEIGHTS)
    main(words)
    assert decoded(read) == 0
    assert f"training images are taken from {made}/pets_train.npy; none" in capsys.readouterr().out
    shutil.copy(made / "chosen.json", tmp_path)
    shutil.copy(made / "chosen.provenance.json", tmp_path)
    main(linear(few, tmp_path, "demo_vit", DEMO_WEIGHTS))  # its features are not at hand
    assert decoded(read) == CHOSEN
    monkeypatch.setattr(known_rows, "DATA_SELECTION", made.parent)
    (tmp_path / "features").symlink_to(made)
    monkeypatch.setattr(known_rows, "DATA_SELECTION", tmp_path)
    main(linear(few, tmp_path, "demo_vit", DEMO_WEIGHTS))  # where extraction leaves them
    assert decoded(read) == 0


@row("features", None, "pets_train.npy")
def test_the_features_are_those_named(few, made, tmp_path, read, one, other):
    (tmp_path / "chosen.json").write_text((made / "chosen.json").read_text())  # a list without a record
    main(linear(few, tmp_path, "demo_vit", DEMO_WEIGHTS, features=one))
    assert decoded(read) == CHOSEN
    main(linear(few, tmp_path, "demo_vit", DEMO_WEIGHTS, features=made / other))
    assert decoded(read) == 0
    with pytest.raises(UserError, match="--features is for --mode linear, smoothed and auto: full needs the images"):
        main(command(few, features=made / other))


def copied(made, folder, change):
    """The features with another provenance."""
    for file in made.glob("pets_train.*"):
        shutil.copy(file, folder)
    told = json.loads(sidecar(folder / "pets_train.npy", "provenance").read_text())
    change(told)
    sidecar(folder / "pets_train.npy", "provenance").write_text(json.dumps(told))
    for file in made.glob("chosen.*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize(
    ("change", "flags", "why"),
    [
        (lambda told: told["backbone"].update(weights_sha256="0"), {}, r"by other weights \(demo_vit\.safetensors\)"),
        (lambda told: told["backbone"].update(checkpoint_key="student"), {}, "by other weights"),
        (lambda told: told["backbone"].update(n_last_blocks=4), {}, "of several blocks"),
        (lambda told: told["backbone"].update(avgpool_patchtokens=True), {}, "of several blocks, or of patch tokens"),
        (lambda told: None, {"pixels": "data-set"}, r"of other pixels \(.*mean .* there, .* here"),
        (lambda told: told["preprocess"].update(background="black"), {}, "background black there, .* here"),
        (lambda told: told["preprocess"].pop("crop"), {}, r"of other pixels \(crop None there, .* here"),
        (lambda told: told.clear(), {}, "by other weights"),
    ],
)
def test_features_that_do_not_fit_are_refused(few, made, tmp_path, change, flags, why):
    copied(made, tmp_path, change)
    words = linear(few, tmp_path, "demo_vit", DEMO_WEIGHTS, **flags)
    with pytest.raises(UserError, match=f"--features .* do not hold what the head would see: they are .*{why}"):
        main([*words, "--features", str(tmp_path / "pets_train.npy")])


def test_features_at_hand_that_do_not_fit_are_not_used_and_it_is_said(few, made, tmp_path, read, capsys):
    copied(made, tmp_path, lambda told: told["backbone"].update(weights_sha256="0"))
    main(linear(few, tmp_path, "demo_vit", DEMO_WEIGHTS))
    assert decoded(read) == CHOSEN
    assert "is not used, the training images are embedded anew: they are by other w" in capsys.readouterr().out


def test_features_of_images_that_have_changed_do_not_count(few, made, tmp_path, read):
    other = tmp_path / "pets"
    shutil.copytree(few, other)
    copied(made, tmp_path, lambda told: None)
    first = json.loads((made / "chosen.provenance.json").read_text())["images"]["name"][0]
    Image.new("L", (28, 28), 3).save(other / "train" / first)
    words = linear(other, tmp_path, "demo_vit", DEMO_WEIGHTS)
    with pytest.raises(UserError, match=f"1 of {CHOSEN} training images are not in it as they are today"):
        main([*words, "--features", str(made / "pets_train.npy")])
    assert decoded(read) == 0
    (tmp_path / "pets_train.images.json").unlink()
    with pytest.raises(UserError, match="no record of their images"):
        main([*words, "--features", str(tmp_path / "pets_train.npy")])


def test_lists_that_were_chosen_by_different_features_bring_none(tmp_path):
    files = [tmp_path / f"{name}.json" for name in "ab"]
    for file in files:
        sidecar(file, "provenance").write_text(json.dumps({"features": {"file": f"{file.stem}.npy"}}))
        file.with_suffix(".npy").touch()
    assert known_rows.at_hand(files[:1]) == tmp_path / "a.npy"
    assert known_rows.at_hand(files) is None
