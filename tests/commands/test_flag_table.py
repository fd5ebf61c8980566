"""Every flag of the selection commands has a test, through the command, that fails where the flag is ignored."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from data_selection.commands import activeft, any_method, bilaf
from data_selection.common.errors import UserError
from data_selection.common.feature_table import save_features
from data_selection.methods import activeft as activeft_method
from data_selection.methods.activeft import select_activeft
from data_selection.methods.bilaf import selection as bilaf_method
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.configs import ACTIVEFT_PRESETS, BILAF_PRESETS, ActiveFTConfig
from data_selection.methods.random_choice import select_random

COUNT, WIDTH = 300, 8
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(path, features (300, 8)) of a pool of five loose clusters, with labels in the file's last column."""
    draw = np.random.default_rng(0)
    rows = (draw.normal(size=(5, WIDTH))[np.arange(COUNT) % 5] + 0.4 * draw.normal(size=(COUNT, WIDTH))).astype(np.float32)
    path = tmp_path_factory.mktemp("features") / "POOL_train.npy"
    save_features(path, rows, np.arange(COUNT) % 5)
    return path, torch.from_numpy(rows)


def ids_file(path, ids):
    path.write_text(json.dumps(ids))
    return path


def words(flags):
    said = []
    for name, value in flags.items():
        if value is not None:
            said += [f"--{name}"] + ([] if value is True else [str(value)])
    return said


class Command:
    """Runs one of the commands in a folder; gives the ids that it wrote."""

    def __init__(self, main, base, folder):
        self.main, self.base, self.folder = main, base, folder

    def __call__(self, **flags):
        self.main(words(self.base | {"output_dir": self.folder, "filename": "chosen.json"} | flags))
        return json.loads((self.folder / "chosen.json").read_text())


@pytest.fixture
def choose(table, tmp_path):
    """The ActiveFT command with 12 of 300 images in five steps."""
    base = {"feature_path": table[0], "budget": 12, "max_iter": 5, "lr": 0.05, "device": "cpu"}
    return Command(lambda argv: activeft.main_activeft("activeft_cifar", argv), base, tmp_path)


def asked_of(module, name, monkeypatch):
    """The keywords that a command gives its method, call by call."""
    calls, real = [], getattr(module, name)

    def noted(features, budget, **settings):
        calls.append({"features": features, "budget": budget} | settings)
        return real(features, budget, **settings)

    monkeypatch.setattr(module, name, noted)
    return calls


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
         "feature_path", "no_label_column", "device", "missing"}  # fmt: skip


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


def test_the_last_column_is_a_label_unless_told(choose, table, tmp_path, monkeypatch):
    calls = asked_of(activeft_method, "select_activeft", monkeypatch)
    choose()
    choose(no_label_column=True)
    assert [call["features"].shape for call in calls] == [(COUNT, WIDTH), (COUNT, WIDTH + 1)]
    other = tmp_path / "OTHER_train.npy"
    save_features(other, table[1].numpy()[:50], np.zeros(50, int))
    choose(feature_path=other)
    assert calls[-1]["features"].shape == (50, WIDTH)


def test_the_device_is_the_one_asked_for(choose, monkeypatch):
    calls = asked_of(activeft_method, "select_activeft", monkeypatch)
    choose()
    assert calls[0]["device"] == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:99"):
        choose(device="cuda:99")


CORES = [0, 11, 22, 33, 44, 105]


@pytest.fixture
def around(table, tmp_path):
    """The BiLAF command: 30 of 300 images around six cores."""
    base = {"features_inputs": table[0], "indices_file_name": ids_file(tmp_path / "cores.json", CORES), "budget": 30,
            "device": "cpu", "filename": None}  # fmt: skip

    def main(argv):
        bilaf.main_bilaf("density_cluster", [word for word in argv if word not in ("--filename", "chosen.json")])
        newest = max(tmp_path.glob("Density_*ActiveFT*[!e].json"), key=lambda path: path.stat().st_mtime_ns)
        (tmp_path / "chosen.json").write_text(newest.read_text())

    return Command(main, base, tmp_path)


BOUNDARY = [  # flag, field of the config, two values, whether the list differs
    ("density_nearst_number", "density_number", 3, 30, True),
    ("remove_percentage", "remove_share", 0.0, 0.4, True),
    ("cycle_percentage", "ring_share", 0.1, 0.7, True),
    ("same_oppo_penalty_ratio", "penalty", 1.0, 3.0, True),
    ("nested", "nested", None, True, True),
    ("max_memory", "max_memory", 0.02, 0.5, False),
]


