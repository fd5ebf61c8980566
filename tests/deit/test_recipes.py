"""Recipes: what each is the default of, who wins over whom, every key of the files, mistakes, --epochs auto."""

import numpy as np
import pytest
import torch
import yaml

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from deit import options, recipes
from deit.job import auto_epochs, open_job
from deit.option_checks import DATA_SETS
from deit.options import MODES, build_parser, parse
from tests.support.trainer_runs import command, make_images

PAPERS = ("CIFAR10", "CIFAR100", "IMNET", "INAT", "INAT19", "CUB2011")
OTHERS = ("FOLDER", "DEMO", "FASHIONMNIST")
FORMS = [(name, suffix) for name in PAPERS + OTHERS for suffix in ("", "SUBSET")]
FEW_SHOT = {
    "mode": "lp-ft", "epochs": "auto", "global_batch_size": 32, "batch_size": 32, "opt": "adamw", "lr": 0.0048,
    "weight_decay": 0.02, "sched": "cosine", "sched_unit": "step", "warmup_steps": 20, "warmup_lr": 1e-06,
    "min_lr": 0.0, "clip_grad": 2.0, "batch_norm": "fixed", "pixels": "model", "augment": "shift",
    "repeated_aug": False, "smoothing": 0.1, "drop": 0.2, "drop_path": 0.0, "model_ema": True, "model_ema_decay": 0.99,
    "model_ema_warmup": True, "head_scale": 0.1, "head_rate": "auto", "folds": 2, "restarts": 2, "eval_interval": 1000,
    "save_interval": 5, "amp": "measured",
}  # fmt: skip
ALONE = World(0, 1, torch.device("cpu"))


def words_for(data_set):
    return ["--data-set", data_set, *(["--subset_ids", "s.json"] if data_set.endswith("SUBSET") else [])]


def content(name):
    """A recipe's {flag's name in the arguments: value}."""
    values = yaml.safe_load((recipes.FOLDER / f"{name}.yaml").read_text())
    return {key.replace("-", "_"): value for key, value in values.items()}


def recipe(tmp_path, text, name="mine.yaml"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def test_the_papers_recipe_is_the_flags_own_defaults():
    bare = vars(build_parser().parse_args([]))
    paper = content("paper")
    assert len(paper) > 20
    assert {key: bare[key] for key in paper} == paper
    args = vars(parse([]))
    assert (args.pop("recipe"), bare.pop("recipe")) == ("paper", "auto")
    assert args.pop("given") == []
    assert args == bare


def test_a_configuration_in_the_home_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("seed: 7\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(["--config=~/c.yaml"]).seed == 7


def test_few_shot_is_what_it_says():
    assert len(content("few-shot")) == len(FEW_SHOT)
    assert {key: content("few-shot").get(key) for key in FEW_SHOT} == FEW_SHOT


@pytest.mark.parametrize(("name", "suffix"), FORMS)
def test_every_data_set_has_its_recipe(name, suffix):
    args, expected = vars(parse(words_for(name + suffix))), "paper" if name in PAPERS else "few-shot"
    assert args["recipe"] == expected
    assert {key: args[key] for key in content(expected)} == content(expected)
    assert {name + suffix for name, suffix in FORMS} == set(DATA_SETS)


@pytest.mark.parametrize("name", ["paper", "few-shot"])
@pytest.mark.parametrize("data_set", ["CIFAR10", "FOLDER"])
def test_a_recipe_that_is_asked_for_goes_anywhere(name, data_set):
    args = vars(parse(["--data-set", data_set, "--recipe", name]))
    assert args["recipe"] == name
    assert {key: args[key] for key in content(name)} == content(name)


def another(action, value):
    """A valid value of a flag that is not `value`."""
    if isinstance(value, bool):
        return not value
    if action.choices:
        return next(word for word in action.choices if word != value)
    words = {"auto": 7, "SGD": "adamw", "adamw": "SGD", "cosine": "tanh"}
    return words[value] if value in words else value + 1 if isinstance(value, int) else value / 2 + 0.0125


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in ("paper", "few-shot") for key in content(name)])
def test_every_key_of_a_recipe_counts(tmp_path, monkeypatch, name, key):
    monkeypatch.setattr(options, "check", lambda args: None)  # one value at a time may not fit the others
    action = next(action for action in build_parser()._actions if action.dest == key)
    changed = content(name) | {key: another(action, content(name)[key])}
    before, after = (
        vars(parse(["--recipe", recipe(tmp_path, yaml.safe_dump(values))])) for values in (content(name), changed)
    )
    assert {flag for flag in before if before[flag] != after[flag]} == {key}
    assert after[key] == changed[key]


