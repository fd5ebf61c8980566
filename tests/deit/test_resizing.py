"""Batched random resized crops: PIL's pixels for the same crop, timm's distribution of crops, the trainer's choice."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from data_selection.common.errors import UserError
from data_selection.images import pools
from deit.datasets import CroppedImages, EvaluationImages, PaddedImages, PilImages, ResizedImages, prepare
from deit.samples import keeping
from deit.samples.draws import seeded, uniform
from deit.samples.keeping import Room
from deit.samples.pipeline import Pipeline
from deit.samples.resizing import TRIES, central_box, random_boxes, resampling, resize

CPU = torch.device("cpu")
HALF = (0.5,) * 3


def noise(height, width, seed=0):
    """Random pixels, smoothed a little: (height, width, 3) uint8."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (90, 120, 48), (50, 40, 40)])
def test_a_crop_is_resized_as_pil_does(interpolation, height, width, size):
    image, chance = noise(height, width), random.Random(0)
    kind = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    for _ in range(6):
        tall, wide = chance.randint(3, height), chance.randint(3, width)
        top, left = chance.randint(0, height - tall), chance.randint(0, width - wide)
        expected = Image.fromarray(image[top : top + tall, left : left + wide]).resize((size, size), kind)
        expected = torch.from_numpy(np.array(expected)).permute(2, 0, 1).float()
        numbers = [torch.tensor([number]) for number in (top, tall, left, wide)]
        rows = resampling(*numbers[:2], size, height, interpolation)
        columns = resampling(*numbers[2:], size, width, interpolation)
        found = resize(torch.from_numpy(image)[None], rows, columns)[0]
        assert (found - expected).abs().max() <= 2
        assert (found != expected).float().mean() < 0.05
        assert (found - expected).mean().abs() < 0.05


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 90), (200, 60)])
def test_crops_are_distributed_as_timms(height, width):
    count, image = 6000, Image.new("RGB", (width, height))
    boxes = random_boxes(uniform(0, torch.arange(count)[:, None], torch.arange(4 * TRIES)), height, width)
    draw = RandomResizedCropAndInterpolation(224)
    with seeded(0):
        theirs = torch.tensor([draw.get_params(image, draw.scale, draw.ratio) for _ in range(count)]).T
    for mine, other in zip(boxes, theirs, strict=True):  # top, left, tall, wide
        mine, other = mine.double(), other.double()
        error = (mine.var() / count + other.var() / count).sqrt()
        assert (mine.mean() - other.mean()).abs() < 5 * error + 1e-9
        spread = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        assert (mine.quantile(spread) - other.quantile(spread)).abs().max() <= max(2, 0.05 * other.max())
    top, left, tall, wide = boxes
    assert ((top >= 0) & (top + tall <= height) & (left >= 0) & (left + wide <= width)).all()
    assert (tall * wide).double().mean() == pytest.approx((theirs[2] * theirs[3]).double().mean().item(), rel=0.05)


def test_the_central_crop_where_none_fits():
    for height, width in ((10, 400), (400, 10), (20, 20)):
        draw = RandomResizedCropAndInterpolation(8, scale=(4.0, 4.0))  # no crop fits
        expected = draw.get_params(Image.new("RGB", (width, height)), draw.scale, draw.ratio)
        assert central_box(height, width) == tuple(expected)


def test_augmented_images_have_the_moments_of_the_transform():
    array = np.stack([noise(32, 32, seed) for seed in range(4)])
    pool = pools.Pool(arrays=array, labels=[0, 1, 2, 3], classes=4)
    pipeline = Pipeline(40, HALF, HALF)
    data = prepare(pool, [2], pipeline, CPU, train=True)
    draws = torch.arange(800)
    part = type("Part", (), {"indices": torch.zeros(800, dtype=torch.int64), "places": draws})
    (images, labels), = data.augmented([part], 1)  # fmt: skip
    assert (labels == 2).all()
    transform = pipeline.train_transform()
    with seeded(1):
        theirs = torch.stack([transform(pool.image(2)) for _ in draws])
    assert (images.mean(0) - theirs.mean(0)).abs().max() < 6 * theirs.std() / len(draws) ** 0.5
    assert (images.std(0) - theirs.std(0)).abs().max() < 0.08
    assert images.flatten(1).std(1).mean() == pytest.approx(theirs.flatten(1).std(1).mean().item(), rel=0.02)


