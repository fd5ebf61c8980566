"""Labels that are trained on again, with other test images, weights or places than before."""

import json
import shutil

import pytest
import torch

from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from data_selection.embedding.backbones import build_model
from deit.labelled.training import place, predict_images
from deit.runs.saving import NEWEST
from tests.support.extraction_cases import COUNT
from tests.support.labelled_runs import rows, train, values, word
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")


CLASSES = ["else", "shoe", "top"]


@pytest.fixture(scope="module")
def chosen(folder, tmp_path_factory):
    """A run with labels, that no test changes."""
    out = tmp_path_factory.mktemp("labelled") / "run"
    done = choose_images(folder, 30, out, method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(out / "annotate.csv", {name: word(name) for name in done.files})
    return out


@pytest.fixture
def run(chosen, tmp_path):
    return shutil.copytree(chosen, tmp_path / "run", symlinks=True)


@pytest.fixture
def judging(folder, tmp_path):
    for i in range(50, COUNT):
        target = tmp_path / "test" / word(f"{i:03}.png") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / f"{i:03}.png", target)
    return tmp_path / "test"


def accuracy_on(run, images):
    predict_images(run, images, device="cpu", log=lambda _: None)
    found = rows(run / "predictions.csv")
    return {"accuracy": pytest.approx(100 * sum(name.split("/")[0] == said for name, said, *_ in found) / len(found)),
            "count": len(found), "absent": []}  # fmt: skip


def test_test_images_are_asked_by_the_model_that_is_there(run, judging, folder, monkeypatch):
    """Those that come later, are named otherwise, or have changed since; on another device, too."""
    done, said = train(run)
    model = (run / "model.pth").stat().st_ino
    assert (done.test, values(run)["test"]) == (None, None)
    monkeypatch.setattr("deit.trainer.run_epochs", lambda *_: pytest.fail("trained already"))
    shutil.copyfile(folder / rows(run / "labels.csv")[0][0], judging / "shoe/copy.png")
    asks, copies = "asking the trained model about", " of 21 evaluation images are copies of images to train on"
    _, said = train(run, test=judging, device="auto")
    assert (asks in said, copies in said) == (True, True)
    before = values(run)["test"]
    assert before == accuracy_on(run, judging)
    monkeypatch.chdir(judging.parent)
    _, said = train(run, test=judging.name)
    assert (asks in said, values(run)["test"]) == (False, before)
    for path in sorted(judging.glob("*/*.png"))[::2]:
        path.unlink()
    _, said = train(run, test=judging)
    assert asks in said
    assert values(run)["test"] == accuracy_on(run, judging) != before
    now = values(run)["test"]
    assert f", {now['accuracy']:.1f} % on {now['count']} test images; wrote" in said.splitlines()[-1]
    done, said = train(run)
    assert (done.test, values(run)["test"], "test images" in said) == (None, None, False)
    assert (run / "model.pth").stat().st_ino == model
    assert len(list(run.glob("training/*/result.json"))) == 1
    _, said = train(run, test=judging)
    assert asks not in said
    checkpoint = next(run.glob(f"training/*/{NEWEST}"))
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["head.bias"][CLASSES.index("top")] += 100  # another model in the place of the one that was asked
    torch.save(state, checkpoint)
    _, said = train(run, test=judging)
    assert asks in said
    assert values(run)["test"] == accuracy_on(run, judging)


def test_a_class_that_only_a_test_image_has_is_a_mistake_and_changes_no_model(run, judging, folder, capsys):
    plain = torch.load(train(run, test=judging)[0].model, weights_only=True)["model"]
    before, count = values(run)["test"], len(list(judging.glob("*/*.png")))
    (judging / "zebra").mkdir()
    shutil.copyfile(folder / "050.png", judging / "zebra/1.png")
    capsys.readouterr()
    done, _ = train(run, test=judging)
    told = f"warning: 1 of {count + 1} evaluation images are of classes that no label to train on has, and count as mis"
    assert f"{told}takes: zebra" in capsys.readouterr().out
    assert done.test == pytest.approx(before["accuracy"] * count / (count + 1))
    assert json.loads(next(run.glob("training/*/result.json")).read_text())["class_names"] == CLASSES
    now = torch.load(done.model, weights_only=True)["model"]
    assert all(torch.equal(plain[name], now[name]) for name in now)


