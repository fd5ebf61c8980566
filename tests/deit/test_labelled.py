"""From a choice's labels to a model, a report and predictions: once, again, after a stop, moved, in rounds."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from data_selection.annotation.run_folder import check_names
from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.judging.smoothed import fit_smoothed
from deit import epochs
from deit.crossval import asked_ids
from deit.labelled import training
from deit.labelled.commands import main_predict, main_train
from deit.labelled.training import predict_images
from tests.support.extraction_cases import COUNT
from tests.support.labelled_runs import finetuning_wins, rows, train, values, values_of, word
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")
LABELLED = 30


@pytest.fixture(scope="module")
def chosen(folder, tmp_path_factory):
    """A run with labels, that no test changes."""
    out = tmp_path_factory.mktemp("labelled") / "run"
    done = choose_images(folder, LABELLED, out, method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(out / "annotate.csv", {name: word(name) for name in done.files})
    return out


@pytest.fixture
def run(chosen, tmp_path):
    return shutil.copytree(chosen, tmp_path / "run", symlinks=True)


def test_labels_become_a_model_a_report_and_predictions(run, folder, monkeypatch, capsys):
    done, said = train(run)
    assert done.model == run / "model.pth"
    assert f"{LABELLED} labelled images of 3 classes" in said
    assert f"by cross-validation on {LABELLED} labels; wrote model.pth, report.html, report.json" in said
    told, names = values(run), [name for name, _ in rows(run / "labels.csv")]
    table = torch.tensor(told["confusion"])
    words = [part["class"] for part in told["classes"]]
    assert words == ["else", "shoe", "top"]
    assert table.sum(1).tolist() == [sum(word(name) == one for name in names) for one in words]
    assert told["accuracy"]["right"] == int(table.diagonal().sum())
    assert done.accuracy == pytest.approx(100 * told["accuracy"]["right"] / LABELLED)
    assert sum(part["count"] for part in told["confused"]) == LABELLED - told["accuracy"]["right"]
    assert told["judged_by"] == (
        "by a head on the frozen backbone, each label judged by a training on 80 % of the labels, without it"
    )
    found = predict_images(run, folder, device="cpu", log=said.splitlines().append)
    assert [row[0] for row in rows(run / "predictions.csv")] == list(found.names)
    assert sum(row[1] == word(row[0]) for row in rows(run / "predictions.csv")) > 0.7 * len(found.names)
    before = (run / "report.json").read_text(), (run / "model.pth").stat().st_ino
    monkeypatch.setattr("deit.trainer.run_epochs", lambda *_: pytest.fail("trained already"))
    capsys.readouterr()
    moved = run.rename(run.parent / "renamed")
    train(moved)
    assert "the run is finished" in capsys.readouterr().out
    assert json.loads(before[0]) == values(moved) | {"title": json.loads(before[0])["title"]}


def test_the_functions_and_the_commands_do_the_same(run, folder, tmp_path):
    other = shutil.copytree(run, tmp_path / "other" / run.name, symlinks=True)
    train(run, seed=3)
    predict_images(run, folder, device="cpu", log=lambda _: None)
    main_train([str(other), "--mode", "linear", "--seed", "3", "--device", "cpu", "--num_workers", "0"])
    main_predict([str(other), str(folder), "--device", "cpu"])
    assert (other / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    one, two = values(run), values(other)
    assert one | {"record": two["record"]} == two
    same = {name for name in one["record"] if one["record"][name] == two["record"][name]}
    assert same >= one["record"].keys() - {"seconds of training", "date"}


def test_the_reports_accuracy_is_that_of_the_head_without_each_fifth(run):
    train(run)
    table = load_features(run / values_of(run)["features"])
    labels = dict(rows(run / "labels.csv"))
    ids = [row for row, name in enumerate(table.names) if name in labels]
    x = np.array(table.features[ids], dtype=np.float64)
    y = np.array([labels[table.names[row]] for row in ids])
    words, right, sure, fifth = np.unique(y), 0, {}, np.empty(len(y), int)
    fifth[np.argsort(y, kind="stable")] = np.arange(len(y)) % 5
    for part in range(5):
        known = x[fifth != part]
        centre = known.mean(0)
        scale = np.linalg.norm(known - centre, axis=1).mean()
        smoothed = [np.where(y[fifth != part] == one, 0.9, 0) + 0.1 / 3 for one in words]  # labels, a tenth elsewhere
        model = LogisticRegression(C=30, tol=1e-8, max_iter=10_000).fit(
            np.tile((known - centre) / scale, (3, 1)), np.repeat(words, len(known)), np.concatenate(smoothed)
        )
        left = (x[fifth == part] - centre) / scale
        right += (model.predict(left) == y[fifth == part]).sum()
        sure |= dict(zip(np.array(table.names)[ids][fifth == part], model.predict_proba(left).max(1), strict=True))
    assert values(run)["accuracy"]["right"] == right
    assert all(one["confidence"] == pytest.approx(sure[one["file"]], abs=1e-4) for one in values(run)["mistakes"])


def test_the_graph_answers_by_what_lies_beside_the_model(run, folder, tmp_path):
    _, said = train(run, mode="smoothed")
    assert "by the pool's graph, each label judged by a training on 80 % of the labels" in values(run)["judged_by"]
    moved = run.rename(tmp_path / "elsewhere")
    found = predict_images(moved, folder, device="cpu", log=said.splitlines().append)
    table, labels = load_features(moved / values_of(moved)["features"]), dict(rows(moved / "labels.csv"))
    ids = [row for row, name in enumerate(table.names) if name in labels]
    numbers = torch.tensor([found.classes.index(labels[table.names[row]]) for row in ids])
    features = torch.from_numpy(np.array(table.features))
    probe = fit_smoothed(features, numbers, ids, classes=3, c=None, correct=None)
    off = (found.probabilities - probe.predict(features)).abs()  # the same images embedded in other batches
    assert off.mean() < 2e-3
    assert off.max() < 0.1
    state = torch.load(moved / "model.pth", weights_only=True)
    state["args"]["temperature"] = 9.0  # of another model, as an older run may have left it
    torch.save(state, moved / "model.pth")
    again = predict_images(moved, folder, device="cpu", log=said.splitlines().append)
    assert torch.equal(again.probabilities, found.probabilities)
    train(moved)
    assert not (moved / "smoothed_pool.npz").exists()  # the head needs no pool


def all_right(job, _features):
    labels = torch.tensor([job.train_pool.label(i) for i in asked_ids(job)])
    return torch.nn.functional.one_hot(labels, job.classes).float()


@pytest.mark.parametrize("whole", [True, False])
def test_auto_asks_the_graph_where_the_features_are_of_this_pool(run, folder, tmp_path, monkeypatch, capsys, whole):
    monkeypatch.setattr("deit.job.MOST", 1)
    monkeypatch.setattr("deit.choosing.smoothed_said", all_right)
    monkeypatch.setattr("deit.choosing.modes_that_fit", lambda *_: ["lp-ft"])
    pool = shutil.copytree(folder, tmp_path / "pool")
    if not whole:
        (pool / "new.png").write_bytes(b"no image")
    _, said = train(run, mode="auto", source=pool, minutes=5)
    count = len(load_features(run / values_of(run)["features"]))
    assert (f"{pool} and the features hold different images: the {count} of both are the pool" in said) != whole
    assert "--mode auto takes smoothed" in capsys.readouterr().out
    assert json.loads(next(run.glob("training/*/result.json")).read_text())["mode"] == "smoothed"
    assert (run / "smoothed_pool.npz").exists()


def test_ctrl_c_loses_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr("deit.job.MOST", 2)
    monkeypatch.setattr("deit.job.FEWEST", 2)
    real = epochs.train_epoch

    def stop(job, learner, data, epoch, tally):
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return real(job, learner, data, epoch, tally)

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "train_epoch", stop)
        patch.setattr("deit.crossval.compare", finetuning_wins)
        with pytest.raises(KeyboardInterrupt):
            train(run, mode="lp-ft")
    assert not (run / "model.pth").exists()
    assert re.search("Ctrl-C: stopped at epoch 1 of 4; .*; the same command continues", capsys.readouterr().out)
    monkeypatch.setattr("deit.crossval.compare", lambda *_: pytest.fail("asked already"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "report", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        capsys.readouterr()
        with pytest.raises(KeyboardInterrupt):
            train(run, mode="lp-ft")
    assert "checkpoint.pth after epoch 1" in capsys.readouterr().out
    train(run, mode="lp-ft")
    assert "its result is in" in capsys.readouterr().out
    assert values(run)["judged_by"].startswith("by the finetuned model, each label judged by a training on 50 %")
    assert values(run)["accuracy"]["right"] == LABELLED - 1


def test_what_is_wrong_is_told_together_before_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "trained", lambda *_: pytest.fail("it has begun"))
    labels = dict(rows(run / "annotate.csv"))
    first, second, *_ = labels
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.png").touch()
    write_answers(run / "annotate.csv", labels | {first: "", second: "topp", "none.png": "top"})
    with pytest.raises(UserError, match=r"1 rows are of no image.*'topp' .*did you mean 'top'.*1 of 30 .*no label"):
        train(run)
    write_answers(run / "annotate.csv", labels | {first: ""})
    with pytest.raises(UserError, match=r"1 of 30 images have no label: .*; --partial goes on"):
        train(run)
    with pytest.raises(UserError, match="of the images in --test, which is missing"):
        train(run, test_labels=tmp_path / "test.csv")
    with pytest.raises(UserError, match=r"lies in no class folder: .* in a CSV with --test-labels FILE"):
        train(run, test=tmp_path / "flat")
    with pytest.raises(UserError, match=r"none\.pth does not exist: check the path$"):
        train(run, partial=True, weights=str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"has no model\.pth yet"):
        predict_images(run, tmp_path)
    with pytest.raises(UserError, match=r"is no folder of scripts/choose_images\.py"):
        train(tmp_path)
    monkeypatch.undo()
    assert len(rows(train(run, partial=True)[0].model.with_name("labels.csv"))) == LABELLED - 1
    with pytest.raises(UserError, match=r"must end in \.csv"):
        predict_images(run, tmp_path, tmp_path / "x.txt")
    before = (run / "annotate.csv").read_bytes()
    with pytest.raises(UserError, match=r"annotate\.csv is there and is no table of file,label,confidence,"):
        predict_images(run, tmp_path, run / "annotate.csv")
    assert (run / "annotate.csv").read_bytes() == before


def test_test_images_are_told_and_decide_nothing(run, folder, tmp_path):
    for i in range(50, COUNT):
        target = tmp_path / "test" / word(f"{i:03}.png") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / f"{i:03}.png", target)
    before, _ = train(run)
    done, _ = train(run, test=tmp_path / "test")
    found = predict_images(run, tmp_path / "test", device="cpu", log=lambda _: None)
    right = sum(row[0].split("/")[0] == row[1] for row in rows(run / "predictions.csv"))
    assert done.test == pytest.approx(100 * right / len(found.names))
    assert values(run)["test"] == {"accuracy": done.test, "count": COUNT - 50, "absent": []}
    assert (before.test, done.accuracy) == (None, before.accuracy)


def test_moved_images_are_found_again_and_those_gone_are_named(run, folder, tmp_path):
    pool = shutil.copytree(folder, tmp_path / "pool")
    record = values_of(run) | {"source": str(pool)}
    record["request"]["method"] = "auto"  # the report names what it came to
    (run / "run.json").write_text(json.dumps(record))
    pool = pool.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"images are not in .*pool any longer: say with --source"):
        train(run)
    pool.chmod(0o555)
    train(run, source=pool)
    assert values(run)["record"]["chosen by"] == json.loads((run / "subset.provenance.json").read_text())["method"]
    pool.chmod(0o755)
    lost = rows(run / "labels.csv")[0][0]
    (pool / lost).unlink()
    with pytest.raises(UserError, match=f"1 of the 30 labelled images are not in .*moved as they were: '{lost}' is"):
        train(run, source=pool)


def test_a_list_of_paths_is_a_source(folder, tmp_path, capsys):
    names = [str(folder / f"{i:03}.png") if i % 2 else f"near/{i:03}.png" for i in range(40)]
    shutil.copytree(folder, tmp_path / "near")
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    done = choose_images(tmp_path / "list.txt", 20, tmp_path / "run", method="random", model="demo_vit", device="cpu",
                         num_workers=0)  # fmt: skip
    write_answers(tmp_path / "run" / "annotate.csv", {name: word(name[-7:]) for name in done.files})
    _, said = train(tmp_path / "run")
    assert "by cross-validation on 20 labels" in said
    assert "none of the images is decoded" in capsys.readouterr().out  # the choice's features serve


def test_weights_and_rounds_are_remembered(folder, weights, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = {"method": "random", "model": "demo_vit", "weights": weights, "device": "cpu", "num_workers": 0}
    for out, labelled in ((one, ()), (two, (one,))):
        done = choose_images(folder, LABELLED, out, labelled=labelled, **words)
        write_answers(out / "annotate.csv", {name: word(name) for name in done.files})
        train(out)
    assert values_of(one)["weights"] == weights
    first, second = (values(out) for out in (one, two))
    assert [part["labels"] for part in second["rounds"]] == [LABELLED, 2 * LABELLED]
    assert second["rounds"][0] == first["rounds"][0]
    assert second["rounds"][1]["accuracy"] == second["accuracy"]["value"]
    assert (first["last_round"], second["last_round"][:39]) == ("", "The last round, from 30 to 60 labels, m")
    assert "<h3>The rounds so far</h3>" in (two / "report.html").read_text()
    assert "<h3>The rounds so far</h3>" not in (one / "report.html").read_text()


def test_images_drawn_at_random_judge_and_every_image_trains(folder, tmp_path):
    done = choose_images(folder, 20, tmp_path / "run", method="kmeans", check=15, model="demo_vit", device="cpu",
                         num_workers=0)  # fmt: skip
    write_answers(tmp_path / "run" / "annotate.csv", {name: word(name) for name in done.files})
    trained, said = train(tmp_path / "run")
    told, drawn = values(tmp_path / "run"), check_names(tmp_path / "run")
    wrong = {card["file"] for part in told["confused"] for card in part["images"]}
    assert len(wrong) == sum(part["count"] for part in told["confused"]) > 0
    assert told["accuracy"] | {"low": 0, "high": 0} == {
        "value": pytest.approx(100 * sum(name not in wrong for name in drawn) / 15), "low": 0, "high": 0, "drawn": 15,
        "right": sum(name not in wrong for name in drawn), "labels": 35,
    }  # fmt: skip
    assert "by cross-validation on 15 labels of images drawn at random; wrote" in said
    state = torch.load(trained.model, weights_only=True)
    assert set(state["args"]["train_names"]) == set(done.files)
    assert told["rounds"][-1]["drawn"] == 15


def test_several_processes_are_refused(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"train_on_labels\.py works in one process, and a launcher started 2"):
        train(run)
    with pytest.raises(UserError, match=r"predict\.py works in one process"):
        predict_images(run, run)
