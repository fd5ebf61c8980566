"""Time told and kept: what a run takes by estimate, what --minutes leaves out, the precision that a clock chooses."""

import copy
import dataclasses

import pytest
import torch

from data_selection.common.distributed import World
from deit import epochs as deit_epochs
from deit import timing
from deit.learner.building import autocast_type
from deit.main import main
from deit.selftrain import pool_epochs, steps_of_round
from deit.timing import FEWEST, estimate, fit, measured, settle
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images

ALONE = World(0, 1, torch.device("cpu"))
PLAIN = {"global_batch_size": 8, "no_repeated_aug": True, "mode": "lp-ft"}  # 20 labels: 3 steps an epoch
POOL = PLAIN | {"mode": "self-train", "sched_unit": "step", "epochs": 20, "rounds": 3, "folds": 2}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def changed(job, **values):
    """The job with other values of its flags."""
    other = dataclasses.replace(job, args=copy.copy(job.args))
    vars(other.args).update(values)
    other.pool_epochs = pool_epochs(other)
    return other


def test_the_estimate_counts_steps_and_forward_passes(job_of):
    looks = (2 + 10) * 10 / 8 / 3  # twelve evaluations of 10 images, a third of a step of 8 images each
    assert estimate(job_of(**PLAIN, epochs=10), 6.0) == pytest.approx(6 * (10 * 3 + looks))
    halves = 2 * 10 * 2  # two parts of 10 labels, 2 steps an epoch
    assert estimate(job_of(**PLAIN, epochs=10, folds=2), 6.0) == pytest.approx(6 * (10 * 3 + halves + looks))
    held = job_of(**PLAIN, epochs=10, folds=3, val_fraction=0.25)  # 15 labels, 2 steps; asked on the other 5
    looks *= 1.5  # those 5 are judged by as often
    assert estimate(held, 6.0) == pytest.approx(6 * (10 * 2 + 10 * 2 + looks))
    assert estimate(changed(held, folds=0), 6.0) == pytest.approx(6 * (10 * 2 + looks))
    twice = 6 * (2 + 10) * 10 / 8 / 3  # the averaged weights on the evaluation images
    assert estimate(changed(held, eval_ema=True), 6.0) - estimate(held, 6.0) == pytest.approx(twice)


def test_a_long_runs_parts_are_as_short_as_cross_validation_makes_them(job_of):
    job = job_of(**PLAIN, epochs=1000, folds=2)  # 2 steps an epoch: 100 epochs are 200 steps
    assert estimate(job, 1.0) - estimate(changed(job, folds=0), 1.0) == pytest.approx(2 * 200)


def test_the_estimate_grows_with_each_of_its_parts(job_of):
    job = job_of(**POOL)
    base = estimate(job, 1.0)
    assert estimate(job, 2.0) == pytest.approx(2 * base)
    for name, value in (("epochs", 21), ("cooldown_epochs", 1), ("folds", 3), ("rounds", 4), ("restarts", 2)):
        assert estimate(changed(job, **{name: value}), 1.0) >= base + 1, name
    often, rare = (estimate(changed(job, eval_interval=every), 1.0) for every in (1, 20))
    assert often > rare
    rounds = [estimate(changed(job, rounds=count), 1.0) for count in (1, 2)]
    embedded = len(job.train_pool) / 3 / job.global_batch
    assert rounds[1] - rounds[0] == pytest.approx(steps_of_round(job) + embedded)
    more = dataclasses.replace(job, ids=[*job.ids, *job.ids])
    assert estimate(more, 1.0) > base + 1
    assert estimate(dataclasses.replace(job, test_pool=range(100)), 1.0) > base + 1
    longer = dataclasses.replace(job, train_pool=range(200))
    assert estimate(longer, 1.0) > base + 1


def left(job):
    return job.args.rounds, job.args.epochs, job.args.folds


