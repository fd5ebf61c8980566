"""What the clock counts beside plain steps: last heads, parts that are asked, other processes, a run to continue."""

import argparse
import dataclasses

import pytest
import torch

from data_selection.common.distributed import World
from deit import timing
from deit.epochs import VIEWS
from deit.selftrain import steps_of_round
from deit.timing import estimate, images_of_parts, measured, settle, take_over
from tests.support.thread_world import on_ranks
from tests.support.trainer_runs import make_images

CPU = torch.device("cpu")
LABELS, POOL, BATCH = 20, 24, 8
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def timed(job_of):
    """job_of with steps of BATCH images, which see each image once."""

    def make(mode="lp-ft", **flags):
        usual = {"global_batch_size": BATCH, "no_repeated_aug": True, "mode": mode, "epochs": 20}
        return job_of(**usual | ({"sched_unit": "step", "rounds": 3} if mode == "self-train" else {}) | flags)

    return make


def test_the_last_head_of_three_phases_takes_a_forward_pass_of_every_view(timed):
    more = estimate(timed("three-phase"), 1.0) - estimate(timed(), 1.0)
    assert more == pytest.approx((1 + VIEWS) * LABELS / 3 / BATCH)


@pytest.mark.parametrize(("asked", "count"), [
    (["lp-ft", "full"], 0), (["lp-ft", "three-phase"], (1 + VIEWS) * LABELS), (["self-train"], 2 * POOL),
])  # fmt: skip
def test_each_part_that_is_asked_has_its_own_views_and_embeds_the_pool(timed, asked, count):
    job = timed(folds=2)  # each part learns from half of the labels, and sees the whole pool
    assert images_of_parts(job, asked) == count
    steps = 2 * 20 * 2 * (1 + ("full" in asked)) + 2 * steps_of_round(job) * ("self-train" in asked)
    without = dataclasses.replace(job, args=argparse.Namespace(**vars(job.args) | {"folds": 0}))
    assert estimate(job, 1.0, asked) - estimate(without, 1.0, asked) == pytest.approx(steps + count / 3 / BATCH)


def test_there_are_no_more_parts_than_labels(timed):
    job = timed(folds=5)
    assert timing.sizes_of_parts(dataclasses.replace(job, ids=job.ids[:3])) == [2, 2, 2]
    assert timing.sizes_of_parts(dataclasses.replace(job, ids=job.ids[:7])) == [5, 5, 6, 6, 6]


def test_each_of_several_processes_has_its_share_of_a_steps_passes(timed, monkeypatch):
    monkeypatch.setattr(timing, "lap", lambda *_: 2.0)
    for size, passes in ((1, 4), (2, 2), (4, 1)):
        job = timed(amp="off", batch_size=2)
        job.world = World(0, size, CPU)
        assert measured(job) == {"off": 2.0 * passes}


def test_several_processes_take_a_steps_time_for_as_many_images(timed):
    """A step is all processes' work: it is so much shorter, and a forward pass of all images with it."""
    alone = estimate(timed("self-train"), 1.0)
    for shares, longer in ((True, 0.0), (False, 3 * (2 + 20) * 10 / 3 / BATCH)):  # 10 images are judged 22 times
        job = timed("self-train", no_dist_eval=None if shares else True)
        job.world = World(0, 4, CPU)
        assert estimate(job, 1.0) - alone == pytest.approx(longer)


def test_the_first_process_clock_decides_for_all(timed, monkeypatch):
    """Each would choose another precision and other epochs by its own."""
    jobs = [timed(amp="measured", minutes=0.5) for _ in range(2)]
    clocks = {0: {"off": 1.0, "bf16": 0.5}, 1: {"off": 3.0, "bf16": 9.0}}
    monkeypatch.setattr(timing, "measured", lambda job: clocks[job.world.rank])

    def run(world):
        jobs[world.rank].world = world
        return settle(jobs[world.rank]), jobs[world.rank].args.amp, jobs[world.rank].args.epochs

    first, second = on_ranks(2, run)
    assert first == second
    assert first[:2] == (0.5, "bf16")


def test_all_that_the_clock_has_changed_is_in_the_settings(timed, monkeypatch):
    monkeypatch.setattr(timing, "measured", lambda job: {"off": 9.0})
    job = timed("self-train", amp="off", folds=2, restarts=2, minutes=0.1)
    settle(job)
    left = {name: getattr(job.args, name) for name in ("restarts", "epochs", "rounds", "folds")}
    assert left == {"restarts": 1, "epochs": timing.FEWEST, "rounds": 1, "folds": 0}
    assert {name: job.settings[name] for name in left} == left


def test_a_continued_run_has_as_many_chunks_as_its_rounds_have(timed):
    job = timed("self-train", minutes=1)
    asked = job.pool_epochs
    take_over(job, {"restarts": 1, "epochs": 20, "rounds": 1, "folds": 0})
    assert (asked, job.pool_epochs, job.args.rounds) == (3, 1, 1)
