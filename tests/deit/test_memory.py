"""A checkpoint says what it was made with; evaluation needs nothing but it and images."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.common.errors import UserError
from deit.main import main
from deit.memory import recall
from deit.options import parse
from tests.support.trainer_runs import DEMO, checkpoint, command, few_shot, make_colours

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three colours: blue, green, red."""
    root = make_colours(tmp_path_factory.mktemp("images"))
    for path in sorted(root.glob("*/red/*.png")):
        pixels = np.asarray(Image.open(path))[..., ::-1]
        blue = path.parents[1] / "blue" / path.name
        blue.parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(blue)
    return root


@pytest.fixture(scope="module")
def trained(one_thread, images, tmp_path_factory):
    """The folder of a run at 35 pixels on every training image but one, with its accuracy."""
    out = tmp_path_factory.mktemp("run")
    main(few_shot(images, out, folds=0, input_size=35, pixels="data-set", epochs=2, model="demo_vit",
                  finetune=images / "sighted.pth"))  # fmt: skip
    return out, json.loads((out / "result.json").read_text())["last"]["acc1"]


def evaluate(capsys, images, out, *words):
    capsys.readouterr()
    main(
        ["--eval", "--resume", str(out / "checkpoint.pth"), "--data-set", "FOLDER", "--data-path", str(images), *words]
    )
    return capsys.readouterr().out


def test_a_checkpoint_holds_what_it_was_made_with(trained):
    args = checkpoint(trained[0])["args"]
    assert (args["model"], args["input_size"], args["class_names"]) == ("demo_vit", 35, ["blue", "green", "red"])
    assert args["preprocess"]["size"] == 35
    assert args["preprocess"]["crop"] == pytest.approx(224 / 256)
    assert args["train_names"][:2] == ["blue/00.png", "blue/02.png"]
    assert len(args["train_names"]) == 36


def test_evaluation_needs_no_flag_but_the_checkpoint_and_images(trained, images, capsys):
    out, accuracy = trained
    told = evaluate(capsys, images, out)
    assert f"* Acc@1 {accuracy:.3f}" in told
    assert "checkpoint.pth was made: --model demo_vit --input-size 35 --pixels data-set" in told
    assert "--input-size" not in evaluate(capsys, images, out, "--input-size", "28", "--model", "demo_vit")
    assert f"* Acc@1 {accuracy:.3f}" in evaluate(capsys, images, out, "--data-set", "FOLDERSUBSET")


def test_evaluation_takes_the_data_set_from_the_checkpoint(trained, images, tmp_path, capsys):
    out, accuracy = trained
    capsys.readouterr()
    main(["--eval", "--resume", str(out / "checkpoint.pth"), "--data-path", str(images)])
    told = capsys.readouterr().out
    assert f"* Acc@1 {accuracy:.3f}" in told
    assert "checkpoint.pth was made: --data-set FOLDER --model demo_vit" in told
    state, said = checkpoint(out), []
    torch.save(
        state | {"args": state["args"] | {"data_set": "INATSUBSET", "inat_category": "genus"}}, tmp_path / "i.pth"
    )
    args = parse(["--eval", "--finetune", str(tmp_path / "i.pth")], complete=True)
    assert (args.data_set, args.recipe) == ("INAT", "paper")
    recall(args, said.append)
    assert args.inat_category == "genus"
    assert "--data-set INAT " in said[0]
    torch.save(state | {"args": {}}, tmp_path / "tells nothing.pth")
    for path in (tmp_path / "tells nothing.pth", images / "sighted.pth"):
        with pytest.raises(UserError, match="--data-set is missing"):
            parse(["--eval", "--resume", str(path), "--data-path", str(tmp_path)], complete=True)


def test_classes_are_matched_by_name(trained, images, tmp_path, capsys):
    """Without the first class the others would have other numbers."""
    out, accuracy = trained
    assert accuracy > 80
    for split in ("train", "val"):
        for name, source in (("right/red", "red"), ("right/green", "green"), ("turned/red", "green")):
            folder, colour = name.split("/")
            shutil.copytree(images / split / source, tmp_path / folder / split / colour)
        shutil.copytree(images / split / "red", tmp_path / "turned" / split / "green")
    accuracies = [
        float(evaluate(capsys, tmp_path / folder, out).split("* Acc@1 ")[1].split()[0])
        for folder in ("right", "turned")
    ]
    assert accuracies[0] > 80
    assert accuracies[1] < 20
    for split in ("train", "val"):
        (tmp_path / "right" / split / "red").rename(tmp_path / "right" / split / "rad")
    with pytest.raises(UserError, match=r"for other classes \(only it has 'blue', 'red'; it lacks 'rad'\)"):
        evaluate(capsys, tmp_path / "right", out)


