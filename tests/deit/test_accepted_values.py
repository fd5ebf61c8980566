"""Each value that a flag takes works in a short run or is refused with the reason; losses that are not finite."""

import argparse
import itertools
import json

import pytest
import timm
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.subset_files import load_subset
from data_selection.images import pools
from deit import engine
from deit import main as entry
from deit.learner.building import build_learner
from deit.learner.optimizers import make_optimizer
from deit.learner.schedules import make_scheduler
from deit.main import main
from deit.option_checks import SCHEDULES, check_start
from deit.options import parse
from deit.runs.meters import RunLog
from deit.samplers import plan_epoch
from deit.samples.batches import Part, Step
from deit.samples.sources import say_of_labels
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images, ranks

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def rates(*words, updates=1):
    args = parse([*words])
    optimizer = make_optimizer(args, torch.nn.Linear(2, 2), args.lr)
    scheduler, seen = make_scheduler(args, optimizer, updates), []
    for epoch in range(1, args.epochs + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        if scheduler is not None:
            scheduler.step(epoch)
    return [rate / args.lr for rate in seen]


@pytest.mark.parametrize("sched", SCHEDULES)
@pytest.mark.parametrize("warmup", ["0", "3"])
def test_every_schedule_works_at_twenty_epochs(sched, warmup):
    words = ("--epochs", "20", "--warmup-epochs", warmup, "--sched", sched, "--min-lr", "0")
    if sched in ("wsd", "rsqrt") and not hasattr(timm.scheduler, "WSDLRScheduler"):
        with pytest.raises(
            UserError, match=rf"--sched {sched} needs timm 1\.0\.31 or newer, this is {timm.__version__}"
        ):
            rates(*words)
        return
    seen = rates(*words)
    start = 0 if sched == "none" else int(warmup)
    assert (seen[0] < 0.01) == (start > 0)
    assert max(seen) <= 1 + 1e-9
    expected = {"constant": 1.0, "none": 1.0, "multistep": 1e-3, "step": 1e-2}
    if sched in expected:
        assert seen[-1] == pytest.approx(expected[sched])
    else:
        assert seen[-1] < 0.9 * max(seen)  # it falls
    if sched == "multistep":
        assert [round(a / b) for a, b in itertools.pairwise(seen[3:])].count(10) == 3
    if sched == "wsd":
        assert sum(rate == pytest.approx(1) for rate in seen) >= 12


def test_lengths_that_leave_a_schedule_no_fall_are_refused():
    for words in (("step", "20"), ("wsd", "16")):
        with pytest.raises(UserError, match=rf"--sched {words[0]} with --decay-epochs {words[1]} does not fall"):
            parse(["--epochs", "20", "--sched", words[0], "--decay-epochs", words[1]])
    parse(["--epochs", "20", "--sched", "wsd", "--decay-epochs", "16", "--sched-unit", "step", "--warmup-steps", "9"])


@pytest.mark.parametrize(("opt", "why"), [
    ("adahessian", "needs second derivatives"), ("kron", "no checkpoint keeps"), ("bnbadam", "cannot be used here"),
    ("lookahead_nothing", "unknown --opt.*lookahead_ before it"),
])  # fmt: skip
def test_optimisers_that_cannot_work_are_refused(opt, why):
    known = {*map(str, timm.optim.list_optimizers()), "lookahead_nothing"}
    with pytest.raises(UserError, match=why if opt in known or opt == "kron" else "unknown --opt"):
        make_optimizer(parse(["--opt", opt]), torch.nn.Linear(2, 2), 0.1)


def test_lookahead_is_an_optimiser(images, tmp_path):
    main(command(images, tmp_path, epochs=1, opt="lookahead_adamw", lr=1e-3))
    optimizer = make_optimizer(parse(["--opt", "lookahead_adamw"]), torch.nn.Linear(2, 2), 0.1)
    assert type(optimizer).__name__ == "Lookahead"


class Noise:
    """Random images."""

    def augmented(self, parts, epoch):
        for part in parts:
            yield torch.randn(len(part.rows), 3, 64, 64), torch.zeros(len(part.rows), dtype=torch.int64)


@pytest.mark.parametrize(("name", "knows"), [
    ("hrnet_w18_small", False), ("dla46_c", False), ("mobilevit_xxs", True), ("resnet10t", True),
])  # fmt: skip
def test_models_get_the_rates_that_they_take(name, knows):
    args, said = parse(["--model", name, "--input-size", "64", "--drop", "0.1", "--no-model-ema"]), []
    log = RunLog("", True)
    log.say = said.append
    learner = build_learner(args, ALONE, 3, 2, 1, log, None)
    assert (f"--drop-path 0.1 is left out: {name} has no stochastic depth" in said) != knows
    rows = torch.arange(2)
    engine.train_one_epoch(learner, Noise(), [Step(2, [Part(rows, rows, rows)])], 1, classes=3, seed=0)


def test_drop_rows_of_patches_do_not_depend_on_the_split():
    from deit.samples.draws import DropDraws

    draws, x = DropDraws(0, 1), torch.zeros(8, 2)
    draws.begin(1, 0, torch.arange(4), torch.device("cpu"))
    whole = draws.take(x)
    assert len(set(whole.tolist())) == 8
    draws.begin(1, 0, torch.arange(2, 4), torch.device("cpu"))
    assert draws.take(x[4:]).tolist() == whole[4:].tolist()


@pytest.mark.parametrize(
    "flags",
    [
        {"lr": 1e25},
        {"lr": 1e25, "skip_nonfinite": True},
        {"lr": 1e25, "batch_size": 60, "eval_interval": 3, "save_interval": 1},
    ],
)
def test_weights_that_diverge_stop_the_run_and_leave_nothing(images, tmp_path, flags):
    words = command(images, tmp_path / "out", epochs=3, warmup_epochs=0, **flags)
    said = (
        "the weights are not finite after the last step of epoch 1"
        if "batch_size" in flags
        else (r"epoch 1, step 2 of 3: the weights have diverged in the steps before it; .*smaller --lr")
    )
    with pytest.raises(UserError, match="epoch 1" if "skip_nonfinite" in flags else said):
        main(words)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left <= {"args.yaml", "log.txt"}
    assert log_lines(tmp_path / "out") == []


def test_the_step_is_where_it_stops(images, tmp_path, monkeypatch):
    """Later steps are not taken, and the checkpoint before stays."""
    from tests.deit.test_reliability import poisoned

    poisoned(monkeypatch, {5})
    done, real = [], engine.descend
    monkeypatch.setattr(
        engine, "descend", lambda learner, update, clip: (done.append(update), real(learner, update, clip))
    )
    with pytest.raises(UserError, match=r"nan at epoch 2, step 2 of 4: nothing of this epoch"):
        main(command(images, tmp_path, epochs=3, batch_size=16))
    assert done == [0, 1, 2, 3, 4]
    assert checkpoint(tmp_path)["epoch"] == 1


def test_answers_that_are_not_finite_reach_no_file(images, tmp_path, monkeypatch):
    from deit import epochs

    monkeypatch.setattr(epochs, "evaluate", lambda *a, **k: {"loss": float("nan"), "acc1": 10.0, "acc5": 50.0})
    with pytest.raises(UserError, match="judged on are not finite after the last step of epoch 1"):
        main(command(images, tmp_path))
    assert log_lines(tmp_path) == []
    assert not list(tmp_path.glob("*.pth"))


def test_half_precision_where_a_process_has_no_row(images, tmp_path):
    assert not plan_epoch(torch.arange(3), 1, 4, 0, 2)[0].parts
    (tmp_path / "one.json").write_text("[2]")
    flags = {"subset_ids": tmp_path / "one.json", "global_batch_size": 1, "amp": "fp16", "lr": 1e-4, "num_workers": 0}
    running = ranks(command(images, tmp_path, epochs=1, **flags), tmp_path)
    for process in running:
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "said_0").read_text() + (tmp_path / "said_1").read_text()


