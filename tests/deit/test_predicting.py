"""A checkpoint says what it was taught, of any folder of images."""

import csv
import errno
import io
import shutil
import tempfile

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.common.errors import run as end_of
from data_selection.common.listed_names import unquoted
from data_selection.images.pools import Pool
from deit.labelled.commands import main_predict
from deit.labelled.training import predict_images
from deit.main import main
from deit.predicting import predict
from deit.runs.predictions import Predictions, of_pool
from tests.support.flag_runs import words
from tests.support.trainer_runs import make_images

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(images, output folder) of a small run."""
    folder = tmp_path_factory.mktemp("predict")
    images = make_images(folder / "images")
    flags = {
        "data_set": "FOLDER", "data_path": images, "mode": "linear", "finetune": "none", "model": "test_vit",
        "input_size": 32, "output_dir": folder / "run", "device": "cpu", "seed": 3,
    }  # fmt: skip
    main(words(flags))
    return images, folder / "run"


def test_predictions_are_the_evaluations(run, capsys):
    images, folder = run
    checkpoint = folder / "checkpoint.pth"
    found = predict(checkpoint, images / "val", device="cpu", log=lambda _: None)
    assert found.classes == ("class0", "class1")
    labels = torch.tensor([found.classes.index(name.split("/")[0]) for name in found.names])
    right = 100 * (found.probabilities.argmax(1) == labels).double().mean().item()
    capsys.readouterr()
    main(words({"data_set": "FOLDER", "data_path": images, "eval": True, "resume": checkpoint, "device": "cpu"}))
    assert f"* Acc@1 {right:.3f}" in capsys.readouterr().out
    assert found.probabilities.sum(1) == pytest.approx(torch.ones(len(labels)))
    some = predict(checkpoint, images / "val", device="cpu", ids=[3, 1], log=lambda _: None)
    assert some.names == (found.names[3], found.names[1])
    torch.testing.assert_close(some.probabilities, found.probabilities[[3, 1]])
    cool = predict(checkpoint, images / "val", device="cpu", temperature=0.5, log=lambda _: None)
    sharp = found.probabilities**2
    torch.testing.assert_close(cool.probabilities, sharp / sharp.sum(1, keepdim=True))


def test_one_image_is_asked_alone(run, tmp_path):
    images, folder = run
    every = predict(folder / "checkpoint.pth", images / "val", device="cpu", log=lambda _: None)
    alone = shutil.copy(images / "val" / every.names[2], tmp_path / "alone.PNG")
    found = predict(folder / "checkpoint.pth", alone, device="cpu", log=lambda _: None)
    assert found.names == ("alone.PNG",)
    torch.testing.assert_close(found.probabilities, every.probabilities[2:3])


def test_images_of_endings_that_are_not_read_are_told(run, tmp_path, monkeypatch):
    images, folder = run
    pool, said = shutil.copytree(images / "val", tmp_path / "pool"), []
    monkeypatch.setattr("data_selection.images.folders.readable", lambda: (".png",))
    for name in ("a.HEIC", "b.heic", "notes.txt"):
        (pool / name).write_bytes(b"")
    predict(folder / "checkpoint.pth", pool, device="cpu", log=said.append)
    assert said[-1] == "warning: left out of the asked images: 2 .heic, not read by the installed Pillow"


@pytest.mark.parametrize("at_a_time", [256, 2])
def test_images_that_cannot_be_read_are_told_and_left_out(run, tmp_path, monkeypatch, at_a_time):
    images, folder = run
    monkeypatch.setattr("deit.predicting.BATCH", at_a_time)
    pool, said = shutil.copytree(images / "val", tmp_path / "pool"), []
    before = predict(folder / "checkpoint.pth", pool, device="cpu", log=lambda _: None)
    first, _ = lost = (before.names[0], before.names[-1])
    for name in lost:
        (pool / name).write_bytes(b"no image")
    found = predict(folder / "checkpoint.pth", pool, device="cpu", log=said.append)
    assert (found.names, found.unread) == (before.names[1:-1], lost)
    torch.testing.assert_close(found.probabilities, before.probabilities[1:-1])
    assert f"2 of {len(before.names)} images are left out: " in said[-1]
    assert f"{first} cannot be read (UnidentifiedImageError" in said[-1]
    assert "\n" not in said[-1]
    with pytest.raises(UserError, match=r"none of the 2 images of .*pool can be read, first image .*"):
        predict(folder / "checkpoint.pth", pool, device="cpu", ids=[0, len(before.names) - 1], log=lambda _: None)


def test_the_function_and_the_command_predict_the_same(run, tmp_path, capsys):
    images, folder = run
    pool = shutil.copytree(images / "val", tmp_path / "pool")
    (pool / "lost.png").write_bytes(b"no image")
    found = predict_images(folder / "checkpoint.pth", pool, tmp_path / "a.csv", device="cpu")
    of_function = capsys.readouterr().out.splitlines()[-1]
    words = [str(folder / "checkpoint.pth"), str(pool), "--out", str(tmp_path / "b.csv"), "--device", "cpu"]
    assert end_of(main_predict, words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == of_function.replace("a.csv", "b.csv")
    assert of_function.endswith(f"a.csv: {len(found.names)} images, of 2 classes; 1 that cannot be read have no label, "
                                "and come last")  # fmt: skip
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "a.csv").read_text() == found.table()
    assert found.table().splitlines()[-1] == "lost.png,,,,"


def test_a_folder_that_cannot_be_written_is_told_before_work(run, tmp_path, monkeypatch, capsys):
    images, folder = run

    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied", "some temporary name")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr("deit.labelled.training.predict", lambda *_, **__: pytest.fail("work has begun"))
    words = [str(folder / "checkpoint.pth"), str(images / "val"), "--out", str(tmp_path / "a.csv")]
    assert end_of(main_predict, words) == 2
    assert capsys.readouterr().err == f"error: Permission denied: {tmp_path / 'a.csv'}\n"
    assert end_of(main_predict, [str(tmp_path / "none"), str(images / "val")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'none'} does not exist: name a folder of scripts/choose_images.py, or a model.pth of one\n"
    )


def test_the_temperature_of_the_run_is_used_unless_another_is_given(run, tmp_path):
    images, folder = run
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    state["args"]["temperature"] = 0.5
    torch.save(state, tmp_path / "cool.pth")
    found, own, other = (
        predict(tmp_path / "cool.pth" if cool else folder / "checkpoint.pth", images / "val", device="cpu",
                temperature=temperature, log=lambda _: None).probabilities
        for cool, temperature in ((True, None), (False, None), (True, 1.0))
    )  # fmt: skip
    sharp = own**2
    torch.testing.assert_close(found, sharp / sharp.sum(1, keepdim=True))
    torch.testing.assert_close(other, own)


def test_a_pool_without_names_is_told_by_numbers():
    found = of_pool(Pool(arrays=np.zeros((2, 4, 4), np.uint8)), torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]))
    assert (found.names, found.classes) == (("0", "1"), ("0", "1", "2"))


def test_the_table_keeps_names_and_order():
    table = Predictions(('a,"b".png', "é.png"), torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.1, 0.4]]), ("x", "y", "z"))
    rows = list(csv.reader(io.StringIO(table.table())))
    assert rows[0] == ["file", "label", "confidence", "second", "second_confidence"]
    assert rows[1:] == [['a,"b".png', "y", "0.7500", "x", "0.2500"], ["é.png", "x", "0.5000", "z", "0.4000"]]


def test_names_of_images_that_were_not_read_come_back_too(tmp_path):
    names = ("bytes\udcff.png", '"quotes.png"')
    Predictions(("a.png",), torch.tensor([[0.25, 0.75]]), ("x", "y"), unread=names).write(tmp_path / "p.csv")
    *_, first, second = csv.reader(io.StringIO((tmp_path / "p.csv").read_text(encoding="utf-8")))
    assert (unquoted(first[0]), unquoted(second[0])) == names


def test_weights_alone_are_refused(run, tmp_path):
    images, folder = run
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    torch.save(state["model"], tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not say what its classes are called"):
        predict(tmp_path / "weights.pth", images / "val", device="cpu")
    (tmp_path / "cut.pth").write_bytes((folder / "checkpoint.pth").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.pth .*(truncated|damaged|fetch it again|not a checkpoint)"):
        predict(tmp_path / "cut.pth", images / "val", device="cpu")
    with pytest.raises(UserError, match=r"nowhere does not exist: give a folder of images"):
        predict(folder / "checkpoint.pth", tmp_path / "nowhere", device="cpu")
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        predict(tmp_path / "none.pth", images / "val", device="cpu")


def test_predictions_of_other_images_are_kept_under_another_name(run, tmp_path):
    images, trained = run
    said, place = [], tmp_path / "run"
    place.mkdir()
    (place / "run.json").write_text('{"version": 1, "source": "s", "features": "f"}')
    model = shutil.copyfile(trained / "checkpoint.pth", place / "model.pth")
    pool = shutil.copytree(images / "val", tmp_path / "pool")

    def ask(asked, checkpoint=model):
        predict_images(checkpoint, asked, device="cpu", log=said.append)
        return (checkpoint.parent / "predictions.csv").read_text()

    every = ask(pool)
    first = every.splitlines()[1].split(",")[0]
    count = len(every.splitlines()) - 1
    assert ask(pool) == every
    shutil.copyfile(pool / first, pool / "more.png")
    more = ask(pool)  # of a folder that has grown
    assert not [line for line in said if "are in predictions_" in line]
    alone = ask(pool / first)
    assert f"the predictions of {count + 1} images of {pool} are in predictions_1.csv now" in said
    assert (place / "predictions_1.csv").read_text() == more
    assert len(alone.splitlines()) == 2
    shutil.copytree(pool, tmp_path / "other")
    ask(tmp_path / "other" / first)  # another image of that name
    assert (place / "predictions_2.csv").read_text() == alone
    bare = shutil.copyfile(model, tmp_path / "checkpoint.pth")  # of deit/main.py: no record of places is beside it
    ask(pool, bare)
    ask(pool / first, bare)
    assert (tmp_path / "predictions_1.csv").read_text() == more


def test_predictions_whose_command_was_killed_when_they_were_written_are_kept_too(run, tmp_path, monkeypatch):
    images, trained = run
    place = tmp_path / "run"
    place.mkdir()
    (place / "run.json").write_text('{"version": 1, "source": "s", "features": "f"}')
    shutil.copyfile(trained / "checkpoint.pth", place / "model.pth")
    one, other = (shutil.copytree(images / "val", tmp_path / name) for name in ("one", "other"))
    predict_images(place, one, device="cpu", log=list)
    write = Predictions.write

    def killed(self, path):
        write(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Predictions, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_images(place, other, device="cpu", log=list)
    (place / "predictions.csv").write_text((place / "predictions.csv").read_text() + "\n")  # to know it by
    predict_images(place, one, device="cpu", log=list)
    assert (place / "predictions_2.csv").read_text().endswith("\n\n")