def test_the_command_line_wins_over_config_over_recipe_over_defaults(tmp_path):
    mine = recipe(tmp_path, "lr: 1.0\nsmoothing: 0.2\nclip-grad: 3.0\nmodel-ema: false\nopt: adamw\n")
    config = recipe(tmp_path, "lr: 2.0\nsmoothing: 0.3\nmodel_ema: true\n", "config.yaml")
    args = parse(["--recipe", mine, "--config", config, "--lr", "3.0"])
    assert (args.lr, args.smoothing, args.clip_grad, args.opt) == (3.0, 0.3, 3.0, "adamw")
    assert args.model_ema
    assert (args.weight_decay, args.epochs) == (1e-4, 1000)  # nobody's: the flags' own
    assert (args.recipe, args.config) == (mine, config)
    assert not parse(["--recipe", mine, "--config", config, "--no-model-ema"]).model_ema
    assert parse(["--recipe", mine]).model_ema is False
    assert parse(["--recipe", mine, "--lr", "0.003"]).lr == 0.003  # typed, though it is the default


def test_a_config_names_the_recipe_and_the_data_set_whose_recipe_it_is(tmp_path):
    config = recipe(tmp_path, "data-set: FOLDER\nlr: 2.0\n", "config.yaml")
    assert parse(["--config", config]).recipe == "few-shot"
    assert parse(["--config", config]).lr == 2.0
    assert parse(["--config", config, "--data-set", "CIFAR10"]).recipe == "paper"
    config = recipe(tmp_path, "data-set: FOLDER\nrecipe: paper\n", "config.yaml")
    assert (parse(["--config", config]).recipe, parse(["--config", config]).epochs) == ("paper", 1000)
    assert parse(["--config", config, "--recipe", "few-shot"]).epochs == "auto"


def test_a_file_of_ones_own_is_no_recipe_of_that_name(tmp_path):
    mine = recipe(tmp_path, "lr: 1.0\n", "paper.yaml")
    assert parse(["--recipe", mine]).recipe == mine
    assert parse(["--recipe", str(recipes.FOLDER / "few-shot.yaml")]).recipe == "few-shot"
    assert recipes.recipe_names() == ["few-shot", "paper"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [("few-shoot", r" \(did you mean few-shot\?\)"), ("papr", r" \(did you mean paper\?\)"), ("lost.yaml", "$")],
)
def test_an_unknown_recipe_is_named_with_its_neighbour(word, hint):
    with pytest.raises(UserError, match=rf"--recipe '{word}' is neither a file nor one of few-shot, paper{hint}"):
        parse(["--recipe", word])


@pytest.mark.parametrize(("text", "message"), [
    ("data-set: FOLDER", "unknown key 'data-set'"), ("config: c.yaml", "unknown key 'config'"),
    ("wieght-decay: 0", r"unknown key 'wieght-decay' \(did you mean weight_decay\?\)"),
    ("recipe: paper", "unknown key 'recipe'"), ("help: true", "unknown key 'help'"),
    ("model-ema: 1", "model-ema must be true or false"),
    ("lr: true", "lr must be a value"), ("lr: fast", "lr must be a number, not 'fast'"),
    ("batch-size: 2.5", "batch-size must be a whole number, not 2.5"),
    ("epochs: soon", "epochs must be whole or auto, not 'soon'"),
    ("mode: lp", f"mode must be one of {', '.join(MODES)}, not 'lp'"),
    ("lr: [1, 2]", r"lr must be a value, not \[1, 2\]"), ("lr: {a: 1}", "lr must be a value, not {'a': 1}"),
    ("cutmix-minmax: [0.1]", r"cutmix-minmax must be 2 values, not \[0\.1\]"),
    ("- lr", "must hold lines `flag: value`"), ("lr: [", "cannot be read"),
])  # fmt: skip
@pytest.mark.parametrize("flag", ["--recipe", "--config"])
def test_a_mistake_names_the_file(tmp_path, capsys, flag, text, message):
    path = recipe(tmp_path, text)
    if flag == "--config" and text.startswith(("data-set", "recipe")):
        assert parse([flag, path]).recipe == ("few-shot" if text.startswith("data-set") else "paper")
        return
    with pytest.raises(UserError, match=rf"{flag} {path}:? .*{message}"):
        parse([flag, path])
    assert capsys.readouterr().err == ""  # one line, not the flags' whole usage


