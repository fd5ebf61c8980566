"""The modes that the pool's graph answers in, that fit the head again."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.embedding.backbones import DEMO_WEIGHTS
from data_selection.images import pools
from data_selection.judging.calibration import at_temperature, calibration_error
from data_selection.judging.smoothed import Choice, fit_smoothed
from deit import choosing, smoothing
from deit import epochs as deit_epochs
from deit.crossval import asked_ids
from deit.main import main
from deit.options import parse
from tests.support.flag_runs import row
from tests.support.trainer_runs import checkpoint, command, few_shot, log_lines, make_colours

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = list(range(0, 60, 2))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of demo images, the features of train/ and of val/, and 30 labelled ones."""
    root, arrays = tmp_path_factory.mktemp("images") / "pets", pools.load_demo()
    for split, source, count in (("train", "train", 60), ("val", "test", 40)):
        for i in range(count):
            path = root / split / f"class{arrays[f'{source}_labels'][i]}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"{source}_images"][i]).save(path)
        main_extract(
            ["--dataset", str(root / split), "--arch", "demo_vit", "--output_dir", str(root / "made"),
             "--num_workers", "0", "--amp", "off", "--device", "cpu"]
        )  # fmt: skip
    (root / "subset.json").write_text(json.dumps(IDS))
    return root


def features(images):
    return images / "made" / "pets_train.npy"


def run(images, output, **flags):
    usual = {
        "recipe": "few-shot", "data_set": "FOLDERSUBSET", "finetune": DEMO_WEIGHTS, "pixels": "model", "amp": "off",
        "num_workers": 0, "input_size": None, "batch_size": 32, "epochs": None, "lr": None, "warmup_epochs": None,
        "mode": "smoothed", "features": features(images), "model": "demo_vit",
    }  # fmt: skip
    main(command(images, output, **usual | flags))
    return json.loads((output / "result.json").read_text())