def test_trainings_go_before_their_epochs_and_after_rounds(job_of):
    asked = job_of(**POOL, restarts=3)
    whole, found = estimate(asked, 1.0), []
    for share in (0.999, 0.8, 0.6, 0.4, 0.2):
        job = changed(asked, minutes=share * whole / 60)
        words = fit(job, 1.0)
        found.append((job.args.rounds, job.args.restarts, job.args.epochs))
        assert (f"{job.args.restarts} restarts instead of 3" in words) == (job.args.restarts < 3)
    assert found == sorted(found, reverse=True)
    assert {restarts for _, restarts, _ in found} == {1, 2, 3}
    for rounds, restarts, epochs in found:
        assert restarts == 3 or rounds == 1
        assert epochs == 20 or restarts == 1


def test_rounds_go_first_then_epochs_then_cross_validation(job_of):
    asked = job_of(**POOL)
    whole = estimate(asked, 1.0)
    stages = {}
    for share in (1.1, 0.999, 0.95, 0.7, 0.5, 0.3, 0.12, 0.01):
        job = changed(asked, minutes=share * whole / 60)
        words = fit(job, 1.0)
        stages[share] = left(job)
        fits = estimate(job, 1.0) <= share * whole
        assert fits or left(job) == (1, FEWEST, 0)
        assert job.pool_epochs == pool_epochs(job)
        assert ("nothing is left to leave out" in words) == (not fits)
        assert bool(words) == (left(job) != (3, 20, 2))
    assert stages[1.1] == (3, 20, 2)
    assert stages[0.999] == (2, 20, 2)
    assert stages[0.01] == (1, FEWEST, 0)
    assert any(rounds == 1 and FEWEST <= epochs < 20 and folds == 2 for rounds, epochs, folds in stages.values())
    order = sorted(stages.values(), reverse=True)
    assert list(stages.values()) == order
    for rounds, epochs, folds in stages.values():
        assert epochs == 20 or rounds == 1
        assert folds == 2 or epochs == FEWEST


def test_what_is_left_out_is_told(job_of):
    asked = job_of(**POOL)
    whole = estimate(asked, 1.0)

    def told(job, share):
        job = changed(job, minutes=share * whole / 60)
        return fit(job, 1.0), left(job), f"{job.args.minutes:g}"

    words, _, minutes = told(asked, 0.999)
    assert words == f", for --minutes {minutes} with 2 rounds instead of 3"
    few = changed(asked, epochs=FEWEST, rounds=1)
    without = estimate(changed(few, folds=0), 1.0)
    words, rest, minutes = told(few, 1.001 * without / whole)
    assert rest == (1, FEWEST, 0)
    assert words == f", for --minutes {minutes} with no cross-validation"
    words, rest, minutes = told(few, 0.001)
    assert words == f", more than --minutes {minutes} even with no cross-validation: nothing is left to leave out"
    words, rest, minutes = told(changed(few, folds=0), 0.001)
    assert words == f", more than --minutes {minutes}: nothing is left to leave out"
    plain = changed(job_of(**PLAIN, epochs=20), minutes=0.5)
    assert fit(plain, 1.0) == f", for --minutes 0.5 with {plain.args.epochs} epochs instead of 20"
    assert plain.args.epochs < 20


@pytest.mark.parametrize(("seconds", "chosen"), [
    ({"off": 1.0, "bf16": 0.89}, "bf16"), ({"off": 1.0, "bf16": 0.92}, "off"), ({"off": 1.0, "bf16": 3.0}, "off"),
    ({"off": 1.0}, "off"),
])  # fmt: skip
def test_bf16_is_chosen_where_it_is_worth_it(job_of, monkeypatch, capsys, seconds, chosen):
    job = job_of(**PLAIN, amp="measured", epochs=600)
    monkeypatch.setattr(timing, "measured", lambda job: seconds)
    settle(job)
    assert (job.args.amp, job.settings["amp"]) == (chosen, chosen)
    said = capsys.readouterr().out
    assert "600 epochs of 3 steps (a step takes 1000 ms in float32" in said
    assert ("ms in bf16" in said) == ("bf16" in seconds)
    assert f"about {timing.clock(estimate(job, seconds[chosen]))}" in said


def test_a_gpu_is_not_asked_what_a_cpu_is(job_of, monkeypatch):
    job = job_of(**PLAIN, amp="measured")
    job.world = World(0, 1, torch.device("cuda"))
    monkeypatch.setattr(timing, "measured", lambda job: {"auto": 1.0})
    settle(job)
    assert job.args.amp == job.settings["amp"] == "auto"