def test_values_of_all_kinds_arrive(tmp_path):
    text = "opt: adamw\nopt-betas: [0.8, 0.9]\nlr: 1e-3\nepochs: 3\naa: null\nlr-noise: 0.5\nverbose: true\n"
    mine = recipe(tmp_path, text + "compile: false\nmin_lr: 0\n")
    args = parse(["--recipe", mine])
    assert (args.opt_betas, args.lr, args.epochs, args.aa, args.lr_noise) == ([0.8, 0.9], 1e-3, 3, None, [0.5])
    assert (args.verbose, args.compile, args.min_lr) == (True, False, 0)


def test_a_schedule_by_epochs_takes_the_place_of_a_recipes_warm_up_steps():
    few = ["--data-set", "FOLDER"]
    assert (parse(few).sched_unit, parse(few).warmup_steps) == ("step", 20)
    for words in (["--sched-unit", "epoch"], ["--warmup-epochs", "5"]):
        args = parse([*few, *words])
        assert (args.warmup_steps, args.warmup_epochs) == (None, 5)
    assert parse([*few, "--warmup-epochs", "3", "--warmup-steps", "9"]).warmup_steps == 9
    with pytest.raises(UserError, match="--warmup-steps needs --sched-unit step"):
        parse([*few, "--sched-unit", "epoch", "--warmup-steps", "9"])


def test_flags_that_a_shift_leaves_out_are_refused():
    for words in (["--aa", "rand-m9"], ["--color-jitter", "0.4"], ["--reprob", "0.25"]):
        with pytest.raises(UserError, match=rf"{words[0]} does nothing with --augment shift: .*--augment crop"):
            parse(["--data-set", "FOLDER", *words])
        parse(["--data-set", "FOLDER", "--augment", "crop", *words])


def test_linear_refuses_every_flag_of_the_average(tmp_path):
    for words in (["--model-ema-warmup"], ["--no-model-ema"], ["--model-ema-decay", "0.9"], ["--warmup-steps", "3"]):
        with pytest.raises(UserError, match=r"does nothing in --mode linear"):
            parse(["--data-set", "FOLDER", "--mode", "linear", *words])
    assert parse(["--data-set", "FOLDER", "--mode", "linear"]).model_ema_warmup  # the recipe's: it serves every mode
    (tmp_path / "mine.yaml").write_text("lr: 0.1\nmodel-ema-decay: 0.9\n")  # and so does a config
    assert parse(["--data-set", "FOLDER", "--mode", "linear", "--config", str(tmp_path / "mine.yaml")]).lr == 0.1


def test_epochs_by_the_number_of_labels(images):
    assert [auto_epochs(labels) for labels in (100, 1000, 1, 10**7)] == [30, 15, 60, 5]
    every = [auto_epochs(labels) for labels in range(1, 5000)]
    assert every == sorted(every, reverse=True)
    steps = np.array([labels * auto_epochs(labels) for labels in (10, 100, 1000, 10000)])
    assert (steps[1:] > steps[:-1]).all()

    for flags, labels in (({}, 20), ({"val_fraction": 0.25}, 15)):
        job = open_job(parse(command(images, epochs="auto", **flags)), ALONE)
        assert (job.args.epochs, job.last) == (auto_epochs(labels),) * 2
        assert job.settings["epochs"] == job.args.epochs  # what a continued run must have the same
    with pytest.raises(UserError, match=r"--start_epoch 99 is after the last epoch, 49"):
        open_job(parse(command(images, epochs="auto", start_epoch=99)), ALONE)


def test_help_tells_what_the_recipe_for_a_few_labels_has_otherwise(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "999")  # no word is broken
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "scaled by the global batch (default: 0.003; few-shot: 0.0048) ",
        "needs --sched-unit step (few-shot: 20) ",
        "subset per epoch (default: True; few-shot: off) ",
        " --momentum MOMENTUM of SGD and the optimisers that have one (default: 0.9) ",
    ):
        assert words in told
