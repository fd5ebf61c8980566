"""What train_on_labels makes of its arguments and of a run folder, without any training."""

import hashlib
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features
from data_selection.embedding.backbones import DINO_WEIGHTS
from data_selection.images.answers import Answers
from deit.labelled import runs, training
from deit.labelled.commands import main_train
from deit.labelled.reporting import NOTHING, covered, notes, pictures, record_of
from deit.labelled.runs import MODEL, Labelled, backbone_flags, open_run, training_folder
from deit.labelled.training import features_flag, judges, place
from deit.recipes import FEW_SHOT, recipe_values
from deit.runs.saving import NEWEST
from deit.smoothing import POOL, with_pool
from tests.support.labelled_runs import train
from tests.support.pages import write_answers
from tests.support.trainer_runs import write_images

NAMES = ["a.png", "bb.png", "ccc.png", "dddd.png", "eeeee.png"]


def embedded(folder, arch="demo_vit", weights="", patch=None):
    """A Labelled whose features are by that backbone."""
    made = {"backbone": {"arch": arch, "patch_size": patch}, "preprocess": arch and {"size": 96}}
    save_features(folder / "x.npy", np.eye(5), names=NAMES, provenance=made)
    return Labelled(folder, folder, load_features(folder / "x.npy"), Answers(), {"weights": weights}, (), True)


@pytest.fixture
def run(tmp_path):
    """A run folder by hand: two images handed out and labelled, two labelled in the round before."""
    write_images(tmp_path / "images", NAMES)
    out = tmp_path / "run"
    out.mkdir()
    embedded(out)
    content = {"version": 1, "source": str(tmp_path / "images"), "features": "x.npy"}
    (out / "run.json").write_text(json.dumps(content))
    (out / "subset.json").write_text("[2, 3]")
    (out / "subset.provenance.json").write_text(json.dumps({"images": {"name": NAMES[2:4]}}))
    write_answers(out / "labelled.csv", {"a.png": "cat", "bb.png": "dog"})
    write_answers(out / "annotate.csv", {"ccc.png": "dog", "dddd.png": "dog"})
    return out


def test_every_flag_arrives(monkeypatch):
    asked = {}
    monkeypatch.setattr(training, "train_on_labels", lambda *places, **words: asked.update(words, places=places))
    words = {"test": "t", "test_labels": "t.csv", "mode": "linear", "minutes": 3.0, "weights": "w.pth", "source": "s",
             "seed": 5, "device": "cpu", "num_workers": 2}  # fmt: skip
    flags = [f"--{name if name == 'num_workers' else name.replace('_', '-')}={value}" for name, value in words.items()]
    main_train(["run", "--labels", "a.csv", "b.csv", "--partial", *flags])
    assert asked.pop("progress") is not None
    assert asked == words | {"places": ("run", ["a.csv", "b.csv"]), "partial": True}


def test_labels_that_are_given_stand_for_the_runs_own_and_those_of_earlier_rounds_stay(run, tmp_path):
    write_answers(tmp_path / "mine.csv", {"ccc.png": "cat", "dddd.png": "dog"})
    before = {"a.png": "cat", "bb.png": "dog"}
    for labels, own in (([], "dog"), ([tmp_path / "mine.csv"], "cat")):
        found = open_run(run, labels, None, partial=False, log=lambda _: None)
        assert found.answers.labels == before | {"ccc.png": own, "dddd.png": "dog"}


def test_a_place_that_is_typed_wrong_is_what_the_message_names(run, tmp_path):
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"images are not in .*images any longer: say with --source"):
        open_run(run, [], None, partial=False, log=lambda _: None)
    wrong = tmp_path / "moevd"
    told = f"--source {wrong} does not exist: name the folder or list of the pool's images, which were in {tmp_path}/im"
    with pytest.raises(UserError) as caught:
        open_run(run, [], wrong, partial=False, log=lambda _: None)
    assert str(caught.value).startswith(told)
    with pytest.raises(UserError, match=r"gone\.pth") as caught:
        backbone_flags(embedded(tmp_path), str(tmp_path / "gone.pth"))
    assert "--weights says" not in str(caught.value)
    with pytest.raises(UserError, match=r"old\.pth.*; --weights says where"):
        backbone_flags(embedded(tmp_path, weights=str(tmp_path / "old.pth")), "")


