"""Flags that decide which pixels and which targets a step is given: what the loss saw, against timm driven by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from data_selection.images.pools import IMAGENET_MEAN, IMAGENET_STD
from deit.samples.draws import AUGMENT, ORDER, hashed, seed_of, seeded
from tests.support.flag_runs import ROWS, SIZE, Runs, row

pytestmark = pytest.mark.usefixtures("one_thread")
LARGE = 48  # above this trainer's small sizes, which are only shifted
POOL = [0, 1, 2, 3, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("pixels"))


def order_of(seed, epoch, repeated=False):
    """Places in POOL of an epoch of eight images, by torch alone."""
    order = torch.randperm(len(POOL), generator=torch.Generator().manual_seed(seed_of(seed, ORDER, epoch)))
    return order.repeat_interleave(3) if repeated else order


def files(runs):
    """The images of POOL in their order."""
    names = sorted((runs.images / "train").rglob("*.png"))
    return [names[i] for i in POOL]


def expected(runs, size, epoch, seed=0, repeated=False, **settings):
    """The pixels of an epoch by timm's transform, its draws seeded as the trainer says: by seed, epoch and place."""
    given = {"color_jitter": None, "auto_augment": None, "interpolation": "bicubic"} | settings
    transform = create_transform(size, is_training=True, mean=IMAGENET_MEAN, std=IMAGENET_STD, **given)
    if size <= 32:
        from torchvision.transforms import RandomCrop

        transform.transforms[0] = RandomCrop(size, padding=4)
    paths, pixels = files(runs), []
    for place, i in enumerate(order_of(seed, epoch, repeated).tolist()):
        image = Image.open(paths[i]).convert("RGB")
        if size <= 32:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        with seeded(int(hashed(seed, AUGMENT, epoch, place)) & (1 << 63) - 1):
            pixels.append(transform(image))
    return torch.stack(pixels)


def pixels_of(run, epoch=1, updates=2):
    """What the loss saw of an epoch."""
    return torch.cat([part.images for part in run.seen[(epoch - 1) * updates : epoch * updates]])


TIMMS = [  # flag, two values, timm's word for it, what else is set
    ("color_jitter", 0.0, 0.6, "color_jitter", {}),
    ("aa", None, "rand-m9-mstd0.5-inc1", "auto_augment", {}),
    ("train_interpolation", "bicubic", "bilinear", "interpolation", {"reprob": 0.01}),
    ("train_interpolation", "bicubic", "random", "interpolation", {}),
    ("reprob", 0.0, 0.9, "re_prob", {}),
    ("remode", "const", "pixel", "re_mode", {"reprob": 0.9}),
    ("remode", "const", "rand", "re_mode", {"reprob": 0.9}),
    ("recount", 1, 3, "re_count", {"reprob": 0.9}),
]
WORDS = {"reprob": "re_prob"}


@pytest.mark.parametrize(("flag", "one", "other", "word", "extra"), TIMMS, ids=[f"{r[0]}-{r[2]}" for r in TIMMS])
def test_the_pixels_are_those_of_timms_transform(runs, flag, one, other, word, extra):
    seen = []
    for value in (one, other):
        run = runs(input_size=LARGE, epochs=1, cache="none", **extra | {flag: value})
        settings = {WORDS[name]: setting for name, setting in extra.items()} | {word: value or None}
        if word == "re_prob":
            settings[word] = value
        elif "remode" not in (flag, *extra) and "re_prob" in settings:
            settings["re_mode"] = "pixel"
        if value in (None, 0.0, "bicubic") and not extra:  # crops alone, drawn as of images that are kept
            kept = runs(input_size=LARGE, epochs=1, **{flag: value})
            assert (pixels_of(run) - pixels_of(kept)).abs().mean() < 0.01
        else:
            torch.testing.assert_close(pixels_of(run), expected(runs, LARGE, 1, **{"re_mode": "pixel"} | settings))
        seen.append(pixels_of(run))
    assert not torch.allclose(*seen)


ROWS |= {entry[0]: entry for entry in TIMMS}


@row("seed", 0, 7)
@pytest.mark.parametrize("epoch", [1, 2])
def test_the_seed_moves_order_and_augmentation(runs, one, other, epoch):
    for seed in (one, other):
        run = runs(input_size=LARGE, epochs=2, cache="none", seed=seed, color_jitter=0.4)
        wanted = expected(runs, LARGE, epoch, seed, color_jitter=0.4)
        torch.testing.assert_close(pixels_of(run, epoch), wanted)
        run = runs(epochs=2, cache="none", seed=seed, color_jitter=0.4)
        torch.testing.assert_close(pixels_of(run, epoch), expected(runs, SIZE, epoch, seed, color_jitter=0.4))


