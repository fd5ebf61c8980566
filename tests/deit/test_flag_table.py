"""Every flag of the trainer has a test that fails where the flag is ignored; here those that move the weights.

The oracle is plain torch and timm driven by hand on the batches of the run itself, compared weight by weight.
"""

import argparse
import copy
import importlib

import pytest
import torch

from deit.options import build_parser
from tests.support.flag_runs import BASE, DISTILLED, ROWS, SIZE, Runs, row
from tests.support.plain_training import distance, plain_training

pytestmark = pytest.mark.usefixtures("one_thread")
TABLES = (
    "test_decoding",
    "test_flag_data",
    "test_flag_epochs",
    "test_flag_files",
    "test_flag_mixing",
    "test_flag_pixels",
    "test_flag_start",
    "test_known_rows",
    "test_smoothed_mode",
)
CLOSE = 2e-3  # of the distance between the weights of a flag's two values, at most, to the oracle


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("flags"))


def test_every_flag_has_a_row():
    flags = {
        action.dest for action in build_parser()._actions if action.help != argparse.SUPPRESS or action.nargs == "*"
    }
    wanted = flags - {"help"}
    for name in TABLES:  # which put their rows into the table
        importlib.import_module(f"tests.deit.{name}")
    assert not wanted - set(ROWS), "flags without a row"
    assert not set(ROWS) - wanted - {"local_rank"}, "rows without a flag"


STEP = {"sched": "step", "decay_epochs": 1}
COSINE = {"sched": "cosine"}
# flag, two values (None: left out), what else is set
WEIGHTS = [
    ("opt", "SGD", "adamw", {"lr": 0.512}),
    ("opt_eps", 1e-8, 0.1, {"opt": "adamw", "lr": 0.512}),
    ("opt_betas", [0.9, 0.999], [0.5, 0.7], {"opt": "adamw", "lr": 0.512}),
    ("momentum", 0.9, 0.3, {}),
    ("weight_decay", 0.0, 0.5, {}),
    ("layer_decay", None, 0.5, {}),
    ("layer_decay", 0.9, 0.5, COSINE),
    ("head_scale", 1.0, 0.5, {}),
    ("head_rate", 1.0, 3.0, {"weight_decay": 0}),
    ("head_rate", 2.0, "auto", {"weight_decay": 0}),
    ("lr", 1.6, 0.8, {}),
    ("clip_grad", None, 0.01, {}),
    ("smoothing", 0.0, 0.5, {}),
    ("sched", "cosine", "step", {"decay_epochs": 1}),
    ("sched", "tanh", "poly", {}),
    ("warmup_epochs", 0, 2, COSINE),
    ("warmup_lr", 0.001, 0.01, COSINE | {"warmup_epochs": 2}),
    ("min_lr", 0.0, 0.01, COSINE),
    ("decay_epochs", 1, 2, {"sched": "step"}),
    ("decay_rate", 0.1, 0.5, STEP),
    ("lr_noise", None, [0.3, 0.9], COSINE),
    ("lr_noise_pct", 0.67, 0.05, COSINE | {"lr_noise": [0.3, 1.0]}),
    ("lr_noise_std", 1.0, 0.05, COSINE | {"lr_noise": [0.3, 1.0]}),
    ("sched_unit", "epoch", "step", COSINE),
    ("warmup_steps", 0, 1, COSINE | {"sched_unit": "step"}),
    ("cooldown_epochs", 0, 2, COSINE | {"min_lr": 0.02}),
    ("epochs", 3, 2, COSINE),
    ("start_epoch", 1, 2, COSINE | {"sched_unit": "step"}),
    ("batch_size", 4, 8, {}),
    ("batch_norm", "train", "fixed", {"model": "test_resnet", "lr": 0.64}),
    ("model", "test_resnet", "test_vit", {"lr": 0.64}),
    ("finetune", 0, 1, {}),
    ("seed", 0, 1, {}),
]


@pytest.mark.parametrize(("flag", "one", "other", "extra"), WEIGHTS, ids=[f"{row[0]}-{row[2]}" for row in WEIGHTS])
def test_weights_are_those_of_plain_torch(runs, flag, one, other, extra):
    done = []
    for value in (one, other):
        asked = extra | {flag: runs.weights(BASE["model"], value) if flag == "finetune" else value}
        asked = {name: setting for name, setting in asked.items() if setting is not None}
        done.append(runs(**asked))
        assert done[-1].lines[-1]["epoch"] == done[-1].state["epoch"]
    oracles = [plain_training(run)[0] for run in done]
    moved = 1.0 if flag == "model" else distance(*oracles)
    assert moved > 1e-3
    for run, oracle in zip(done, oracles, strict=True):
        assert distance(run.state["model"], oracle) < CLOSE * moved, run.flags[flag]


for number, entry in enumerate(WEIGHTS):
    ROWS[entry[0]] = WEIGHTS[number]


@pytest.mark.parametrize("flag", ["opt_eps", "clip_grad"])
def test_the_length_of_a_run_is_that_of_its_steps(runs, flag):
    """Three epochs of eight images, four to a step."""
    run = runs(**({"opt": "adamw", "lr": 0.512, "opt_eps": 0.1} if flag == "opt_eps" else {"clip_grad": 0.01}))
    assert [len(part.images) for part in run.seen] == [4] * 6


