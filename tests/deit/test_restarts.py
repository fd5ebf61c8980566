"""Several trainings on the labels: they begin alike, draw otherwise, and leave the mean of their weights."""

import copy
import shutil

import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError, run
from deit import crossval, engine, epochs, selftrain, timing
from deit.job import open_job, part_of
from deit.learner import restarts
from deit.learner.restarts import copied
from deit.main import main
from deit.options import parse
from tests.deit.test_lost_work import stopped_in
from tests.support.trainer_runs import checkpoint, command, few_shot, log_lines, make_colours, make_images

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS, RESTARTS = 2, 3
BY_FOUR = {"no_repeated_aug": True, "batch_size": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def words(images):
    def make(folder, **flags):
        usual = {"epochs": EPOCHS, "restarts": RESTARTS, "num_workers": 0, "warmup_epochs": 1, "eval_interval": 99,
                 "save_interval": 1, "model_ema_decay": 0.5, "auto_resume": True, "head_scale": 0.5}  # fmt: skip
        return command(images, folder, **usual | flags)

    return make


@pytest.fixture
def seen(monkeypatch):
    """What each training began with (weights, average, how many optimiser states) and ended with (weights, average)."""
    found, begin, end = {"begin": [], "end": []}, restarts.begin, restarts.end

    def weights(learner):
        return copy.deepcopy((learner.model.state_dict(), learner.ema.module.state_dict()))

    def watched_begin(learner):
        begin(learner)
        state = learner.optimizer.state_dict()
        found["begin"].append((*weights(learner), len(state["state"])))
        found.setdefault("groups", []).append([
            {key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]
        ])  # fmt: skip

    def watched_end(learner, number, count):
        found["end"].append(weights(learner))
        end(learner, number, count)

    monkeypatch.setattr(restarts, "begin", watched_begin)
    monkeypatch.setattr(restarts, "end", watched_end)
    return found


def far(one, other):
    return max((one[key].float() - other[key].float()).abs().max().item() for key in one)


@pytest.mark.parametrize(("unit", "opt"), [("epoch", "adamw"), ("step", "adamw"), ("step", "lookahead_adamw"),
                                           ("epoch", "lamb")])  # fmt: skip
def test_the_mean_of_trainings_that_begin_alike(words, seen, tmp_path, unit, opt):
    main(words(tmp_path, sched_unit=unit, warmup_epochs=1 if unit == "epoch" else 0, opt=opt, lr=0.01))
    assert seen["groups"][1:] == seen["groups"][:1] * (RESTARTS - 1)  # rates, and counts of steps that some keep there
    assert len(seen["begin"]) == len(seen["end"]) == RESTARTS
    first = seen["begin"][0]
    for model, average, states in seen["begin"]:
        assert (far(model, first[0]), far(average, first[0]), states) == (0, 0, 0)
    kept = checkpoint(tmp_path)
    for part, key in enumerate(("model", "model_ema")):
        ends = [weights[part] for weights in seen["end"]]
        assert far(ends[0], ends[1]) > 1e-4  # other draws
        assert far(ends[1], ends[2]) > 1e-4
        mean = {name: sum(weights[name] for weights in ends) / RESTARTS for name in ends[0]}
        assert far(kept[key], mean) < 1e-6
    assert "restarts" not in kept
    rates = [line["train_lr"] for line in log_lines(tmp_path)]
    assert rates == rates[:EPOCHS] * RESTARTS
    assert len(set(rates)) == EPOCHS  # a schedule that moves


def test_every_training_has_an_order_and_draws_of_its_own(words, tmp_path, monkeypatch):
    seen, real = {}, epochs.train_one_epoch

    def noted(learner, data, steps, epoch, **rest):
        seen[epoch] = [part.indices.tolist() for step in steps for part in step.parts]
        return real(learner, data, steps, epoch, **rest)

    monkeypatch.setattr(epochs, "train_one_epoch", noted)
    main(words(tmp_path))
    assert list(seen) == list(range(1, 1 + EPOCHS * RESTARTS))  # what the draws go by
    assert len({str(order) for order in seen.values()}) == EPOCHS * RESTARTS


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    main(words(folder))
    return folder


@pytest.fixture(scope="module")
def whole_by_four(words, tmp_path_factory):
    """The same with BY_FOUR."""
    folder = tmp_path_factory.mktemp("whole_by_four")
    main(words(folder, **BY_FOUR))
    return folder


@pytest.mark.parametrize("epoch", [2, 3, 4, 6])
def test_a_run_that_was_killed_goes_on_as_if_it_were_whole(words, whole, tmp_path, monkeypatch, epoch):
    stopped_in(monkeypatch, words(tmp_path / "cut"), epoch)
    assert ("restarts" in checkpoint(tmp_path / "cut")) == (epoch > 1)
    main(words(tmp_path / "cut"))
    for key in ("model", "model_ema"):
        assert far(checkpoint(whole)[key], checkpoint(tmp_path / "cut")[key]) == 0
    assert log_lines(tmp_path / "cut")[-1]["train_loss"] == log_lines(whole)[-1]["train_loss"]


@pytest.mark.parametrize("before", [0, 2])
def test_a_run_that_was_stopped_within_a_training(words, whole_by_four, tmp_path, monkeypatch, before):
    """After the first step of the epoch after `before`: of the first training, and the first epoch of the second."""
    real, stops = epochs.train_epoch, []

    def train_epoch(job, learner, data, epoch, tally):
        with monkeypatch.context() as patch:
            if epoch == before + 1 and not stops:
                stops.append(epoch)
                patch.setattr(engine, "is_asked", lambda learner, look: True)
            return real(job, learner, data, epoch, tally)

    monkeypatch.setattr(epochs, "train_epoch", train_epoch)
    run(main, words(tmp_path / "cut", **BY_FOUR))
    assert len(checkpoint(tmp_path / "cut")["sofar"]["losses"]) == 1
    run(main, words(tmp_path / "cut", **BY_FOUR))
    assert stops == [before + 1]
    for key in ("model", "model_ema"):
        assert far(checkpoint(whole_by_four)[key], checkpoint(tmp_path / "cut")[key]) == 0


def test_one_training_keeps_nothing(words, tmp_path, seen):
    main(words(tmp_path, restarts=1))
    assert seen == {"begin": [], "end": []}
    assert "restarts" not in checkpoint(tmp_path)
    assert len(log_lines(tmp_path)) == EPOCHS


def test_a_run_of_before_there_were_restarts_stays_one_training(words, tmp_path):
    main(words(tmp_path, restarts=1))
    path = tmp_path / "checkpoint.pth"
    saved = torch.load(path, weights_only=True)
    del saved["args"]["restarts"]
    torch.save(saved, path)
    main(words(tmp_path))
    assert len(log_lines(tmp_path)) == EPOCHS


def test_numbers_that_are_no_fractions_are_the_last_ones():
    model = torch.nn.BatchNorm1d(2)
    learner = engine.Learner(model, *[None] * 10)
    for number, seen in ((1, 3), (2, 5)):
        model.num_batches_tracked.fill_(seen)
        model.running_mean.fill_(number)
        restarts.end(learner, number, 2)
    assert model.num_batches_tracked == 5
    assert model.running_mean.tolist() == [1.5, 1.5]


def test_the_short_runs_of_cross_validation_train_once(tmp_path):
    images = make_colours(tmp_path)
    job = open_job(parse(few_shot(images, restarts=3, epochs=6)), World(0, 1, torch.device("cpu")))
    assert job.labelled_epochs == 3 * job.args.epochs
    assert part_of(job, job.ids[:4], 100, "").labelled_epochs == job.args.epochs // 3  # once, and of their share
    assert part_of(job, job.ids[:4], 1, "").labelled_epochs == 1
    assert [job.within_training(epoch) for epoch in (1, 6, 7, 18)] == [(1, 1), (1, 6), (2, 1), (3, 6)]


def test_the_short_runs_of_cross_validation_are_asked_in_the_precision_of_training(tmp_path, monkeypatch):
    def probabilities(*some, amp=None, **rest):
        asked.append(amp)
        return torch.zeros(1, 2)

    asked, images = [], make_colours(tmp_path)
    monkeypatch.setattr(crossval, "probabilities", probabilities)
    job = open_job(parse(few_shot(images, amp="bf16", epochs=1)), World(0, 1, torch.device("cpu")))
    crossval.one_part(job, str(images / "sighted.pth"), job.ids[::2], job.ids[1::2], "", ["lp-ft"])
    assert asked == [torch.bfloat16] * 2


def test_a_run_goes_on_with_as_many_trainings(words, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(UserError, match=r"another recipe: --restarts 2 \(was 3\)"):
        main(words(folder, restarts=2))


def test_a_start_within_a_training_is_refused(words, tmp_path):
    with pytest.raises(UserError, match=r"--start_epoch 2 .*--restarts 3"):
        main(words(tmp_path, start_epoch=2))


def test_what_the_clock_has_cut_stays_cut(words, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "measured", lambda job: {"off": 1.0})
    flags = {"minutes": 0.2}
    stopped_in(monkeypatch, words(tmp_path, **flags), 2)
    main(words(tmp_path, **flags))
    assert checkpoint(tmp_path)["args"]["restarts"] == 1
    assert len(log_lines(tmp_path)) == EPOCHS


def test_self_training_begins_with_the_mean(tmp_path, seen, monkeypatch):
    def begin_round(job, learner, *rest):
        begun.append(copied(learner.model.state_dict()))
        return real(job, learner, *rest)

    begun, real = [], selftrain.begin_round
    monkeypatch.setattr(selftrain, "begin_round", begin_round)
    images = make_colours(tmp_path)
    folder = tmp_path / "run"
    main(few_shot(images, folder, mode="self-train", restarts=2, epochs=1, rounds=1, save_interval=1, folds=0))
    one, two = (model for model, _ in seen["end"])
    assert far(begun[0], {name: (one[name] + two[name]) / 2 for name in one}) < 1e-6
    assert [line["epoch"] for line in log_lines(folder)][:4] == [0, 1, 2, 3]