def test_rows_of_no_image_are_all_named_and_left_out_where_asked(run):
    strange = [f"gone{number}.png" for number in range(40)]
    write_answers(run / "annotate.csv", {"ccc.png": "dog", "dddd.png": "cat"} | dict.fromkeys(strange, "cat"))
    told, said = "40 rows are of no image of the pool: " + ", ".join(f"{name} (annotate.csv)" for name in strange), []
    with pytest.raises(UserError) as caught:
        open_run(run, [], None, partial=False, log=said.append)
    assert f"{told}; take these rows out, or --partial leaves them out" in str(caught.value)
    found = open_run(run, [], None, partial=True, log=said.append)
    assert f"left out: {told}" in said
    assert found.answers.labels == {"a.png": "cat", "bb.png": "dog", "ccc.png": "dog", "dddd.png": "cat"}


def test_test_images_processes_and_device_change_no_training(run, tmp_path, monkeypatch):
    told = []

    def stop(words, folder):
        told.append((words, folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "trained", stop)
    write_images(tmp_path / "test", ["x.png", "y.png"])
    write_answers(tmp_path / "test.csv", {"x.png": "cat", "y.png": "dog"})
    images = {"test": tmp_path / "test", "test_labels": tmp_path / "test.csv"}
    for words in ({}, images | {"num_workers": 1}, {"device": "auto"}):
        with pytest.raises(KeyboardInterrupt):
            train(run, **words)
    assert len({folder for _, folder in told}) == 1
    assert str(tmp_path / "test") not in told[1][0]
    assert [words[words.index("--num_workers") + 1] for words, _ in told] == ["0", "1", "0"]
    assert [words[words.index("--device") + 1] for words, _ in told] == ["cpu", "cpu", "auto"]


def test_the_backbone_is_that_of_the_features_unless_other_weights_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "local_file", lambda source: source)  # nothing is fetched
    pixels = ["--pixels", "model", "--input-size", "96"]
    own, small = embedded(tmp_path, "vit_small", "http://host/w.pth", 16), ["--model", "vit_small", *pixels]
    assert backbone_flags(own, "") == [*small, "--allow-http", "--finetune", "http://host/w.pth"]
    assert backbone_flags(own, "o.pth") == [*small, "--finetune", "o.pth"]
    published = backbone_flags(embedded(tmp_path, "vit_base", patch=16), "")
    assert published == ["--model", "vit_base", *pixels, "--finetune", DINO_WEIGHTS["vit_base", 16]]
    assert backbone_flags(embedded(tmp_path, "timm:resnet18"), "") == ["--model", "timm:resnet18", *pixels]
    with pytest.raises(UserError, match="are of vit_small with patches of 8 pixels, and the trainer has 16"):
        backbone_flags(embedded(tmp_path, "vit_small", patch=8), "")
    with pytest.raises(UserError, match=r"x\.npy does not say what embedded it"):
        backbone_flags(embedded(tmp_path, ""), "")


def test_features_serve_the_modes_that_look_at_the_pool(tmp_path):
    given = embedded(tmp_path)
    own = ["--features", str(tmp_path / "x.npy")]
    for mode, weights, flags in (
        ("linear", "", own), ("auto", "", own), ("smoothed", "", own), ("full", "", []),
        ("linear", "w.pth", []), ("auto", "w.pth", []), ("smoothed", "w.pth", own),  # the graph is of the features
    ):  # fmt: skip
        assert features_flag(given, mode, weights) == flags, (mode, weights)


