"""The course of the rate in runs that are shorter than the flags say: parts, rounds of the pool, --minutes."""

import dataclasses
import itertools

import pytest
import timm
import torch

from deit.job import part_of
from deit.learner.optimizers import make_optimizer
from deit.learner.schedules import make_scheduler, shortened
from deit.options import parse
from deit.timing import estimate, fit, take_over
from tests.support.trainer_runs import make_images

PEAK = ["--lr", "0.512", "--min-lr", "0", "--warmup-lr", "0"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def course(args, updates, epochs=None):
    """The rate of every step, of a peak of 1, where the schedule goes by steps; else of every epoch."""
    optimizer = make_optimizer(args, torch.nn.Linear(2, 2), 1.0)
    scheduler = make_scheduler(args, optimizer, updates, epochs)
    seen = []
    for place in range((epochs or args.epochs) * (updates if args.sched_unit == "step" else 1)):
        seen.append(optimizer.param_groups[0]["lr"])
        (scheduler.step_update if args.sched_unit == "step" else scheduler.step)(place + 1)
    return seen


def words(*more, epochs=30):
    return parse([*PEAK, "--epochs", str(epochs), *more])


@pytest.mark.parametrize("more", [
    ["--warmup-epochs", "6"], ["--warmup-epochs", "0", "--sched", "step", "--decay-epochs", "10"],
    ["--warmup-epochs", "3", "--sched", "step", "--decay-epochs", "10"],
])  # fmt: skip
def test_a_part_takes_the_course_of_the_whole(more):
    args = words("--sched-unit", "step", *more)
    whole = course(args, 10)
    vars(args).update(shortened(args, 3))
    assert course(args, 100) == pytest.approx(whole, abs=0.1)  # the step at the top falls on either side


@pytest.mark.parametrize(("epochs", "warmup"), [(15, 3), (10, 2), (2, 0), (1, 0)])
def test_a_part_by_epochs_has_whole_ones_of_warm_up(epochs, warmup):
    args = words("--sched-unit", "epoch", "--warmup-epochs", "6")
    vars(args).update(shortened(args, epochs))
    assert (args.epochs, args.warmup_epochs) == (epochs, warmup)
    assert max(course(args, 1)) > 0.5


def test_a_share_stays_a_share_and_a_fall_never_becomes_one():
    args = words("--decay-epochs", "0.3")
    assert shortened(args, 3)["decay_epochs"] == 0.3
    assert shortened(words("--decay-epochs", "10"), 2)["decay_epochs"] == 1
    assert shortened(words(), 3)["decay_epochs"] is None


@pytest.mark.parametrize(("more", "top"), [
    (["--warmup-epochs", "6"], 0.2), (["--warmup-epochs", "0"], 0), (["--warmup-steps", "100"], 0.25),
])  # fmt: skip
def test_a_round_of_the_pool_climbs_and_falls(more, top):
    seen = course(words("--sched-unit", "step", *more), 200, epochs=1)
    assert seen.index(max(seen)) == pytest.approx(200 * top, abs=1)
    assert max(seen) > 0.85
    assert seen[-1] < 0.01


@pytest.mark.skipif(not hasattr(timm.scheduler, "WSDLRScheduler"), reason="timm before 1.0.31 has no such schedule")
@pytest.mark.parametrize("sched", ["wsd", "rsqrt"])
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_the_long_schedules_work_in_runs_of_a_few_steps(sched, unit):
    for epochs, updates in itertools.product((1, 2, 3), (1, 2, 3, 4, 5)):
        args = words("--sched", sched, "--sched-unit", unit, "--warmup-epochs", "5", epochs=20)
        seen = course(args, updates, epochs)
        assert max(seen) > 0.6
        assert seen[-1] > 0


def test_what_cross_validation_trains_is_warm_within_it(job_of):
    flags = {"sched_unit": "step", "epochs": 30, "warmup_epochs": 6, "global_batch_size": 8, "no_repeated_aug": True}
    job = job_of(**flags)
    part = part_of(job, job.ids[:10], 6, "")  # two steps an epoch
    assert (part.args.epochs, part.args.warmup_epochs) == (3, pytest.approx(0.6))
    assert (job.args.epochs, job.args.warmup_epochs) == (30, 6)


def test_minutes_leave_a_share_of_warm_up(job_of):
    flags = {"global_batch_size": 8, "no_repeated_aug": True, "mode": "lp-ft", "warmup_epochs": 4}
    job = job_of(**flags, epochs=40)
    job = dataclasses.replace(job, args=job.args)
    job.args.minutes = estimate(job, 1.0) / 60 / 4
    fit(job, 1.0)
    assert 3 <= job.args.epochs < 12
    assert job.args.warmup_epochs == round(4 * job.args.epochs / 40)


def test_a_continued_run_keeps_what_minutes_left_of_its_course(job_of):
    job = job_of(epochs=40, warmup_epochs=4, decay_epochs=8, minutes=5)
    left = {"epochs": 10, "warmup_epochs": 1, "decay_epochs": 2.0}
    take_over(job, left | {"restarts": 1})
    for found in (vars(job.args), job.settings):
        assert {name: found[name] for name in left} == left