@pytest.mark.parametrize("shape", [(28, 28), (60, 40), (40, 75)])
def test_evaluation_images_match_the_transform(shape):
    array = np.stack([noise(*shape, seed) for seed in range(3)])
    pool = pools.Pool(arrays=array, labels=[0, 1, 2], classes=3)
    data = prepare(pool, range(3), Pipeline(48, HALF, HALF), CPU, train=False)
    images = torch.cat([images for images, _ in data.plain(range(3), 2)])
    transform = Pipeline(48, HALF, HALF).eval_transform()
    expected = torch.stack([transform(pool.image(i)) for i in range(3)])
    torch.testing.assert_close(images, expected)  # resized once, by Pillow


def test_the_cache_decides_who_transforms(tmp_path):
    pool = pools.Pool(arrays=np.zeros((3, 36, 36, 3), np.uint8), labels=[0, 1, 0], classes=2)
    photos = pools.Pool(arrays=np.zeros((3, 60, 50, 3), np.uint8), labels=[0, 1, 0], classes=2)

    def made(pipeline, pool=pool, train=True, **settings):
        return type(prepare(pool, range(3), pipeline, CPU, train=train, workers=0, **settings))

    assert made(Pipeline(40, HALF, HALF)) is ResizedImages
    assert made(Pipeline(40, HALF, HALF), photos) is CroppedImages
    assert made(Pipeline(40, HALF, HALF), photos, cache="device") is ResizedImages
    assert made(Pipeline(40, HALF, HALF), cache="ram") is PilImages
    assert made(Pipeline(40, HALF, HALF), cache="none") is PilImages
    assert made(Pipeline(40, HALF, HALF, aa="rand-m9")) is PilImages
    assert made(Pipeline(40, HALF, HALF, aa="rand-m9"), train=False) is EvaluationImages
    assert made(Pipeline(40, HALF, HALF), train=False, cache="none") is PilImages
    assert made(Pipeline(28, HALF, HALF)) is PaddedImages
    with pytest.raises(UserError, match="--cache device needs images of one size, and no --aa"):
        made(Pipeline(40, HALF, HALF, reprob=0.1), cache="device")
    for i, side in enumerate((36, 36, 50)):
        Image.new("RGB", (36, side)).save(tmp_path / f"{i}.png")
    folder = pools.folder_pool(tmp_path)
    assert made(Pipeline(40, HALF, HALF), folder) is CroppedImages
    assert made(Pipeline(40, HALF, HALF), pools.Pool(paths=folder.paths[:2] * 2)) is ResizedImages


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pillow_crops_what_the_matrices_crop(interpolation):
    array = np.stack([noise(60, 50, seed) for seed in range(3)])
    pool = pools.Pool(arrays=array, labels=[4, 5, 6], classes=7)
    pipeline = Pipeline(40, (0.4,) * 3, (0.2,) * 3, interpolation=interpolation)
    index = torch.tensor([2, 0, 1, 2, 2, 1])
    part = type("Part", (), {"indices": index, "places": torch.arange(6)})
    found = []
    for cache in ("auto", "device"):
        data = prepare(pool, range(3), pipeline, CPU, train=True, cache=cache, seed=3, workers=2)
        ((images, labels),) = data.augmented([part], 1)
        assert labels.tolist() == (index + 4).tolist()
        found.append(images * 0.2 * 255)
    assert (found[0] - found[1]).abs().max() <= 2.01  # levels
    assert (found[0] - found[1]).abs().mean() < 0.1
    plain, labels = next(prepare(pool, range(3), pipeline, CPU, train=True).plain(range(1, 3), 5))
    expected = torch.stack([pipeline.eval_transform()(pool.image(i)) for i in (1, 2)])
    torch.testing.assert_close(plain, expected)
    assert labels.tolist() == [5, 6]


def test_the_cache_counts_every_image(tmp_path, monkeypatch):
    """A small first image says nothing of the others."""
    for i, side in enumerate((10, 100, 100)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{i}.png")
    pool = pools.folder_pool(tmp_path)
    monkeypatch.setattr(keeping, "CACHE_BYTES", 3 * (10 * 10 + 2 * 100 * 100))
    assert keeping.fits(pool, range(3), True, Room())
    monkeypatch.setattr(keeping, "CACHE_BYTES", keeping.CACHE_BYTES - 1)
    assert not keeping.fits(pool, range(3), True, Room())
    assert keeping.fits(pool, [0, 2], True, Room())
    assert type(prepare(pool, range(3), Pipeline(40, HALF, HALF), CPU, train=True, workers=0)) is PilImages
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png"):
        keeping.fits(pool, range(3), True, Room())