def test_a_model_that_was_left_half_placed_is_not_written_through(tmp_path):
    """It may be a second name of an earlier training's file."""
    old, new, run = (tmp_path / name for name in ("old", "new", "run"))
    for folder in (old, new, run):
        folder.mkdir()
    for folder in (old, new):
        (folder / NEWEST).write_text(folder.name)
    (run / ".model.pth.partial").hardlink_to(old / NEWEST)
    place(new, run)
    assert {path.name: path.read_text() for path in run.iterdir()} == {"model.pth": "new"}
    assert (old / NEWEST).read_text() == "old"


def test_what_is_to_be_known_of_labels_and_images_is_told_together(run):
    found = open_run(run, [], None, partial=False, log=lambda _: None)
    (run / "x.duplicates.txt").write_text("a.png\nbb.png\n\nccc.png\ndddd.png\n")
    copies = "2 groups of images are exact duplicates of each other: see x.duplicates.txt."
    assert notes(found) == [copies]
    found.answers.labels.clear()
    found.answers.labels.update({"a.png": "cat", "bb.png": "dog"})
    assert notes(found) == [f"The accuracy on this page says nothing: {NOTHING}.", copies]


def test_a_record_of_places_that_are_no_text_can_be_written(run):
    found = open_run(run, [], None, partial=False, log=lambda _: None)
    found = replace(found, source=run / os.fsdecode(b"caf\xe9"))
    record = record_of(found, {"mode": "linear"}, os.fsdecode(b"/w/\xe9.pth"))
    assert (record["images"], record["weights"]) == (f'"{run}/caf\\udce9"', r'"\udce9.pth"')
    assert record_of(found, {"mode": "linear"})["weights"] is None
    assert all(str(value).encode() for value in record.values())


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_report_links_to_the_images_themselves_whatever_browsers_show_of_them(tmp_path, ending):
    names = [f"{i}.{ending}" for i in range(3)]
    write_images(tmp_path, names)
    (tmp_path / names[1]).write_bytes(b"damaged")
    found = pictures(tmp_path, [*names, "gone.png"])
    assert {name: one["address"] for name, one in found.items()} == {
        name: (tmp_path / name).as_uri() for name in (names[0], names[2])
    }
    assert all(one["thumbnail"].startswith("data:image/") for one in found.values())


def test_labels_that_judge_are_told_of_all_that_were_drawn():
    drawn = {"labelled": 10, "unlabelled": 0}
    assert judges({"accuracy": {"drawn": 0, "labels": 35}, "drawn": drawn}) == "35 labels"
    some = {"accuracy": {"drawn": 10, "labels": 35}, "drawn": drawn}
    assert judges(some) == "10 labels of images drawn at random"
    assert judges(some | {"drawn": drawn | {"unlabelled": 2}}) == "10 labels of the 12 images drawn at random"


def test_the_pool_is_covered_on_average_and_for_nearly_all():
    rows = np.repeat(np.eye(2), [60, 40], axis=0)
    average, most, _ = covered(rows, np.array([0])).values()
    assert (average, most) == pytest.approx((0.4 * 2**0.5, 2**0.5), rel=1e-5)


def test_other_labels_settings_or_images_are_another_training(tmp_path):
    given = embedded(tmp_path)
    parts = [replace(given, whole=False, pool=tuple(NAMES[:count])) for count in (2, 3)]
    labelled = replace(given, answers=Answers(labels={"a.png": "cat"}))
    found = [training_folder(one, ["--seed", "0"]) for one in (given, *parts, labelled)]
    assert len({*found, training_folder(given, ["--seed", "1"])}) == 5
    assert training_folder(embedded(tmp_path), ["--seed", "0"]) == found[0]


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "auto", "--minutes", "5", "--val-path", "none"],
        ["--device", "cuda:1", "--minutes", "5", "--val-path", "none"],
        ["--device", "cuda:1", "--minutes", "5", "--val-path", "t", "--val-labels", "t.csv"],
    ],
)
def test_a_training_of_when_device_and_test_images_made_another_is_found(tmp_path, words):
    given = replace(embedded(tmp_path), answers=Answers(labels={"a.png": "cat"}))
    settings = ["--mode", "auto", "--seed", "0", "--minutes", "5"]
    content = [[["a.png", "cat"]], [*settings[:4], *words], [], recipe_values(FEW_SHOT)]
    name = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]
    asked = given, settings, "cuda:1", ["--val-path", "t", "--val-labels", "t.csv"]
    fresh = training_folder(*asked)
    before = fresh.with_name(name)
    before.mkdir(parents=True)
    assert training_folder(*asked) == before
    fresh.mkdir(exist_ok=True)
    assert training_folder(*asked) == fresh
    (before / "result.json").touch()
    assert training_folder(*asked) == before  # it has ended


