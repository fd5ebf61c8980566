"""A run of the trainer in a process of its own: what it gives, and what is left where it fails."""

import dataclasses
import signal

import numpy as np
import pytest
import torch

from data_selection.common import distributed
from data_selection.common.errors import UserError
from data_selection.common.paths import ROOT
from data_selection.judging.experiments import hashes, work
from data_selection.judging.experiments.cells import LoadedPool, make_cells
from data_selection.judging.experiments.hashes import Hashes
from data_selection.judging.experiments.plan import PoolSpec, read_plan
from scripts.experiments import command, trainer
from tests.support.experiments import make_config

DONE = {name: {"acc1": 71.0} for name in trainer.SCORES} | {"graph": None, "verdict": {"kept": "finetuned"}}
MAIN = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
print("it begins with", *sys.argv[1:3])
if "--killed" in sys.argv:
    os.kill(os.getpid(), 9)
if "--fail" in sys.argv:
    print("error: no such thing", file=sys.stderr)
    sys.exit(2)
(folder / "result.json").write_text(json.dumps(DONE))
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """trainer.train of a program that takes no time."""
    (tmp_path / "deit").mkdir()
    (tmp_path / "deit" / "main.py").write_text(MAIN.replace("DONE", f"{DONE}"))
    monkeypatch.setattr(trainer, "ROOT", tmp_path)
    return trainer.train


def test_a_run_gives_its_scores_and_leaves_its_folder_alone(train, tmp_path, monkeypatch):
    clock = iter([100.0, 190.0])
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(clock))
    found = train(["--seed", 3], tmp_path / "out" / "run")
    assert {name: found[name] for name in trainer.SCORES} == {"last": 71.0, "best": 71.0, "ema": 71.0, "graph": None}
    assert found["verdict"] == {"kept": "finetuned"}
    assert found["minutes"] == 1.5
    assert found["gib"] > 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run"]
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "ROOT", tmp_path)
    assert train(["--seed", 3], tmp_path / "out" / "run")["last"] == 71.0  # in the folder of one that was killed