@pytest.mark.parametrize(("flag", "field", "one", "other", "differs"), BOUNDARY, ids=[entry[0] for entry in BOUNDARY])
def test_bilaf_is_told_its_settings(around, table, monkeypatch, flag, field, one, other, differs):
    calls, lists = asked_of(bilaf_method, "select_bilaf", monkeypatch), []
    for value in (one, other):
        lists.append(around(**{flag: value}))
        config = dataclasses.replace(BILAF_PRESETS["paper"], **{field: bool(value) if field == "nested" else value})
        assert calls[-1]["config"] == config
        assert lists[-1] == select_bilaf(table[1], 30, cores=CORES, config=config).tolist()
    assert (lists[0] != lists[1]) == differs


def test_the_variants_and_the_two_programs_differ(around, monkeypatch):
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    assert around() != around(variant="released")
    around.main(words(around.base | {"output_dir": around.folder}))
    bilaf.main_bilaf("density_cluster_imagenet", words(around.base | {"output_dir": around.folder, "variant": "released"}))
    kinds = [call["config"] for call in calls]
    wanted = [BILAF_PRESETS[name] for name in ("paper", "released", "paper", "released_imagenet")]
    assert kinds == wanted


def test_bilaf_reads_and_writes_where_told(around, table, tmp_path, monkeypatch):
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    assert set(CORES) < set(around())
    other = ids_file(tmp_path / "others.json", [7, 8, 9])
    assert {7, 8, 9} < set(around(indices_file_name=other, cur_number=3, budget=20))
    assert calls[-1]["budget"] == 20
    with pytest.raises(UserError, match="--cur_number 4"):
        around(indices_file_name=other, cur_number=4)
    around(features_inputs=None, feature_path=table[0].parent, dataset="POOL", distance="euclidean", seed=5)
    assert calls[-1]["features"].shape == (COUNT, WIDTH)
    assert (tmp_path / "Density_30_from_ActiveFT6_seed_5.json").exists()
    around(no_label_column=True)
    assert calls[-1]["features"].shape == (COUNT, WIDTH + 1)
    with pytest.raises(UserError, match="cuda:99"):
        around(device="cuda:99")


BILAF_ROWS = {entry[0] for entry in BOUNDARY} | {
    "dataset", "feature_path", "features_inputs", "indices_file_name", "cur_number", "budget", "output_dir", "variant",
    "distance", "no_label_column", "seed", "device",
}  # fmt: skip


@pytest.fixture
def pick(table, tmp_path):
    """select_subset: 10 of 300 images."""
    return Command(any_method.main_select, {"features": table[0], "budget": 10, "device": "cpu"}, tmp_path)


def test_select_subset_does_as_its_methods(pick, table, tmp_path, monkeypatch):
    rows = table[1]
    assert pick(method="random", seed=2) == sorted(select_random(rows, 10, seed=2).tolist())
    assert pick(method="random", seed=2) != pick(method="random", seed=3)
    taken = ids_file(tmp_path / "taken.json", pick(method="random"))
    for flag in ("labelled", "excluded"):
        ids = json.loads(taken.read_text())
        assert pick(method="random", **{flag: taken}) == sorted(select_random(rows, 10, **{flag: ids}).tolist())
    assert len(pick(method="random", budget=None, percent=4)) == 12
    calls = asked_of(bilaf_method, "select_bilaf", monkeypatch)
    pick(method="bilaf", cores=4)
    pick(method="bilaf", cores=4, variant="released")
    assert [call["config"].core_number for call in calls] == [4, 4]
    assert calls[0]["config"] == dataclasses.replace(BILAF_PRESETS["paper"], core_number=4)
    assert calls[1]["config"] == dataclasses.replace(BILAF_PRESETS["released"], core_number=4)
    pick(method="bilaf", cores=4, no_label_column=True)
    assert calls[-1]["features"].shape == (COUNT, WIDTH + 1)
    with pytest.raises(UserError, match="cuda:99"):
        pick(device="cuda:99")
    pick.main(words(pick.base | {"output_dir": tmp_path / "there", "method": "random"}))
    assert (tmp_path / "there" / "POOL_train_random_sampleNum_10.json").exists()


SELECT_ROWS = {"features", "method", "budget", "percent", "cores", "variant", "labelled", "excluded", "output_dir",
               "filename", "no_label_column", "seed", "device", "missing"}  # fmt: skip


@pytest.mark.parametrize(
    ("parser", "rows"),
    [
        *((activeft.build_parser(preset), ROWS) for preset in ACTIVEFT_PRESETS),
        *((bilaf.build_parser(script), BILAF_ROWS) for script in bilaf.SCRIPTS),
        (any_method.build_parser(), SELECT_ROWS),
    ],
)
def test_every_flag_has_a_row(parser, rows):
    assert {action.dest for action in parser._actions} - {"help", "local_rank"} == rows
