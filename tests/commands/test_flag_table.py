"""Every flag of the ActiveFT commands has a test, through the command, that fails where the flag is ignored."""

import csv

import numpy as np
import pytest
import torch

from data_selection.commands import activeft
from data_selection.common.errors import UserError
from data_selection.common.feature_table import save_features
from data_selection.methods import activeft as activeft_method
from data_selection.methods.activeft import select_activeft
from data_selection.methods.configs import ACTIVEFT_PRESETS, ActiveFTConfig
from tests.support.selection_commands import COUNT, WIDTH, Command, asked_of, ids_file, make_table, words

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("features"))


@pytest.fixture
def choose(table, tmp_path):
    """The ActiveFT command with 12 of 300 images in five steps."""
    base = {"feature_path": table[0], "budget": 12, "max_iter": 5, "lr": 0.05, "device": "cpu"}
    return Command(lambda argv: activeft.main_activeft("activeft_cifar", argv), base, tmp_path)


SETTINGS = [  # flag, two values, what else is set; None: these change speed and memory alone
    ("temperature", 0.07, 1.0, {}),
    ("max_iter", 5, 60, {}),
    ("lr", 0.05, 0.0001, {"max_iter": 60}),
    ("init", "random", "fps", {}),
    ("distance", "euclidean", "KLDiv", {"init": "fps", "lr": 1e-6}),
    ("scheduler", "none", "cosine", {"max_iter": 60}),
    ("balance", 1.0, 30.0, {"max_iter": 40}),
    ("batch_size", 300, 40, {"max_iter": 40}),
    ("objective", "released", "paper", {"max_iter": 40}),
    ("slice", 7, 50, None),
    ("max_memory", 0.01, 0.5, None),
    ("threshold", 0.0, 10.0, {"max_iter": 60}),
]
ROWS = {entry[0] for entry in SETTINGS}


@pytest.mark.parametrize(("flag", "one", "other", "extra"), SETTINGS, ids=[entry[0] for entry in SETTINGS])
def test_activeft_is_told_its_settings(choose, table, monkeypatch, flag, one, other, extra):
    calls, lists = asked_of(activeft_method, "select_activeft", monkeypatch), []
    for value in (one, other):
        lists.append(choose(**(extra or {}) | {flag: value}))
        config = ActiveFTConfig(**{"max_iter": 5, "lr": 0.05} | (extra or {}) | {flag: value})
        assert calls[-1]["config"] == config
        losses = []
        wanted = select_activeft(table[1], 12, config=config, on_iteration=lambda *step, to=losses: to.append(step))
        assert lists[-1] == wanted.tolist()
        if flag == "threshold":
            lists[-1] = len(losses)
    assert (lists[0] == lists[1]) == (extra is None)


ROWS |= {"seed", "labelled", "excluded", "history", "verbose", "percent", "budget", "filename", "output_dir",
         "feature_path", "no_label_column", "device", "missing", "overwrite", "keep_duplicates"}  # fmt: skip


def test_seeds_give_other_lists(choose, table):
    lists = [choose(seed=seed) for seed in (0, 3)]
    assert lists[0] != lists[1]
    assert lists[1] == select_activeft(table[1], 12, config=ActiveFTConfig(max_iter=5, lr=0.05), seed=3).tolist()


@pytest.mark.parametrize("flag", ["labelled", "excluded"])
def test_what_is_taken_is_not_chosen_and_labelled_images_repel(choose, table, tmp_path, flag):
    plain = choose()
    path = ids_file(tmp_path / "taken.json", plain[:6])
    chosen = choose(**{flag: path})
    assert not set(chosen) & set(plain[:6])
    config = ActiveFTConfig(max_iter=5, lr=0.05)
    assert chosen == select_activeft(table[1], 12, config=config, **{flag: plain[:6]}).tolist()
    other = "excluded" if flag == "labelled" else "labelled"
    assert chosen != select_activeft(table[1], 12, config=config, **{other: plain[:6]}).tolist()


