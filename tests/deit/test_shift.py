"""Images shifted and mirrored: the cached way and PIL's give the same pixels, those of the view and nothing else."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.embedding.preprocessing import Preprocess
from data_selection.images.pools import IMAGENET_MEAN, IMAGENET_STD, Pool
from deit import datasets
from deit.datasets import PilImages, ViewedImages, prepare
from deit.learner.building import make_pipeline, resolve
from deit.main import main
from deit.options import parse
from deit.samplers import epoch_order, plan_epoch
from deit.samples import keeping
from deit.samples.pipeline import Pipeline
from tests.support.trainer_runs import few_shot, log_lines, make_colours

CPU = torch.device("cpu")
SIZES = ((50, 31), (31, 50), (64, 64), (28, 28), (17, 23), (90, 40))  # of the pool's images, in turn
VIEWS = {
    "squashed": Preprocess(28), "a part": Preprocess(28, crop=0.8, squash=False),
    "larger": Preprocess(40, interpolation="bilinear", crop=0.9, squash=False),
}  # fmt: skip
BARE = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # normalising changes nothing, so that pixels can be read off


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder, draw, paths = tmp_path_factory.mktemp("pool"), np.random.default_rng(0), []
    for i, (width, height) in enumerate(SIZES * 4):
        paths.append(folder / f"{i}.png")
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return Pool(paths=list(map(str, paths)), labels=[i % 3 for i in range(len(paths))], classes=3)


def pipeline_of(kind, **settings):
    return Pipeline(VIEWS[kind].size, **BARE | settings, view=VIEWS[kind], augment="shift")


def load(pool, pipeline, train=True, **settings):
    return prepare(pool, list(range(len(pool))), pipeline, CPU, train=train, **{"seed": 1, "workers": 0} | settings)


def epoch(data, number, batch=90, world_size=1):
    """All images of an epoch, each twice over, by their place in its order, over all processes; and the order."""
    order = torch.cat([epoch_order(len(data), number, repeated=False)] * 2)
    images, labels = {}, {}
    for rank in range(world_size):
        parts = [part for step in plan_epoch(order, 20, batch, rank, world_size) for part in step.parts]
        for part, (some, theirs) in zip(parts, data.augmented(parts, number), strict=True):
            images |= dict(zip(part.places.tolist(), some, strict=True))
            labels |= dict(zip(part.places.tolist(), theirs.tolist(), strict=True))
    return torch.stack([images[place] for place in range(len(order))]), [labels[p] for p in range(len(order))], order


@pytest.mark.parametrize("kind", VIEWS)
def test_the_cached_way_and_pils_give_the_same_images(pool, kind):
    held, read = load(pool, pipeline_of(kind)), load(pool, pipeline_of(kind), cache="none")
    assert (type(held), type(read)) == (ViewedImages, PilImages)
    for number in (1, 2):
        one, two = epoch(held, number), epoch(read, number)
        assert torch.equal(one[0], two[0])
        assert one[1] == two[1] == [pool.labels[i] for i in one[2]]
    stats = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    one, two = (epoch(load(pool, pipeline_of(kind, **stats), cache=cache), 1)[0] for cache in ("auto", "none"))
    torch.testing.assert_close(one, two, atol=2e-6, rtol=1e-5)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(one, (epoch(held, 1)[0] - mean) / std, atol=2e-6, rtol=1e-5)


def test_the_images_depend_on_seed_epoch_and_place_alone(pool):
    for cache in ("auto", "none"):
        data = load(pool, pipeline_of("a part"), cache=cache)
        whole = epoch(data, 1)[0]
        assert torch.equal(epoch(data, 1, batch=4, world_size=3)[0], whole)
        other = load(pool, pipeline_of("a part"), cache=cache, seed=2)
        assert not torch.equal(epoch(other, 1)[0], whole)
    same = epoch(data, 1)[2] == 0  # image 0, at two places
    assert not torch.equal(*whole[same])
    assert torch.equal(epoch(load(pool, pipeline_of("a part"), cache="none", workers=1), 1)[0], whole)


@pytest.mark.parametrize("kind", VIEWS)
def test_every_shift_occurs_half_are_mirrored_and_nothing_else_is_done(pool, kind):
    view, margin = VIEWS[kind], VIEWS[kind].size // 8
    data, found = load(pool, pipeline_of(kind)), []
    assert margin == (3 if view.size == 28 else 5)
    framed = [torch.from_numpy(view.pixels(pool.image(i), margin)).permute(2, 0, 1) for i in range(len(pool))]
    places = [*itertools.product(range(2 * margin + 1), range(2 * margin + 1), (False, True))]
    for number in range(1, 6):
        images, _, order = epoch(data, number)
        for image, i in zip((images * 255).round().to(torch.uint8), order.tolist(), strict=True):
            moved = framed[i].unfold(1, view.size, 1).unfold(2, view.size, 1).permute(1, 2, 0, 3, 4)
            both = torch.stack([moved, moved.flip(-1)], 2).flatten(0, 2)  # in the order of places
            which = (both == image).flatten(1).all(1).nonzero().flatten().tolist()
            assert len(which) == 1
            found.append(places[which[0]])
    down, across, mirrored = zip(*found, strict=True)
    assert set(down) == set(across) == set(range(2 * margin + 1))  # -m to m, the view itself being m
    assert 0.4 < sum(mirrored) / len(found) < 0.6
    centre = sum(offset == (margin, margin) for offset in zip(down, across, strict=True))
    assert centre < len(found) / 10
    assert np.corrcoef([down, across, mirrored])[np.triu_indices(3, 1)] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize(("train", "cache"), [(False, "auto"), (False, "none"), (True, "auto")])
def test_evaluation_sees_the_view(pool, kind, train, cache):
    """Of images with a margin too: their centre is the view."""
    data = load(pool, pipeline_of(kind), train=train, cache=cache)
    batches = [*data.plain(range(1, len(pool), 2), 5)]
    images, labels = torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
    expected = np.stack([VIEWS[kind].pixels(pool.image(i)) for i in range(1, len(pool), 2)])
    assert torch.equal(images, torch.from_numpy(expected).permute(0, 3, 1, 2).float() / 255)
    assert labels.tolist() == pool.labels[1::2]


def test_views_are_held_where_they_fit_or_where_it_is_asked(pool, monkeypatch):
    frames = 24 * 3 * (28 + 6) ** 2
    for room, kind in ((frames, ViewedImages), (frames - 1, PilImages)):
        monkeypatch.setattr(keeping, "CACHE_BYTES", room)
        assert type(load(pool, pipeline_of("squashed"))) is kind
        assert type(load(pool, pipeline_of("squashed"), train=False)) is ViewedImages
        for cache in ("ram", "device"):
            assert type(load(pool, pipeline_of("squashed"), cache=cache)) is ViewedImages


def pipelines(*words):
    args = parse(["--data-set", "FOLDER", "--model", "resnet10t", *words])
    return make_pipeline(args, resolve(args)[1])


@pytest.mark.parametrize("size", [24, 32, 40, 96])
def test_with_the_data_sets_pixels_a_shift_moves_what_the_papers_evaluate(pool, size):
    words = ["--input-size", str(size), "--pixels", "data-set"]
    shifted, papers = pipelines(*words), pipelines(*words, "--augment", "crop")
    assert shifted.shifts
    assert papers.view is None
    if size > 32:
        for i in range(len(SIZES)):
            image = pool.image(i)
            assert torch.equal(shifted.eval_transform()(image), papers.eval_transform()(image))
        return
    one, two = (load(pool, pipeline, train=False) for pipeline in (shifted, papers))
    assert type(two) is datasets.PaddedImages
    assert torch.equal(next(one.plain(range(24), 24))[0], next(two.plain(range(24), 24))[0])


def test_the_models_pixels_come_with_their_size_mean_and_crop():
    pipeline = pipelines()
    assert (pipeline.size, pipeline.view) == (176, Preprocess(176, crop=0.875, squash=False))
    assert pipelines("--input-size", "64").view == Preprocess(64, crop=0.875, squash=False)
    other = pipelines("--model", "test_vit")
    assert (other.mean, other.std, other.view.mean) == ((0.5,) * 3, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("size", [28, 35])
def test_the_papers_path_makes_no_views(tmp_path, monkeypatch, size):
    images = make_colours(tmp_path / "images", 3, 1)
    monkeypatch.setattr(datasets, "ViewedImages", None)
    monkeypatch.setattr(datasets, "Shifted", None)
    monkeypatch.setattr(Preprocess, "pixels", None)
    main(few_shot(images, tmp_path / "out", recipe="paper", input_size=size, epochs=1))
    assert len(log_lines(tmp_path / "out")) == 1
    with pytest.raises(TypeError):
        main(few_shot(images, tmp_path / "out", epochs=1))