def test_the_average_is_warmed_up_evaluated_and_told(images, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("lr: 0.05\n")
    assert parse(["--recipe", str(own)]).model_ema_warmup
    assert not parse(["--recipe", str(own), "--no-model-ema-warmup"]).model_ema_warmup
    assert not parse([]).model_ema_warmup  # the papers' commands
    main(command(images, tmp_path / "out", eval_ema=True))
    said = capsys.readouterr().out
    assert "--model-ema-decay 0.99996 averages the weights over about 24938 steps, and the run has 6" in said
    told, last = json.loads((tmp_path / "out" / "result.json").read_text()), log_lines(tmp_path / "out")[-1]
    assert told["ema"] == {key: last[f"test_ema_{key}"] for key in ("loss", "acc1", "acc5")}
    assert told["ema"]["loss"] != last["test_loss"]
    assert f"moving average of the weights {told['ema']['acc1']:.2f} %" in said
    path = tmp_path / "out" / "checkpoint.pth"
    main(command(images, eval=True, eval_ema=True, finetune=None, resume=path))
    assert f"loss {told['ema']['loss']:.3f}" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no moving average"):
        main(command(images, eval=True, eval_ema=True, finetune=images / "weights.pth"))
    with pytest.raises(UserError, match="--no-model-ema leaves out"):
        parse(["--eval-ema", "--no-model-ema"])


def test_repeated_ids_are_taken_once_and_told(images, tmp_path, capsys):
    path = tmp_path / "twice.json"
    path.write_text("[3, 1, 3, 2]")
    with pytest.raises(UserError, match="3"):
        load_subset(path, 10)  # selection goes on refusing them
    main(command(images, tmp_path / "out", epochs=1, subset_ids=path))
    said = capsys.readouterr().out
    assert f"warning: subset file {path} has 4 entries, 3 distinct: each is taken once" in said
    assert "training on 3 of 24 images" in said


def test_classes_without_an_image_are_named():
    said, pool = [], pools.Pool(paths=["a"] * 2, labels=[1, 1], classes=3, class_names=("cat", "dog", "fox"))
    say_of_labels("linear", pool, [0, 1], said.append)
    assert said == ["warning: 2 of 3 classes without a training image: cat, fox"]


def test_classes_that_look_alike_are_told():
    said, pool = [], pools.Pool(paths=["a"] * 2, labels=[0, 1], classes=2, class_names=("Cat", "cat"))
    say_of_labels("linear", pool, [0, 1], said.append)
    assert said == ["warning: classes that may be meant for one: 'Cat' and 'cat'; mend the labels if so"]


def test_classes_that_are_called_like_no_label_are_told():
    said, pool = [], pools.Pool(paths=["a"] * 2, labels=[0, 1], classes=2, class_names=("cat", "no_label"))
    say_of_labels("linear", pool, [0, 1], said.append)
    assert said == ["warning: classes whose names say that there is no label: 'no_label'; take their images out if so"]


def test_a_forgotten_data_set_downloads_nothing(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deit.option_checks.ROOT", tmp_path)
    with pytest.raises(UserError, match=r"--data-set is missing: name one of CIFAR10, "):
        entry.main(["--finetune", "none"])
    with pytest.raises(UserError, match=rf"{images} has train/ and val/: FOLDER"):
        entry.main(["--data-path", str(images)])
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    assert parse(["--finetune", "none"], complete=True).data_set == "CIFAR10"


def test_addresses_without_https_are_asked_for(monkeypatch):
    for name in ("--finetune", "--resume"):
        with pytest.raises(UserError, match=rf"{name} http://host/w.pth is not safe.*--allow-http"):
            parse([name, "http://host/w.pth"])
        parse([name, "http://host/w.pth", "--allow-http"])
        parse([name, "https://host/w.pth"])


def test_the_flag_that_an_error_advises_is_there(images, tmp_path):
    weights = torch.load(images / "weights.pth", weights_only=True)
    torch.save({"mine": weights, "version": 3}, tmp_path / "odd.pth")
    words = {"epochs": 1, "lr": 0, "min_lr": 0, "warmup_lr": 0, "weight_decay": 0, "finetune": tmp_path / "odd.pth"}
    with pytest.raises(UserError, match="save the dictionary of tensors alone"):
        main(command(images, tmp_path / "out", **words))
    main([*command(images, tmp_path / "out", **words), "--checkpoint_key", "mine"])
    assert all(torch.equal(checkpoint(tmp_path / "out")["model"][key], weights[key]) for key in weights)


def test_a_start_beyond_the_last_epoch_is_refused():
    last = {"epochs": 2, "cooldown_epochs": 1}
    check_start(argparse.Namespace(**vars(parse([])) | last | {"start_epoch": 3}))
    with pytest.raises(UserError, match="--start_epoch 4 is after the last epoch, 3"):
        check_start(argparse.Namespace(**vars(parse([])) | last | {"start_epoch": 4}))