def test_history_holds_the_loss_of_every_step(choose, table, tmp_path):
    choose()
    assert not list(tmp_path.glob("*.csv"))
    choose(history=tmp_path / "steps.csv", scheduler="cosine")
    steps, config = [], ActiveFTConfig(max_iter=5, lr=0.05, scheduler="cosine")
    select_activeft(table[1], 12, config=config, on_iteration=lambda *step: steps.append(step))
    rows = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert [int(row["iteration"]) for row in rows] == [step[0] for step in steps]
    assert [float(row["lr"]) for row in rows] == pytest.approx([step[1] for step in steps])
    assert [float(row["loss"]) for row in rows] == pytest.approx([step[2] for step in steps])
    assert len(rows) == 5


def test_verbose_prints_every_step(choose, capsys):
    choose()
    assert "Iter:" not in capsys.readouterr().out
    choose(verbose=True)
    assert capsys.readouterr().out.count("Iter: ") == 5


def test_budget_or_percent_say_how_many(choose):
    assert len(choose(budget=7)) == 7
    assert len(choose(budget=None, percent=5)) == 15
    assert len(choose(budget=None)) == 6  # 2 % of 300, the released default


def test_files_and_names_are_those_asked_for(choose, table, tmp_path):
    where = tmp_path / "made" / "here"
    choose.main(words(choose.base | {"output_dir": where, "filename": "mine.json"}))
    assert (where / "mine.json").exists()
    choose.main(words(choose.base | {"output_dir": where, "seed": 4}))
    name = "POOL_train_ActiveFT_euclidean_temp_0.07_lr_0.050000_scheduler_none_iter_5_sampleNum_12_seed_4.json"
    assert (where / name).exists()


def test_settings_typed_as_they_are_anyway_leave_no_trace_in_the_name(choose, tmp_path):
    where = tmp_path / "made"
    typed = {"threshold": 0, "temperature": 0.07, "balance": 1.0, "init": "random", "scheduler": "none"}
    choose.main(words(choose.base | typed | {"output_dir": where}))
    name = "POOL_train_ActiveFT_euclidean_temp_0.07_lr_0.050000_scheduler_none_iter_5_sampleNum_12"
    assert (where / f"{name}.json").exists()
    choose.main(words(choose.base | typed | {"output_dir": where, "threshold": 1e-4}))
    assert (where / f"{name}_threshold_0.0001.json").exists()  # may stop sooner


def test_the_last_column_is_a_label_unless_told(choose, table, tmp_path, monkeypatch):
    calls = asked_of(activeft_method, "select_activeft", monkeypatch)
    choose()
    choose(no_label_column=True)
    assert [call["features"].shape for call in calls] == [(COUNT, WIDTH), (COUNT, WIDTH + 1)]
    other = tmp_path / "OTHER_train.npy"
    save_features(other, table[1].numpy()[:50], np.zeros(50, int))
    choose(feature_path=other, filename="other.json")
    assert calls[-1]["features"].shape == (50, WIDTH)


def test_the_device_is_the_one_asked_for(choose, monkeypatch):
    calls = asked_of(activeft_method, "select_activeft", monkeypatch)
    choose()
    assert calls[0]["device"] == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:99"):
        choose(device="cuda:99")


@pytest.mark.parametrize("preset", ACTIVEFT_PRESETS)
def test_every_flag_has_a_row(preset):
    assert {action.dest for action in activeft.build_parser(preset)._actions} - {"help", "local_rank"} == ROWS


@pytest.mark.parametrize(("preset", "pool"), [("activeft_cifar", "CIFAR10"), ("activeft_imagenet", "ImageNet")])
def test_without_a_flag_it_is_the_released_command(preset, pool):
    args = activeft.build_parser(preset).parse_args([])
    assert args.feature_path.parts[-2:] == ("features", f"{pool}_train.npy")
    assert (args.budget, args.seed, args.history) == (None, 0, None)
    assert float(args.percent) == activeft.ACTIVEFT_PRESETS[preset][1]