def test_test_images_without_a_label_are_told_before_training(run, judging, tmp_path):
    names = sorted(path.relative_to(judging).as_posix() for path in judging.glob("*/*.png"))
    write_answers(tmp_path / "test.csv", {name: name.split("/")[0] for name in names[1:]})
    with pytest.raises(UserError, match=r"1 of the 20 images to use have no label in .*test\.csv"):
        train(run, test=judging, test_labels=tmp_path / "test.csv")
    assert not list(run.glob("training/*/checkpoint.pth"))


def test_a_class_without_a_test_image_is_told(run, judging):
    shutil.rmtree(judging / "shoe")
    _, said = train(run, test=judging)
    assert "1 of 3 classes without an evaluation image, of which the accuracy says nothing: shoe" in said
    for _ in range(2):  # asked, and kept
        assert values(run)["test"] == accuracy_on(run, judging) | {"absent": ["shoe"]}
        assert "test images, of which none is of: shoe." in (run / "report.html").read_text()
        train(run, test=judging)


def test_a_label_of_a_test_image_that_was_mended_counts(run, judging, tmp_path):
    table = tmp_path / "test.csv"
    names = sorted(path.relative_to(judging).as_posix() for path in judging.glob("*/*.png"))
    told = []
    for wrong in (len(names), 0):
        after = dict(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
        labels = {name: after[name.split("/")[0]] if i < wrong else name.split("/")[0] for i, name in enumerate(names)}
        write_answers(table, labels)
        train(run, test=judging, test_labels=table)
        told.append(values(run)["test"])
    assert told[1] == accuracy_on(run, judging)
    assert told[0] != told[1]


def test_weights_that_changed_in_their_file_are_another_training(run, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(build_model("demo_vit").state_dict(), weights)
    train(run, weights=str(weights))
    before = (run / "model.pth").read_bytes()
    torch.save(build_model("demo_vit").state_dict(), weights)
    train(run, weights=str(weights))
    assert (run / "model.pth").read_bytes() != before


def test_a_head_on_other_weights_is_judged_on_their_features(run, tmp_path):
    """The accuracy of the features' own backbone says nothing of it."""
    own, _ = train(run)
    blind = {name: torch.zeros_like(value) for name, value in build_model("demo_vit").state_dict().items()}
    torch.save(blind, tmp_path / "blind.pth")
    done, _ = train(run, weights=str(tmp_path / "blind.pth"))
    labels = [label for _, label in rows(run / "labels.csv")]
    assert own.accuracy > 60
    assert done.accuracy <= 100 * max(map(labels.count, labels)) / len(labels)
    assert values(run)["record"]["weights"] == "blind.pth"


def test_a_model_finetuned_from_other_weights_is_not_judged_unsaid_by_those_of_the_features(run, tmp_path):
    """Where there was no time to ask it."""
    torch.save(build_model("demo_vit").state_dict(), tmp_path / "other.pth")
    train(run, mode="lp-ft", minutes=1e-6, weights=str(tmp_path / "other.pth"))
    assert "a head on the frozen backbone of the features, which is not the one trained" in values(run)["judged_by"]


def test_a_model_of_other_labels_is_told_beside_predictions(run, judging):
    train(run, seed=1)
    train(run, seed=2)
    predict_images(run, judging, device="cpu", log=lambda _: None)
    _, said = train(run, seed=2)
    assert "by an earlier model" not in said
    _, said = train(run, seed=1)
    assert "predictions.csv in it is by an earlier model" in said


def test_a_model_that_is_placed_again_is_the_same(tmp_path):
    training, run = tmp_path / "training", tmp_path / "run"
    for folder in (training, run):
        folder.mkdir()
    (training / NEWEST).write_text("1")
    assert [place(training, run), place(training, run)] == [True, False]
    (training / NEWEST).unlink()
    (training / NEWEST).write_text("2")
    assert place(training, run)


def test_the_annotators_table_is_not_replaced(run):
    table = run / "labels.csv"
    given = "file,label,annotator\n" + "".join(f"{name},{label},me\n" for name, label in rows(run / "annotate.csv"))
    table.write_text(given)
    with pytest.raises(UserError, match=r"labels\.csv is what training writes, and would be replaced"):
        train(run, labels=[table])
    assert table.read_text() == given
    train(run)  # its own is
    train(run, labels=[table])


def test_a_list_of_test_images_is_refused(run, tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(UserError, match=r"--test .*list\.txt is a file, and a folder of test images is needed"):
        train(run, test=tmp_path / "list.txt")
    assert json.loads((run / "run.json").read_text())["version"] == 1