def test_what_finetune_names_is_judged_by_its_classes_too(trained, images, tmp_path):
    """The classes under names whose order turns their numbers round."""
    for split in ("train", "val"):
        for name, source in (("apple", "red"), ("green", "green"), ("plum", "blue")):
            shutil.copytree(images / split / source, tmp_path / split / name)
    words = ["--eval", "--finetune", str(trained[0] / "checkpoint.pth"), "--data-set", "FOLDER"]
    with pytest.raises(UserError, match=r"for other classes \(only it has 'blue', 'red'; it lacks 'apple', 'plum'\)"):
        main([*words, "--data-path", str(tmp_path)])


def test_a_run_is_continued_without_its_model_flags(trained, images, tmp_path, capsys):
    saved = tmp_path / "saved.pth"
    shutil.copy(trained[0] / "checkpoint.pth", saved)
    words = few_shot(images, tmp_path / "more", folds=0, epochs=2, model=None, finetune=None, resume=saved)
    with pytest.raises(UserError, match="2 epochs and 2 are asked for: the run is finished"):  # not: another recipe
        main(words)
    assert "--model demo_vit --input-size 35 --pixels data-set" in capsys.readouterr().out


def test_other_pixels_than_those_it_was_chosen_by_are_said(images, tmp_path, capsys):
    (tmp_path / "s.json").write_text("[0, 1, 22, 23]")
    pixels = {
        "size": 28,
        "mean": [0.5] * 3,
        "std": [0.353] * 3,
        "interpolation": "bicubic",
        "crop": 1.0,
        "squash": True,
    }
    told = {"features": {"provenance": {"preprocess": pixels}}}
    (tmp_path / "s.provenance.json").write_text(json.dumps(told))
    flags = {"subset_ids": tmp_path / "s.json", "finetune": images / "sighted.pth"} | DEMO
    main(command(images, mode="linear", epochs=None, lr=None, warmup_epochs=None, batch_size=4, **flags))
    differing = (
        capsys.readouterr().out.split("s.json was chosen by features of other pixels (")[1].split("): --pixels")[0]
    )
    assert [part.split()[0] for part in differing.split("; ")] == ["mean", "std"]
    assert differing.startswith("mean [0.5, 0.5, 0.5] there, [0.485")


def test_weights_that_do_not_fit_are_told_before_any_clock_or_part(images, tmp_path, monkeypatch):
    torch.save({"state_dict": {"stem.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    for name in ("settle", "ask", "decide"):
        monkeypatch.setattr(f"deit.trainer.{name}", lambda *_: pytest.fail("work has begun"))
    for mode in ("lp-ft", "auto"):
        with pytest.raises(UserError, match=r"other\.pth do"):
            main(few_shot(images, tmp_path / "out", mode=mode, finetune=tmp_path / "other.pth", amp="measured"))


def test_a_damaged_checkpoint_is_told_before_a_model_is_made(trained, images, tmp_path, capsys):
    whole, cut = trained[0] / "checkpoint.pth", tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for words in (["--eval"], ["--output_dir", str(tmp_path / "out")]):
        with pytest.raises(
            UserError, match=r"weights .*cut\.pth are truncated or no torch file \([^.]*\): fetch them ag"
        ):
            main([*words, "--resume", str(cut), "--data-set", "FOLDER", "--data-path", str(images)])
    assert "Creating model" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_names_its_classes_is_evaluated_without_training_images(trained, images, tmp_path, capsys):
    out, accuracy = trained
    shutil.copytree(images / "val", tmp_path / "val")
    assert f"* Acc@1 {accuracy:.3f}" in evaluate(capsys, tmp_path, out)
    words = ["--eval", "--resume", str(out / "checkpoint.pth"), "--data-set", "FOLDER", "--val-path"]
    main([*words, str(tmp_path / "val")])
    assert f"* Acc@1 {accuracy:.3f}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "val" / "blue")  # what is left counts as the checkpoint does, which has blue first
    rest = tmp_path / "rest"
    for colour in ("green", "red"):
        shutil.copytree(images / "train" / colour, rest / "train" / colour)
    shutil.copytree(tmp_path / "val", rest / "val")
    assert evaluate(capsys, tmp_path, out).split("* Acc@1")[1] == evaluate(capsys, rest, out).split("* Acc@1")[1]
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rot")
    with pytest.raises(UserError, match=r"trained for other classes \(only it has 'blue', 'red'; it lacks 'rot'\)"):
        main([*words, str(tmp_path / "val")])
    with pytest.raises(UserError, match=r"train does not exist: --data-path must hold"):  # nobody knows the classes
        main(["--eval", "--finetune", str(images / "sighted.pth"), *words[3:], str(tmp_path / "val")])


def test_a_list_of_evaluation_images_starts_from_the_data_path(trained, images, tmp_path, capsys):
    out, accuracy = trained
    shutil.copytree(images / "val", tmp_path / "data" / "val")
    names = [path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.png")]
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    (tmp_path / "l.csv").write_text("".join(f"{name},{name.split('/')[1]}\n" for name in names))
    lists = ["--val-path", str(tmp_path / "list.txt"), "--val-labels", str(tmp_path / "l.csv")]
    assert f"* Acc@1 {accuracy:.3f}" in evaluate(capsys, tmp_path / "data", out, *lists)