@pytest.mark.parametrize(("amp", "has", "names"), [("measured", True, ["off", "bf16"]), ("measured", False, ["off"]),
                                                   ("bf16", False, ["bf16"]), ("auto", True, ["auto"])])  # fmt: skip
def test_a_step_is_timed_in_the_precisions_in_question(job_of, monkeypatch, amp, has, names):
    monkeypatch.setattr(timing, "cpu_has_bf16", lambda: has)
    assert all(0 < took < 60 for took in measured(job_of(**PLAIN, amp=amp)).values())
    laps, seen = iter([9.0, 2.0, 3.0] * len(names)), []

    def lap(model, batch, dtype):
        seen.append((len(batch), dtype))
        return next(laps)

    monkeypatch.setattr(timing, "lap", lap)
    job = job_of(**PLAIN, amp=amp, batch_size=2)
    assert measured(job) == dict.fromkeys(names, 2.0 * 4)  # the fastest lap; four passes of 2 images make a step of 8
    types = [torch.bfloat16 if name == "bf16" else None for name in names]
    assert seen == [(2, dtype) for dtype in types for _ in range(3)]


def test_what_was_not_measured_is_chosen_by_the_device(monkeypatch):
    """--mode linear and --eval time no step."""
    for has, kind in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        for name in ("measured", "auto"):
            assert autocast_type(name, torch.device("cuda")) is kind
            assert autocast_type(name, torch.device("cpu")) is None


def broken_off(monkeypatch, words, epoch):
    """Run words until just before that epoch."""
    real = deit_epochs.one_epoch

    def stop(job, learner, data, number, tally):
        if number == epoch:
            raise ZeroDivisionError
        return real(job, learner, data, number, tally)

    monkeypatch.setattr(deit_epochs, "one_epoch", stop)
    with pytest.raises(ZeroDivisionError):
        main(words)
    monkeypatch.setattr(deit_epochs, "one_epoch", real)


def test_a_resumed_run_keeps_what_the_clock_said_first(images, tmp_path, monkeypatch, capsys):
    flags = PLAIN | {"epochs": 20, "minutes": 0.2, "amp": "measured", "auto_resume": True}
    monkeypatch.setattr(timing, "measured", lambda job: {"off": 0.5, "bf16": 1.0})
    main(command(images, tmp_path / "whole", **flags))
    assert " epochs of 3 steps" in capsys.readouterr().out
    broken_off(monkeypatch, command(images, tmp_path / "part", **flags), 3)
    monkeypatch.setattr(timing, "measured", None)  # whatever it would say now, it is not asked
    main(command(images, tmp_path / "part", **flags))
    lines = log_lines(tmp_path / "part")
    assert lines == log_lines(tmp_path / "whole")
    assert 3 < lines[-1]["epoch"] < 20
    one, two = (checkpoint(tmp_path / name) for name in ("whole", "part"))
    assert one["args"]["epochs"] == two["args"]["epochs"] == lines[-1]["epoch"]
    assert one["args"]["amp"] == two["args"]["amp"] == "off"
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])


def test_minutes_alone_ask_the_clock_and_end_the_run_sooner(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "measured", lambda job: {"off": 1.0})
    main(command(images, tmp_path, **PLAIN | {"epochs": 20, "minutes": 0.3, "amp": "off"}))
    last = log_lines(tmp_path)[-1]["epoch"]
    assert f"{last} epochs of 3 steps (a step takes 1000 ms in float32): about 0:00:" in capsys.readouterr().out
    assert 3 <= last < 20


def test_a_precision_that_is_asked_for_holds_in_a_resumed_run(images, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "measured", lambda job: {"off": 1.0, "bf16": 0.5})
    flags = PLAIN | {"auto_resume": True, "epochs": 3}
    broken_off(monkeypatch, command(images, tmp_path, **flags, amp="measured"), 2)
    assert checkpoint(tmp_path)["args"]["amp"] == "bf16"
    main(command(images, tmp_path, **flags, amp="off"))
    assert checkpoint(tmp_path)["args"]["amp"] == "off"
