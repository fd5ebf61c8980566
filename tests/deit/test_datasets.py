"""Images of the trainer: batched augmentation against PIL's, no word from workers, folders, bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.images import pools
from data_selection.images.label_files import labelled_folder
from deit.datasets import Transformed, prepare
from deit.main import main
from deit.samplers import epoch_order, plan_epoch
from deit.samples import sources
from deit.samples.draws import seeded
from deit.samples.pipeline import MARGIN, Pipeline
from deit.samples.sources import find_data, open_images, say_of_origin
from tests.support.trainer_runs import command, log_lines, write_images

CPU = torch.device("cpu")
GREY = Pipeline(28, (0.286,) * 3, (0.353,) * 3)


@pytest.fixture(scope="module")
def pool():
    arrays = pools.load_demo()
    return pools.Pool(arrays=arrays["train_images"][:40], labels=arrays["train_labels"][:40], classes=10)


def load(pool, pipeline, ids=range(30), **settings):
    return prepare(pool, list(ids), pipeline, CPU, train=True, **{"seed": 1, "workers": 0} | settings)


def epoch(data, number, batch=90, world_size=1):
    """All augmented images of an epoch by their place in its order, over all processes."""
    order = epoch_order(len(data), number)
    images = {}
    for rank in range(world_size):
        parts = [part for step in plan_epoch(order, 45, batch, rank, world_size) for part in step.parts]
        for part, (batch_images, labels) in zip(parts, data.augmented(parts, number), strict=True):
            pairs = zip(batch_images, labels.tolist(), strict=True)
            images |= dict(zip(part.places.tolist(), pairs, strict=True))
    return torch.stack([images[place][0] for place in range(len(order))]), [images[p][1] for p in range(len(order))]


def test_batched_crops_are_crops_of_the_padded_image(pool):
    images, labels = epoch(load(pool, GREY), 1)
    order = epoch_order(30, 1)
    assert labels == [pool.labels[i] for i in order]
    offsets = set()
    for image, i in zip(images, order.tolist(), strict=True):
        padded = np.pad(pool.arrays[i].astype(np.float32), MARGIN) / 255
        pixels = (image * 0.353 + 0.286).numpy()
        found = [
            (y, x, flip) for y in range(9) for x in range(9) for flip in (1, -1)
            if np.abs(pixels[0] - padded[y : y + 28, x : x + 28][:, ::flip]).max() < 1e-5
        ]  # fmt: skip
        assert found
        offsets.update(found[:1])
    assert len(offsets) > 50  # of 162 possible ones, 90 drawn


@pytest.mark.parametrize("pipeline", [GREY, Pipeline(28, (0.5,) * 3, (0.5,) * 3, aa="rand-m9-mstd0.5-inc1", reprob=0.5),
                                      Pipeline(40, (0.5,) * 3, (0.5,) * 3, color_jitter=0.4),
                                      Pipeline(40, (0.5,) * 3, (0.5,) * 3)])  # fmt: skip
def test_augmentation_depends_on_epoch_and_place_alone(pool, pipeline):
    data = load(pool, pipeline)
    whole = epoch(data, 1)[0]
    assert torch.equal(epoch(data, 1, batch=4, world_size=3)[0], whole)
    assert not torch.equal(epoch(data, 2)[0], whole)
    first = epoch_order(30, 1)[:3]
    assert len(set(first.tolist())) == 1
    assert not torch.equal(whole[0], whole[1])  # the repeats of an image differ
    assert whole.shape == (90, 3, pipeline.size, pipeline.size)


def test_workers_change_nothing_and_live_on(pool):
    pipeline = Pipeline(40, (0.5,) * 3, (0.5,) * 3)
    data = load(pool, pipeline, workers=1, cache="ram")
    alone = load(pool, pipeline, cache="ram")
    for number in (1, 2):
        assert torch.equal(epoch(data, number)[0], epoch(alone, number)[0])
    assert data.loader.persistent_workers


def test_evaluation_images_match_their_transform(pool):
    for pipeline in (GREY, Pipeline(40, (0.5,) * 3, (0.5,) * 3)):
        data = prepare(pool, range(40), pipeline, CPU, train=False, workers=0)
        images = torch.cat([images for images, _ in data.plain(range(1, 40, 2), 7)])
        plain = Transformed(pool, range(40), None, pipeline.eval_transform())
        expected = torch.stack([plain[i, None][0] for i in range(1, 40, 2)])
        wrong = (images - expected).abs() > 1e-5
        assert wrong.float().mean() < 0.01  # a pixel that lies between two grey levels may go either way
        assert (images - expected).abs().max() < 2.01 / 255 / 0.35


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "original", "augmix-m10", "3a"])
def test_every_policy_runs_at_full_strength(policy):
    transform = Pipeline(28, (0.5,) * 3, (0.5,) * 3, aa=policy).train_transform()
    image = Image.fromarray(np.arange(28 * 28 * 3, dtype=np.uint8).reshape(28, 28, 3))
    for seed in range(60):
        with seeded(seed):
            assert transform(image).shape == (3, 28, 28)


def test_class_folders_count_in_extraction_order(tmp_path):
    write_images(tmp_path, ["a/2.png", "a-b/1.png", "a/1.png", "c/deep/1.png"])
    pool = labelled_folder(tmp_path, None, "--labels")
    assert pool.names == pools.open_pool(str(tmp_path)).names
    assert [pool.class_names[label] for label in pool.labels] == [name.split("/")[0] for name in pool.names]
    data = prepare(pool, [0, 3], Pipeline(28, (0.5,) * 3, (0.5,) * 3), CPU, train=True)
    assert data.central(data.images).shape == (2, 3, 28, 28)  # resized


def test_a_class_is_the_first_folder_that_not_all_images_share(tmp_path):
    write_images(tmp_path, ["images/cat/a/1.png", "images/cat/b/1.png", "images/dog/1.png"])
    pool = labelled_folder(tmp_path, None, "--labels")
    assert (pool.class_names, pool.labels) == (("cat", "dog"), [0, 0, 1])
    write_images(tmp_path, ["images/stray.png"])
    with pytest.raises(UserError, match=r"images/stray\.png lies in no class folder: put .* into .*/images/<class>/"):
        labelled_folder(tmp_path, None, "--labels")


def test_folders_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r"train does not exist: --data-path must hold train/<class>/"):
        open_images("FOLDER", tmp_path)
    write_images(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"])
    with pytest.raises(UserError, match=r"val has the label 'c', no class of .*train \(a, b\)"):
        open_images("FOLDER", tmp_path)
    write_images(tmp_path, ["val/1.png"])
    with pytest.raises(UserError, match=r"1\.png lies in no class folder"):
        open_images("FOLDER", tmp_path)


def test_imagenet_is_found_in_both_places(tmp_path, monkeypatch):
    write_images(tmp_path / "ImageNet", ["train/n1/1.png", "train/n2/1.png", "val/n1/1.png", "val/n2/1.png"])
    assert find_data("IMNET", tmp_path) == tmp_path / "ImageNet"
    train, val = open_images("IMNET", tmp_path)
    assert (train.classes, len(val)) == (2, 2)
    assert len(open_images("IMNET", tmp_path / "ImageNet")[0]) == 2
    with pytest.raises(UserError, match="ImageNet"):
        open_images("IMNET", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    assert find_data("CIFAR10", None).parts[-2:] == ("deit", "data")
    (tmp_path / "data").mkdir()
    assert str(find_data("CIFAR10", None)) == "data"


def test_what_extraction_downloaded_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "DATA", tmp_path / "extraction")
    monkeypatch.setattr(sources, "DEFAULT_PATH", tmp_path / "deit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extraction" / "cifar-10-batches-py").mkdir(parents=True)
    assert find_data("CIFAR10", None) == tmp_path / "extraction"
    assert find_data("CIFAR100", None) == tmp_path / "deit"  # to be downloaded there
    (tmp_path / "data").mkdir()
    assert find_data("CIFAR10", None) == tmp_path / "extraction"
    assert str(find_data("CIFAR100", None)) == "data"
    assert str(find_data("CIFAR10", "data")) == "data"
    (tmp_path / "data" / "cifar-10-batches-py").mkdir()
    assert str(find_data("CIFAR10", None)) == "data"


def test_a_list_chosen_from_another_data_set_is_told(tmp_path):
    lines = []
    told = '{"features": {"shape": [40, 8], "provenance": {"pool": {"name": "FashionMNIST"}}}}'
    (tmp_path / "s.provenance.json").write_text(told)
    for name in ("FASHIONMNIST", "FOLDER", "CIFAR10"):
        say_of_origin(tmp_path / "s.json", name, lines.append)
    assert len(lines) == 1
    assert "was chosen from FashionMNIST, and the data set is CIFAR10" in lines[0]
    say_of_origin(tmp_path / "none.json", "CIFAR10", lines.append)
    (tmp_path / "s.provenance.json").write_text('{"features": null}')
    say_of_origin(tmp_path / "s.json", "CIFAR10", lines.append)
    assert len(lines) == 1


@pytest.mark.parametrize("name", ["CUB2011", "CUB2011SUBSET"])
def test_the_trainer_reads_cub(tmp_path, name):
    files = [f"00{i % 2 + 1}.Bird/{9 - i}.jpg" for i in range(6)]
    write_images(tmp_path / "CUB_200_2011" / "images", files)
    tables = {"images": files, "image_class_labels": [1, 2] * 3, "train_test_split": [1, 1, 0, 1, 1, 0]}
    for table, values in tables.items():
        lines = [f"{i + 1} {value}\n" for i, value in enumerate(values)]
        (tmp_path / "CUB_200_2011" / f"{table}.txt").write_text("".join(lines))
    train, test = open_images("CUB2011", tmp_path)
    assert (train.labels, test.labels, len(train), len(test)) == ([0, 1, 1, 0], [0, 1], 4, 2)
    (tmp_path / "subset.json").write_text("[3, 1]")
    subset = tmp_path / "subset.json" if name.endswith("SUBSET") else None
    main(command(tmp_path, tmp_path / "out", data_set=name, subset_ids=subset, finetune="none", epochs=1))
    assert len(log_lines(tmp_path / "out")) == 1
