"""What images take in memory: one room for all of a run, no pixels twice, of several ranks each its share."""

import numpy as np
import pytest
import torch

from data_selection.common.distributed import World
from data_selection.images.pools import Pool
from deit import job as deit_job
from deit.datasets import PilImages, prepare, prepare_share
from deit.job import decode, open_job
from deit.options import parse
from deit.samples import keeping
from deit.samples.keeping import Room, Share
from deit.samples.pipeline import Pipeline
from deit.samples.tensor_images import EvaluationImages, ViewedImages
from tests.support.thread_world import on_ranks
from tests.support.trainer_runs import command, make_images

ALONE = World(0, 1, torch.device("cpu"))
SIDE = 40
PIPELINE = Pipeline(SIDE, (0.5,) * 3, (0.5,) * 3)


class Two(World):
    """A rank of two whose neighbour has 900 bytes less."""

    def least(self, value):
        return value - 900


@pytest.fixture(scope="module")
def pool():
    pixels = np.random.default_rng(0).integers(0, 256, (11, SIDE, SIDE, 3), dtype=np.uint8)
    return Pool(arrays=pixels, labels=list(range(11)), classes=11)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_the_processes_of_a_machine_share_one_room(monkeypatch):
    monkeypatch.setattr(keeping, "CACHE_BYTES", 8000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert Room().left == Room(ALONE).left == 8000
    assert Room(Two(0, 2, torch.device("cpu"))).left == 4000 - 900
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert Room(Two(0, 16, torch.device("cpu"))).left == 1000 - 900
    assert Room(Two(0, 16, torch.device("cuda", 3))).left == 8000 - 900  # a card of its own
    room = Room()
    assert [room.take(count) for count in (5000, 3001, 3000, 1)] == [True, False, True, False]


def test_the_pools_of_a_run_share_it(pool, monkeypatch):
    each = 3 * 11 * SIDE * SIDE
    for bytes_, kinds in ((2 * each, [ViewedImages, ViewedImages]), (2 * each - 1, [ViewedImages, PilImages])):
        monkeypatch.setattr(keeping, "CACHE_BYTES", bytes_)
        room = Room()
        found = [prepare(pool, range(11), PIPELINE, ALONE.device, train=False, workers=0, room=room) for _ in range(2)]
        assert [isinstance(images, kind) for images, kind in zip(found, kinds, strict=True)] == [True, True]


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_a_rank_holds_its_share_alone(pool, cache):
    whole = prepare(pool, range(11), PIPELINE, ALONE.device, train=False, cache=cache, workers=0)

    def part(world):
        share = prepare_share(world, pool, range(11), PIPELINE, cache=cache, workers=0)
        assert isinstance(share, Share)
        assert len(share) == 11
        return len(share.held), [*share.plain(range(world.rank, 11, world.size), 2)], share

    parts = on_ranks(3, part)
    assert [part[0] for part in parts] == [4, 4, 3]
    for rank, (_, batches, share) in enumerate(parts):
        expected = [*whole.plain(range(rank, 11, 3), 2)]
        for one, other in zip(batches, expected, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
        with pytest.raises(IndexError, match=f"of process {rank} of 3"):
            share.plain(range(11), 2)


def test_ranks_with_fewer_images_take_as_much_room(pool, monkeypatch):
    """Else one would keep them and another one not."""
    monkeypatch.setattr(keeping, "CACHE_BYTES", 3 * 3 * SIDE * SIDE)
    kinds = on_ranks(4, lambda world: type(prepare_share(world, pool, range(10), PIPELINE, workers=0).held))
    assert kinds == [EvaluationImages] * 4
    monkeypatch.setattr(keeping, "CACHE_BYTES", 3 * 3 * SIDE * SIDE - 1)
    kinds = on_ranks(4, lambda world: type(prepare_share(world, pool, range(10), PIPELINE, workers=0).held))
    assert kinds == [PilImages] * 4


@pytest.mark.parametrize("flags", [{}, {"recipe": "few-shot", "warmup_epochs": None, "input_size": 40}])
def test_train_and_frozen_hold_the_same_pixels_once(images, flags):
    job = open_job(parse(command(images, mode="lp-ft", **flags)), ALONE)
    data = decode(job, frozen=True, train=True)
    assert data.frozen is data.train
    plain = decode(job, frozen=True, train=False).frozen
    for (one, labels), (other, same) in zip(data.frozen.plain(range(20), 8), plain.plain(range(20), 8), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(labels, same)
    side = job.args.input_size
    margin = side // 8
    assert data.train.images.untyped_storage().nbytes() == 20 * 3 * (side + 2 * margin) ** 2


def test_a_job_of_several_holds_shares_of_what_it_evaluates(images, monkeypatch):
    monkeypatch.setattr(deit_job, "Room", lambda world: Room())
    flags = {"mode": "lp-ft", "val_fraction": 0.25, "input_size": 40, "batch_size": 2}
    for words, whole in (({}, False), ({"no_dist_eval": True}, True)):
        job = open_job(parse(command(images, **flags | words)), ALONE)
        job.world = World(1, 2, torch.device("cpu"))
        data = decode(job, frozen=True, train=False)
        counts = [len(part.held) if isinstance(part, Share) else len(part) for part in (data.test, data.held)]
        assert counts == ([10, 5] if whole else [5, 2])
        assert len(data.frozen.held) == 7