@pytest.fixture(scope="module")
def smoothed(one_thread, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoothed")
    return folder, run(images, folder)


def test_the_graph_answers_as_the_library_does(images, smoothed):
    folder, result = smoothed
    pool, test = (load_features(images / "made" / f"pets_{split}.npy") for split in ("train", "val"))
    kinds = sorted({name.split("/")[0] for name in pool.names})
    truth, asked = ([kinds.index(name.split("/")[0]) for name in table.names] for table in (pool, test))
    labels = np.array(truth)[IDS]
    probe = fit_smoothed(pool.features, labels, IDS, classes=len(kinds), c=None, correct=None)
    right = probe.predict(test.features).argmax(1) == torch.tensor(asked)
    assert result["last"]["acc1"] == pytest.approx(100 * right.double().mean().item())
    assert result["smoothed"]["reason"] == probe.choice.reason
    held = 100 * (probe.held[int(probe.choice.corrected)].argmax(1) == torch.tensor(labels)).double().mean().item()
    assert result["smoothed"]["held_out_acc1"] == pytest.approx(held)
    said = at_temperature(probe.held[int(probe.choice.corrected)], result["smoothed"]["temperature"])
    error = calibration_error(said, torch.tensor(labels))
    assert result["smoothed"]["held_out_calibration_error"] == pytest.approx(error, abs=1e-3)
    assert result["mode"] == "smoothed"
    assert (images / "made" / "pets_train.neighbours.npz").exists()
    assert len((folder / "pool_predictions.csv").read_text().splitlines()) == 61
    model, average = (torch.load(folder / "checkpoint.pth", weights_only=True)[name] for name in ("model", "model_ema"))
    assert torch.equal(model["head.weight"], average["head.weight"])


def test_its_checkpoint_answers_again(images, smoothed, capsys, tmp_path, monkeypatch):
    folder, result = smoothed
    monkeypatch.setattr("data_selection.judging.smoothed.nearest_neighbours", lambda *_, **__: pytest.fail("kept"))
    again = command(images, eval=True, resume=folder / "checkpoint.pth", recipe="few-shot", finetune=None, lr=None,
                    epochs=None, warmup_epochs=None, model=None, input_size=None)  # fmt: skip
    main(again)
    assert f"Acc@1 {result['last']['acc1']:.3f}" in capsys.readouterr().out
    kept = folder / smoothing.POOL
    kept.rename(tmp_path / "away.npz")
    with pytest.raises(UserError, match=r"smoothed_pool.npz of --mode smoothed cannot be read"):
        main(again)
    kept.write_bytes((tmp_path / "away.npz").read_bytes()[:2000])  # of a copy that was cut short
    with pytest.raises(UserError, match=r"smoothed_pool.npz of --mode smoothed cannot be read"):
        main(again)
    (tmp_path / "away.npz").rename(kept)


def test_test_labels_and_images_enter_nothing_but_the_score(images, smoothed, tmp_path):
    other = tmp_path / "pets"
    other.mkdir()
    (other / "train").symlink_to(images / "train")
    (other / "subset.json").symlink_to(images / "subset.json")
    folders = sorted((images / "val").iterdir())
    for place, folder in enumerate(folders):  # half of the images, in other classes
        (other / "val" / folders[place - 1].name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[: max(1, len(list(folder.iterdir())) // 2)]:
            (other / "val" / folders[place - 1].name / file.name).symlink_to(file)
    run(other, tmp_path / "out", features=features(images))
    one, two = checkpoint(smoothed[0]), checkpoint(tmp_path / "out")
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    with np.load(smoothed[0] / smoothing.POOL) as a, np.load(tmp_path / "out" / smoothing.POOL) as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


@row("distil", False, True)
def test_distil_needs_no_pool(one, other, images, smoothed, tmp_path, capsys):
    assert (one, other) == (False, True)  # the first is what `smoothed` ran with
    result = run(images, tmp_path, distil=True)
    assert not (tmp_path / smoothing.POOL).exists()
    heads = [checkpoint(folder)["model"]["head.weight"] for folder in (smoothed[0], tmp_path)]
    assert torch.equal(*heads)  # the other has that head as well
    assert result["last"]["loss"] != smoothed[1]["last"]["loss"]
    main(command(images, eval=True, resume=tmp_path / "checkpoint.pth", recipe="few-shot", finetune=None, lr=None,
                 epochs=None, warmup_epochs=None, model=None, input_size=None))  # fmt: skip
    assert f"Acc@1 {result['last']['acc1']:.3f}" in capsys.readouterr().out


def test_the_graph_is_judged_on_held_out_labels_too(images, tmp_path):
    graph, model = (
        run(images, tmp_path / str(distil), val_fraction=0.2, distil=distil)["last"] for distil in (None, True)
    )
    assert graph["val_loss"] != model["val_loss"]


def test_a_graph_that_does_not_correct_may_doubt_a_label(images, tmp_path, monkeypatch):
    real = smoothing.fit_graph_probe
    plain = Choice(False, "by hand")
    monkeypatch.setattr(smoothing, "fit_graph_probe", lambda *given: dataclasses.replace(real(*given), choice=plain))
    run(images, tmp_path)
    with (tmp_path / "pool_predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {rows[i]["confidence"] for i in IDS} != {"1.0000"}


def test_a_killed_run_is_made_again(images, smoothed, tmp_path, monkeypatch):
    monkeypatch.setattr(deit_epochs, "conclude", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(images, tmp_path)
    monkeypatch.undo()
    assert run(images, tmp_path, auto_resume=True)["last"] == smoothed[1]["last"]
    assert (tmp_path / smoothing.POOL).exists()
    assert (tmp_path / "pool_predictions.csv").exists()


def test_without_features_there_is_no_graph(images, tmp_path):
    with pytest.raises(UserError, match="--mode smoothed needs the features of every pool image"):
        run(images, tmp_path, features=None)
    with pytest.raises(UserError, match="--distil is for --mode smoothed"):
        parse(["--data-set", "DEMO", "--mode", "linear", "--distil"])
    with pytest.raises(UserError, match="--minutes does nothing in --mode smoothed"):
        parse(["--data-set", "DEMO", "--mode", "smoothed", "--minutes", "3"])
    with pytest.raises(UserError, match="give --folds 2"):
        parse(["--data-set", "DEMO", "--mode", "auto", "--folds", "0"])


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return make_colours(tmp_path_factory.mktemp("colours"))


def test_three_phases_are_lp_ft_and_another_head(colours, tmp_path, monkeypatch):
    both = {"folds": 0, "epochs": 2, "lr": 0.01}
    main(few_shot(colours, tmp_path / "two", mode="lp-ft", **both))
    main(few_shot(colours, tmp_path / "three", mode="three-phase", **both))
    lines = log_lines(tmp_path / "three")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[:2] == log_lines(tmp_path / "two")[:2]
    two, three = (checkpoint(tmp_path / name)["model"] for name in ("two", "three"))
    differing = {name for name in two if not torch.equal(two[name], three[name])}
    assert differing == {"head.weight", "head.bias"}
    monkeypatch.setattr(deit_epochs, "VIEWS", 0)
    main(few_shot(colours, tmp_path / "plain", mode="three-phase", **both))
    plain = checkpoint(tmp_path / "plain")["model"]["head.weight"]
    assert not torch.allclose(plain, three["head.weight"], rtol=1e-3)  # augmented images count


def test_three_phases_go_on_after_a_kill(colours, tmp_path, monkeypatch):
    flags = {"mode": "three-phase", "folds": 0, "epochs": 2, "lr": 0.01}
    main(few_shot(colours, tmp_path / "whole", **flags))
    monkeypatch.setattr(deit_epochs, "fit_light_head", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(few_shot(colours, tmp_path / "killed", **flags))
    monkeypatch.undo()
    main(few_shot(colours, tmp_path / "killed", auto_resume=True, **flags))
    one, two = (checkpoint(tmp_path / name)["model"] for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("best", ["smoothed", "linear", "full", "self-train"])
def test_what_auto_decided_stays(best, images, tmp_path, monkeypatch):
    def said(job, mode):
        labels = torch.tensor([job.train_pool.label(i) for i in asked_ids(job)])
        right = torch.arange(len(labels)) < (len(labels) if mode == best else 5)
        return torch.nn.functional.one_hot(torch.where(right, labels, (labels + 1) % job.classes), job.classes).float()

    monkeypatch.setattr(
        choosing, "answers", lambda job, source, modes: {mode: said(job, mode) for mode in ("linear", *modes)}
    )
    for mode in ("smoothed", "linear"):
        monkeypatch.setattr(choosing, f"{mode}_said", lambda job, features, mode=mode: said(job, mode))
    first = run(images, tmp_path, mode="auto", epochs=1, rounds=1)
    assert first["mode"] == best
    for name in ("answers", "smoothed_said", "linear_said"):
        monkeypatch.setattr(choosing, name, None)
    (tmp_path / "result.json").unlink()
    again = run(images, tmp_path, mode="auto", epochs=1, rounds=1, auto_resume=True)
    assert (again["mode"], again["auto"], again["last"]) == (best, first["auto"], first["last"])
    assert (tmp_path / "cross_validation.csv").exists()
    assert (tmp_path / "earlier_1").exists() == (best == "self-train")  # its word on the pool, made anew