def test_where_weights_lie_makes_no_other_training(tmp_path):
    given = replace(embedded(tmp_path), answers=Answers(labels={"a.png": "cat"}))
    for name, content in (("one.pth", b"1"), ("moved.pth", b"1"), ("other.pth", b"2")):
        (tmp_path / name).write_bytes(content)

    def asked(name):
        return training_folder(given, ["--model", "m", "--finetune", str(tmp_path / name), "--mode", "auto"])

    fresh = asked("one.pth")
    assert asked("moved.pth") == fresh != asked("other.pth")
    words = ["--model", "m", "--finetune", str(tmp_path / "one.pth"), "--mode", "auto"]
    files, without = [hashlib.sha256(b"1").hexdigest()], ["--device", "auto", "--val-path", "none"]
    content = [[["a.png", "cat"]], [*words, *without], files, recipe_values(FEW_SHOT)]
    before = fresh.with_name(hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12])
    before.mkdir(parents=True)
    assert (asked("one.pth"), asked("moved.pth")) == (before, fresh)  # of when it did


def test_features_serve_their_own_weights_wherever_these_are_now(tmp_path):
    (tmp_path / "moved.pth").write_bytes(b"1")
    made = {"backbone": {"arch": "demo_vit", "weights_sha256": hashlib.sha256(b"1").hexdigest()}, "preprocess": {}}
    given = embedded(tmp_path)
    save_features(tmp_path / "x.npy", np.eye(5), names=NAMES, provenance=made)
    given = replace(given, table=load_features(tmp_path / "x.npy"))
    for mode in ("linear", "auto", "smoothed"):
        assert features_flag(given, mode, str(tmp_path / "moved.pth")) == ["--features", str(tmp_path / "x.npy")]
    (tmp_path / "moved.pth").write_bytes(b"2")
    assert features_flag(given, "auto", str(tmp_path / "moved.pth")) == []


def test_a_pool_that_cannot_be_placed_leaves_the_model_before_as_it_was(tmp_path):
    new, run = tmp_path / "new", tmp_path / "run"
    (run / POOL).mkdir(parents=True)
    new.mkdir()
    for path in (new / POOL, new / NEWEST, run / MODEL):
        path.write_text(path.parent.name)
    with pytest.raises(OSError, match=POOL):
        place(new, run)
    assert (run / MODEL).read_text() == "run"


def test_what_a_lost_pool_is_answered_by_is_a_flag_of_the_command(tmp_path, monkeypatch):
    """Of both, as nobody knows which one has trained a checkpoint that was taken away alone."""
    with pytest.raises(UserError, match=r"copy it from the folder of the training.*with --mode linear") as caught:
        with_pool(torch.nn.Identity(), tmp_path / "model.pth", {"mode": "smoothed"})
    hint = str(caught.value).partition(" (deit/main.py has ")[0]
    asked = {}
    monkeypatch.setattr(training, "train_on_labels", lambda *_, **words: asked.update(words))
    flags = re.findall(r"--[a-z]+ \w+", hint.partition("or train")[2])
    main_train(["run", *" ".join(flags).split()])
    assert asked["mode"] == "linear"
    with pytest.raises(SystemExit):
        main_train(["run", "--distil"])
