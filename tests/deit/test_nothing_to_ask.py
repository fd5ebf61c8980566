"""Cross-validation where nothing could be found out: no linear classifier for its probe, or no label to ask.

And the temperature that it finds where something could.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.embedding.backbones import build_model
from data_selection.images.pools import Pool, load_demo
from data_selection.judging.calibration import temperature
from deit.choosing import decide
from deit.crossval import Asked, answerable, asked_ids, leave_out, nothing_to_ask, temperature_of, verdict_of
from deit.job import open_job
from deit.main import main
from deit.options import parse
from tests.support.trainer_runs import few_shot, make_images

CONVOLUTION = {"model": "resnetv2_18", "finetune": "none", "input_size": 32}  # its classifier is one
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_mode_full_does_without_a_probe_where_the_classifier_is_not_linear(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deit.crossval.one_part", lambda *_: pytest.fail("asked"))
    (tmp_path / "four.json").write_text("[0, 1, 12, 13]")
    flags = {"data_set": "FOLDERSUBSET", "subset_ids": tmp_path / "four.json", "epochs": 1, "amp": "measured"}
    words = few_shot(images, tmp_path / "out", mode="full", folds=2, auto_resume=True, **flags | CONVOLUTION)
    main(words)
    told = "cross-validation is left out: its probe needs a linear classifier, and this model has Conv2d(512, 2, kernel"
    assert told in capsys.readouterr().out
    assert result(tmp_path / "out")["verdict"] is None
    main(words)
    assert "the run is finished" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["lp-ft", "three-phase", "self-train", "smoothed", "linear", "auto"])
def test_a_mode_that_needs_a_linear_classifier_says_so_before_any_work(images, monkeypatch, mode):
    monkeypatch.setattr("deit.trainer.starting_point", lambda *_: pytest.fail("it has begun"))
    idle = dict.fromkeys(("epochs", "lr", "global_batch_size", "restarts") if mode in ("smoothed", "linear") else ())
    told = r"every --mode but full needs a linear classifier, and this model has Conv2d\(.*: use --mode full$"
    with pytest.raises(UserError, match=told):
        main(few_shot(images, mode=mode, **CONVOLUTION | idle))


@pytest.fixture
def singles(images, tmp_path):
    """The flags of a folder with an image of each of four classes to train on, and eight images without a label."""
    names = [f"class{i % 2}/{i:02d}.png" for i in range(12)]
    arrays = load_demo()["train_images"]
    for name, array in zip(names, arrays, strict=False):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / "train" / name)
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{name},c{i}\n" for i, name in enumerate(names[:4])))
    return {"labels": table, "subset_ids": table, "train_path": tmp_path / "train", "data_path": tmp_path, "folds": 2,
            "val_path": "none", "data_set": "FOLDERSUBSET", "epochs": 1, "model": "test_vit", "input_size": 32,
            "finetune": images / "weights.pth"}  # fmt: skip


@pytest.mark.parametrize(("mode", "minutes", "unlabelled", "taken"), [
    ("lp-ft", None, True, "lp-ft"), ("auto", None, True, "self-train"), ("auto", 1e-6, True, "linear"),
    ("auto", None, False, "linear"),
])  # fmt: skip
def test_a_single_label_of_each_class_is_asked_nothing(
    images, singles, tmp_path, monkeypatch, capsys, mode, minutes, unlabelled, taken
):
    for path in () if unlabelled else sorted(singles["train_path"].glob("*/*.png"), key=lambda path: path.name)[4:]:
        path.unlink()
    monkeypatch.setattr("deit.crossval.one_part", lambda *_: pytest.fail("asked"))
    words = few_shot(images, tmp_path / "out", mode=mode, minutes=minutes, auto_resume=True,
                     rounds=1 if mode == "auto" else None, **singles)  # fmt: skip
    main(words)
    out = capsys.readouterr().out
    assert "cross-validation is left out: no class has a label to learn from and another to ask of\n" in out
    assert ("no time to ask" in out, "no time to finetune" in out) == (False, False)
    found = result(tmp_path / "out")
    assert (found["mode"], found["verdict"]) == (taken, None)
    kept = torch.load(tmp_path / "out/checkpoint.pth", weights_only=True)
    for folds in (0, 2):  # 2: a run that was begun when such labels were asked
        kept["args"]["folds"] = folds
        torch.save(kept, tmp_path / "out/checkpoint.pth")
        main(words)
        assert "the run is finished" in capsys.readouterr().out


@pytest.mark.parametrize(("features", "taken"), [(None, "linear"), (torch.zeros(12, 2), "smoothed")])
def test_where_nothing_can_be_asked_and_nobody_can_be_taught_the_graph_comes_before_the_head(
    images, singles, monkeypatch, features, taken
):
    monkeypatch.setattr("deit.choosing.may_teach", lambda _: False)
    monkeypatch.setattr("deit.choosing.smoothed_said", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("deit.choosing.settle", lambda *_, **__: 1.0)
    job = open_job(parse(few_shot(images, mode="auto", **singles | {"folds": 2})), World(0, 1, torch.device("cpu")))
    leave_out(job, {})
    decide(job, "none", features)
    assert (job.args.mode, job.verdict) == (taken, None)


def test_a_single_label_can_be_asked_of_by_others_that_are_held_out():
    model, pool = build_model("test_vit", 2), Pool(arrays=np.zeros((3, 2, 2), np.uint8), labels=[1, 1, 0], classes=2)
    for ids, held, why in (([0], [1], ""), ([0], [2], "no class has a label to"), ([0], [], "one label is none to")):
        job = SimpleNamespace(ids=ids, held=held, train_pool=pool, args=SimpleNamespace(folds=2, seed=0))
        assert nothing_to_ask(job, model).startswith(why)
        assert bool(nothing_to_ask(job, model)) == bool(why)


def test_labels_that_no_part_could_learn_decide_nothing():
    """Of two classes with two labels and two with one, whatever an untrained output says of the latter."""
    labels = [0, 0, 1, 1, 2, 3]
    pool = Pool(arrays=np.zeros((6, 2, 2), np.uint8), labels=labels, classes=4)
    job = SimpleNamespace(ids=list(range(6)), held=[], train_pool=pool, args=SimpleNamespace(folds=2, seed=0))
    ids = asked_ids(job)
    right = one_hot(torch.tensor([labels[i] for i in ids]), 4).float()
    wrong, single = right.roll(1, 1), torch.tensor([[labels[i] > 1] for i in ids])
    assert answerable(job) == {0, 1, 2, 3}
    found = verdict_of(Asked(ids, torch.where(single, right, wrong), torch.where(single, wrong, right)), job)
    assert (found["labels"], found["probe_right"], found["finetuned_right"]) == (4, 0, 4)


def test_auto_counts_only_labels_that_a_part_could_learn(images, singles, tmp_path, monkeypatch):
    """The head has all of these right, lp-ft the single ones of their class, too: that is luck."""
    table = singles["labels"]
    words = [f"class{i % 2}/{i:02d}.png,c{label}\n" for i, label in enumerate([0, 0, 1, 1, 2, 3])]
    table.write_text("".join(["file,label\n", *words]))
    job = open_job(parse(few_shot(images, mode="auto", minutes=5, **singles)), World(0, 1, torch.device("cpu")))
    right = one_hot(torch.tensor([job.train_pool.label(i) for i in asked_ids(job)]), 4).float()
    single = torch.tensor([[job.train_pool.label(i) > 1] for i in asked_ids(job)])
    said = {"linear": torch.where(single, right.roll(1, 1), right), "lp-ft": right}
    monkeypatch.setattr("deit.choosing.answers", lambda *_: said)
    monkeypatch.setattr("deit.choosing.modes_that_fit", lambda *_: ["lp-ft"])
    monkeypatch.setattr("deit.choosing.settle", lambda *_, **__: 1.0)
    decide(job, "none", None)
    assert job.args.mode == "linear"
    assert job.settings["auto"].startswith("right of 4 labels that were left out: linear 4, lp-ft 4")


@pytest.mark.parametrize("kept", ["probe", "finetuned"])
def test_the_temperature_is_that_of_the_model_that_is_kept(kept):
    draw, pool = (
        torch.Generator().manual_seed(0),
        Pool(arrays=np.zeros((40, 2, 2), np.uint8), labels=[0, 1] * 20, classes=2),
    )
    sure, doubtful = (
        (torch.randn(40, 2, generator=draw) + scale * torch.eye(2)[torch.tensor(pool.labels)]).softmax(1)
        for scale in (3, 0.5)
    )
    ids = [*range(1, 40, 2), *range(0, 40, 2)]  # in the order of the parts
    flags = SimpleNamespace(folds=2, seed=0)
    job = SimpleNamespace(ids=ids, held=[], train_pool=pool, args=flags)
    found = temperature_of({"kept": kept}, Asked(ids, sure[ids], doubtful[ids]), job)
    right = {"probe": sure, "finetuned": doubtful}[kept]
    assert found == pytest.approx(temperature(right, torch.tensor(pool.labels)))
    assert temperature(sure, torch.tensor(pool.labels)) != temperature(doubtful, torch.tensor(pool.labels))