def test_the_memory_of_a_run_is_its_own(train, tmp_path):
    """The system takes a child for as large as its parent was, which holds a pool."""
    pool = np.ones(500_000_000 // 8)
    assert train(["--seed", 3], tmp_path / "run")["gib"] < 0.2
    assert len(pool)


def test_a_run_that_fails_is_told_by_its_last_words_which_stay(train, tmp_path):
    log = tmp_path / "run.log"
    with pytest.raises(UserError, match=rf"ended with 2, error: no such thing \({log}\): .*--seed 3 --fail"):
        train(["--seed", 3, "--fail"], tmp_path / "run")
    assert sorted(log.read_text().splitlines()) == ["error: no such thing", "it begins with --seed 3"]
    with pytest.raises(UserError, match=r"the trainer was killed by signal 9 \(is memory short\?\), "):
        train(["--seed", 3, "--killed"], tmp_path / "run")


@pytest.mark.parametrize("processes", [1, 3])
def test_several_processes_come_by_a_launcher_and_end_by_its_signal(train, tmp_path, monkeypatch, processes):
    seen = {}

    def popen(words, *, preexec_fn, **_):
        seen.update(words=words, last_breath=preexec_fn)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.subprocess, "Popen", popen)
    monkeypatch.setattr(trainer, "die_with_us", lambda number: number)
    with pytest.raises(KeyboardInterrupt):
        train(["--seed", 3], tmp_path / "run", processes)
    program = [str(tmp_path / "deit" / "main.py"), "--seed", "3", "--output_dir", str(tmp_path / "run")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    assert seen["words"][1:3] == ["-c", trainer.MEASURED]
    assert seen["words"][4:] == ([] if processes == 1 else launcher) + program
    assert seen["last_breath"] == (signal.SIGKILL if processes == 1 else signal.SIGTERM)  # which it hands on


@pytest.mark.parametrize("settings", [{"mode": "self-train"}, {"mode": "smoothed"}, {"mode": "auto"}, {"recipe": "R"}])
def test_what_learns_from_the_whole_pool_is_refused_on_a_cut_of_it(settings, tmp_path):
    (tmp_path / "mine.yaml").write_text("mode: smoothed\nepochs: 2\n")
    if "recipe" in settings:
        settings = {"recipe": str(tmp_path / "mine.yaml")}
    pool = PoolSpec("one", tmp_path / "x.npy", None, trainer={"data-set": "DEMOSUBSET"})
    assert trainer.check(settings, pool, "here")["flags"].items() >= settings.items()
    cut = dataclasses.replace(pool, imbalance=50.0)
    told = settings.get("mode", "smoothed")
    with pytest.raises(UserError, match=rf"here: {told} learns from all images of 'one', not from its cut"):
        trainer.check(settings, cut, "here")
    assert trainer.check(settings | {"mode": "linear"}, cut, "here")  # which wins over the recipe


def test_a_file_counts_by_what_is_in_it_and_where_it_is_found(tmp_path, monkeypatch):
    pool = PoolSpec("one", tmp_path / "x.npy", None, trainer={"data-set": "FOLDERSUBSET", "data-path": str(tmp_path)})
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    for name in ("features", "train-path", "val-path", "labels", "val-labels"):
        path = tmp_path / "file.txt"
        keys = []
        for text in ("one", "other", "one"):
            path.write_text(text)
            keys.append(trainer.key(trainer.check({name: str(path), "mode": "auto"}, pool, "here")))
        assert keys[0] == keys[2] != keys[1]
    monkeypatch.chdir(tmp_path)
    found = trainer.check({"features": "configs/README.md", "mode": "auto"}, pool, "here")["flags"]["features"]
    assert found == str(ROOT / "configs" / "README.md")


def test_a_folder_counts_by_the_name_in_the_config(tmp_path, monkeypatch):
    """An experiment that is moved, or shared by machines that have it elsewhere, keeps its results."""
    keys = []
    for place in ("one", "two"):
        for part in ("train", "val"):
            (tmp_path / place / "pets" / part).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        pool = PoolSpec("one", tmp_path / "x.npy", None, trainer={"data-set": "FOLDERSUBSET"})
        settings = trainer.check({"train-path": "pets/train", "val-path": "pets/val"}, pool, "here")
        assert settings["flags"]["train_path"] == str(tmp_path / place / "pets" / "train")
        keys.append(trainer.key(settings))
    assert keys[0] == keys[1]
    assert keys[0]["flags"]["val_path"] == "pets/val"


def test_a_file_is_read_once_for_all_budgets_seeds_and_starts(tmp_path, monkeypatch):
    """It may be gigabytes: its hash is kept like that of the pool's features."""
    read, path = [], tmp_path / "features.npy"
    path.write_bytes(b"one")
    monkeypatch.setattr(hashes, "sha256", lambda file: read.append(file) or f"{len(read)}")
    pools = {"one": {"train": str(tmp_path / "one_train.npy"), "trainer": {"data-set": "DEMOSUBSET"}}}
    evaluations = {"graph": {"kind": "trainer", "features": str(path), "mode": "smoothed"}}
    plan = read_plan(make_config(tmp_path, pools=pools, evaluations=evaluations))

    def told():
        loaded = {"one": LoadedPool(plan.pools[0], Hashes(tmp_path))}
        return {cell.judged["flags"]["features"] for cell in make_cells(plan, loaded, {"trainer": trainer.TRAINER})}

    first = told()
    assert len(first) == 1
    assert told() == first
    assert read.count(path) == 1
    path.write_bytes(b"other")
    assert not told() & first
    assert read.count(path) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data-set": "NOSUCHSUBSET"}, r"unknown --data-set 'NOSUCHSUBSET'"),
        ({"data-set": "DEMO"}, r"--subset_ids is for the SUBSET data sets: use --data-set DEMOSUBSET"),
        (
            {"data-set": "IMNETSUBSET", "data-path": "DIR"},
            r"ImageNet is needed as class folders in .*ImageNet/val, whi",
        ),
        ({"data-set": "INATSUBSET", "data-path": "DIR"}, r"iNaturalist 2018 needs train2018\.json, .* in "),
        ({"data-set": "FOLDERSUBSET", "data-path": "DIR"}, r"folder .*/train does not exist: .*--train-path names an"),
        (
            {"data-set": "FOLDERSUBSET", "data-path": "DIR/ImageNet"},
            r"folder .*/val does not exist: .*--val-path names",
        ),
        ({"data-set": "FOLDERSUBSET", "data-path": "DIR/no"}, r"--data-path .*/no is no folder that exists"),
        ({"data-set": "DEMOSUBSET", "mode": "full", "features": "F"}, r"--features is for --mode linear, smoothed and"),
        ({"data-set": "DEMOSUBSET", "epochs": 0}, r"--epochs 0 is below 1"),
        ({"data-set": "DEMOSUBSET", "opt": "sgdd"}, r"unknown --opt 'sgdd': use one of"),
        ({"data-set": "DEMOSUBSET", "opt": "sgd", "opt-betas": 0.9}, r"--opt-betas does nothing with --opt sgd"),
        ({"data-set": "CIFAR10SUBSET", "pixels": "model", "model": "deit_smal"}, r"unknown backbone 'deit_smal'"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_any_work(settings, told, tmp_path):
    (tmp_path / "ImageNet" / "train").mkdir(parents=True)
    if "data-path" in settings:
        settings = settings | {"data-path": settings["data-path"].replace("DIR", str(tmp_path))}
    pool = PoolSpec("one", tmp_path / "x.npy", None, trainer=settings)
    with pytest.raises(UserError, match=rf"here, pool 'one': {told}"):
        trainer.check({}, pool, "here")
    (tmp_path / "ImageNet" / "val").mkdir()
    if settings["data-set"].startswith("IMNET"):
        assert trainer.check({}, pool, "here")
        beside = settings | {"data-path": str(tmp_path / "ImageNet")}
        assert trainer.check({}, dataclasses.replace(pool, trainer=beside), "here")
    if settings.get("data-path") == str(tmp_path / "ImageNet"):
        (tmp_path / "ImageNet" / "val").rmdir()
        assert trainer.check({"val-path": "none"}, pool, "here")


@pytest.mark.parametrize("settings", [{"labels": None}, {"recipe": None}, {"data-set": None, "features": 5}])
def test_values_that_are_none_or_no_words_end_in_no_traceback(settings, tmp_path):
    pool = PoolSpec("one", tmp_path / "x.npy", None, trainer={"data-set": "DEMOSUBSET"} | settings)
    if "features" in settings:
        with pytest.raises(UserError, match="here: pool 'one' needs trainer"):
            trainer.check({}, pool, "here")
    else:
        assert trainer.key(trainer.check({"finetune": 5}, pool, "here"))["flags"]["finetune"] == 5


@pytest.mark.parametrize(
    ("typed", "flags", "expected"),
    [
        ("cuda:1", {}, ["--device=cuda:1"]), ("cuda:1", {"device": "cpu"}, ["--device=cpu"]), ("auto", {}, []),
        ("cuda:1", {"processes": 2}, ["--device=cuda"]),
    ],
)  # fmt: skip
def test_the_device_of_the_command_is_that_of_its_trainings(typed, flags, expected, tmp_path, monkeypatch):
    """Unless the config names one; `auto` leaves it to the recipe. Several processes cannot share one card."""
    asked = []
    monkeypatch.setattr(trainer, "train", lambda words, folder, processes: asked.append(words) or {"last": 50.0})
    for module in (distributed, work):
        monkeypatch.setattr(module, "pick_device", lambda _: torch.device("cpu"))
    pool = {"train": f"{tmp_path}/one_train.npy", "trainer": {"data-set": "DEMOSUBSET"} | flags}
    config = make_config(
        tmp_path, pools={"one": pool}, methods={"random": None}, budgets=[8], seeds=1, evaluations={"trainer": {}}
    )
    command.main([str(config), "--output_dir", str(tmp_path / "out"), "--device", typed])
    assert [word for word in asked[0] if str(word).startswith("--device")] == expected


@pytest.mark.parametrize("processes", [0, -1, True, 1.0, "two"])
def test_a_number_of_processes_that_is_none_is_refused(processes, tmp_path):
    pool = PoolSpec("one", tmp_path / "x.npy", None, trainer={"data-set": "DEMOSUBSET"})
    with pytest.raises(UserError, match=r"here: processes .* must be a whole number from 1"):
        trainer.check({"processes": processes}, pool, "here")
    assert trainer.check({"processes": 1}, pool, "here")["processes"] == 1