@row("global_batch_size", None, 8)
def test_passes_are_added_up_to_a_step(runs, one, other):
    few, many = runs(global_batch_size=one), runs(global_batch_size=other)
    assert [len(part.images) for part in many.seen] == [4] * 6
    oracle = plain_training(many, passes=2)[0]
    moved = distance(plain_training(few)[0], oracle)
    assert distance(many.state["model"], oracle) < CLOSE * moved


AVERAGES = [("model_ema_decay", 0.9, 0.3), ("model_ema_warmup", None, True)]


@pytest.mark.parametrize(("flag", "one", "other"), AVERAGES)
def test_the_average_is_timms(runs, flag, one, other):
    done = [runs(**{flag: value}) for value in (one, other)]
    oracles = [plain_training(run)[1] for run in done]
    moved = distance(*oracles)
    assert moved > 1e-3
    for run, oracle in zip(done, oracles, strict=True):
        assert distance(run.state["model_ema"], oracle) < CLOSE * moved
        assert run.result["ema"]["loss"] != run.result["last"]["loss"]


ROWS |= {flag: AVERAGES for flag, *_ in AVERAGES}


@row("model_ema", True, False)
def test_no_average_where_none_is_asked(runs, one, other):
    assert runs().state["model_ema"] is not None
    without = runs(no_model_ema=True)
    assert without.state["model_ema"] is None
    assert without.result["ema"] is None


@row("model_ema_force_cpu", False, True)
def test_the_average_is_kept_where_asked(runs, one, other, monkeypatch):
    from deit.learner import building

    places, real = [], building.ModelEmaV3

    def noted(*args, device, **settings):
        places.append(device)
        return real(*args, device=device, **settings)

    monkeypatch.setattr(building, "ModelEmaV3", noted)
    runs(epochs=1, model_ema_force_cpu=one or None)
    runs(epochs=1, model_ema_force_cpu=other)
    assert places == [None, torch.device("cpu")]


def distil(runs, **changes):
    """A run of a small distilled student with the teacher test_resnet."""
    given = {"model": DISTILLED, "distillation_type": "soft", "teacher_model": "test_resnet", "lr": 3.2}
    given |= {"teacher_path": runs.weights("test_resnet", 3)} | changes
    return runs(**given)


@pytest.mark.parametrize(
    ("flag", "one", "other"),
    [
        ("distillation_type", "soft", "hard"),
        ("distillation_alpha", 0.5, 0.9),
        ("distillation_tau", 1.0, 4.0),
        ("teacher_path", 3, 4),
    ],
)
def test_distillation_moves_the_weights_as_by_hand(runs, flag, one, other):
    values = [runs.weights("test_resnet", value) if flag == "teacher_path" else value for value in (one, other)]
    done = [distil(runs, **{flag: value}) for value in values]
    oracles = [plain_training(run)[0] for run in done]
    moved = distance(*oracles)
    assert moved > 1e-4
    for run, oracle in zip(done, oracles, strict=True):
        assert distance(run.state["model"], oracle) < 2e-2 * moved


@row("teacher_model", "test_resnet", "test_byobnet")
def test_the_teacher_is_the_model_that_was_named(runs, one, other):
    run = distil(runs, teacher_model=other, teacher_path=runs.weights(other, 3))
    oracle = plain_training(run)[0]
    moved = distance(plain_training(distil(runs))[0], oracle)
    assert distance(run.state["model"], oracle) < 2e-2 * moved


ROWS |= dict.fromkeys(("distillation_type", "distillation_alpha", "distillation_tau", "teacher_path"), "distillation")


@row("amp", "off", "bf16")
def test_passes_are_in_the_asked_precision(runs, one, other):
    for amp, dtype in ((one, torch.float32), (other, torch.bfloat16), ("fp16", torch.float16)):
        assert {part.dtype for part in runs(amp=amp, epochs=1).seen} == {dtype}


@row("drop_path", 0.0, 0.4)
def test_stochastic_depth_has_timms_rates(runs, one, other):
    import timm
    from timm.layers import DropPath

    from deit.samples.draws import SeededDropPath, seed_drop_layers

    assert distance(runs(drop_path=one).state["model"], plain_training(runs(drop_path=one))[0]) < 1e-4
    assert distance(runs(drop_path=other).state["model"], plain_training(runs(drop_path=other))[0]) > 1e-2
    model = timm.create_model("test_vit", img_size=SIZE, drop_path_rate=other)
    wanted = [layer.drop_prob for layer in model.modules() if isinstance(layer, DropPath)]
    ours = copy.deepcopy(model)
    seed_drop_layers(ours, 0)
    assert [layer.rate for layer in ours.modules() if isinstance(layer, SeededDropPath)] == wanted
    assert max(wanted) == pytest.approx(other)


@row("drop", 0.0, 0.5)
def test_dropout_is_before_the_classifier(runs, one, other):
    """One step on one image: the gradient of the classifier's weights is an outer product with what it saw."""
    (runs.images / "one.json").write_text("[0]")
    columns = []
    for rate in (one, other):
        run = runs(drop=rate, epochs=1, subset_ids=runs.images / "one.json", weight_decay=0.0, batch_size=1)
        before = torch.load(run.flags["finetune"], weights_only=True)["model"]["head.weight"]
        columns.append((run.state["model"]["head.weight"] - before)[0])
    whole, dropped = columns
    kept = dropped != 0
    assert (whole != 0).all()
    assert 0.3 < kept.float().mean() < 0.7
    assert torch.cosine_similarity(whole[kept], dropped[kept], dim=0) > 0.999