def as_levels(pixels):
    """Normalised pixels as whole levels 0..255."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels * std + mean) * 255).round().to(torch.int64)


@pytest.mark.parametrize(("size", "augment"), [(SIZE, "crop"), (LARGE, "crop"), (LARGE, "shift")])
def test_the_seed_moves_the_draws_of_whole_batches(runs, size, augment):
    """Images kept as one tensor: one image alone, always at the same place, is cut elsewhere by seed and by epoch."""
    (runs.images / "one.json").write_text("[5]")
    cuts = []
    for seed in (0, 7, 8):
        run = runs(input_size=size, seed=seed, cache="device", subset_ids=runs.images / "one.json", augment=augment)
        cuts += [as_levels(part.images) for part in run.seen]
    assert len(cuts) == 9
    different = {tuple(cut.flatten().tolist()) for cut in cuts}
    assert len(different) >= 8
    assert len({tuple(cut.flatten().tolist()) for cut in cuts[::3]}) == 3  # the first epochs of three seeds


@row("repeated_aug", True, False)
def test_each_image_comes_three_times_or_once(runs, one, other):
    for repeated in (one, other):
        run = runs(epochs=1, cache="none", color_jitter=0.4, no_repeated_aug=None if repeated else True)
        wanted = expected(runs, SIZE, 1, repeated=repeated, color_jitter=0.4)
        assert len(wanted) == 24 if repeated else 8
        torch.testing.assert_close(pixels_of(run, updates=len(run.seen)), wanted)


@row("augment", "crop", "shift")
def test_shifted_images_are_moved_views(runs, one, other):
    """28 x 28 images shown as 28 x 28, so that a shifted one is the file's own pixels moved by at most 3."""
    run = runs(input_size=28, model="demo_vit", augment=other, epochs=1, finetune="none")
    flipped, offsets = set(), set()
    for pixels, i in zip(as_levels(pixels_of(run)), order_of(0, 1).tolist(), strict=True):
        image = torch.from_numpy(np.array(Image.open(files(runs)[i]).convert("RGB"))).permute(2, 0, 1)
        found = [
            (down, across, mirror)
            for down in range(-3, 4) for across in range(-3, 4) for mirror in (False, True)
            if torch.equal(
                (pixels.flip(2) if mirror else pixels)[:, 3:-3, 3:-3],
                image[:, 3 + down : 25 + down, 3 + across : 25 + across].long(),
            )
        ]  # fmt: skip
        assert found
        flipped.add(found[0][2])
        offsets.add(found[0][:2])
    assert flipped == {False, True}
    assert len(offsets) > 3
    cropped = runs(input_size=28, model="demo_vit", augment=one, epochs=1, finetune="none")
    assert not torch.allclose(pixels_of(run), pixels_of(cropped))


@row("input_size", SIZE, LARGE)
def test_images_have_the_asked_size(runs, one, other):
    for size in (one, other):
        assert {part.images.shape[1:] for part in runs(input_size=size, epochs=1).seen} == {(3, size, size)}


@row("pixels", "data-set", "model")
def test_pixels_are_normalised_as_asked(runs, one, other):
    """test_vit was pretrained with a mean and a standard deviation of a half, from the very edge of the image."""
    from deit import job

    means, real = [], job.make_pipeline

    def noted(args, defaults):
        pipeline = real(args, defaults)
        means.append((pipeline.mean, pipeline.std, pipeline.view is not None))
        return pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "make_pipeline", noted)
        runs(epochs=1, pixels=one, lr_noise_pct=0.5)
        model = runs(epochs=1, pixels=other, augment="shift")
    assert means[0] == (IMAGENET_MEAN, IMAGENET_STD, False)
    assert means[1] == ((0.5,) * 3, (0.5,) * 3, True)
    assert pixels_of(model).min() == -1  # black
    assert pixels_of(model).max() > 0.9


@row("subset_ids", [0, 1, 12, 13], [2, 3, 14, 15])
def test_the_images_are_those_of_the_list(runs, one, other):
    for ids in (one, other):
        path = runs.images / f"list_{ids[0]}.json"
        path.write_text(json.dumps(ids))
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed_of(0, ORDER, 1)))
        run = runs(subset_ids=path, epochs=1, augment="shift", cache="device")
        names = sorted((runs.images / "train").rglob("*.png"))
        sums = [float(np.array(Image.open(names[ids[i]])).mean()) for i in order]
        seen = as_levels(pixels_of(run)).double().mean((1, 2, 3))
        np.testing.assert_allclose(seen.numpy(), sums, atol=30)
        assert np.corrcoef(seen.numpy(), sums)[0, 1] > 0.9
