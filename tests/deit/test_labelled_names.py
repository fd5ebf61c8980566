"""Names and class words of any kind come through training, report and predictions."""

import shutil

import pytest

from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from data_selection.common.listed_names import quoted, unquoted
from deit.labelled.reporting import NOTHING
from deit.labelled.training import predict_images
from tests.support.labelled_runs import finetuning_wins, rows, train, values
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")


def test_any_name_and_any_class_word_come_through(folder, tmp_path, monkeypatch):
    pool, names = tmp_path / "pool", ["bytes\udcff.png", "two\nlines.png", '"<script>alert(1)<.png', " spaces .png"]
    names += [f"{i}.png" for i in range(16)]
    pool.mkdir()
    for i, name in enumerate(names):
        shutil.copyfile(folder / f"{i:03}.png", pool / name)
    words = ['<script>window.hacked = 1</script> "quoted", a', "two\nlines", "y" * 300]
    monkeypatch.setattr("deit.job.MOST", 1)
    monkeypatch.setattr("deit.job.FEWEST", 1)
    monkeypatch.setattr("deit.crossval.compare", finetuning_wins)
    run = tmp_path / "run"
    done = choose_images(pool, 20, run, method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(run / "annotate.csv", {quoted(name): words[i % 3] for i, name in enumerate(sorted(done.files))})
    train(run, mode="lp-ft")
    assert values(run)["judged_by"].startswith("by the finetuned model")
    assert values(run)["accuracy"]["right"] == 19
    assert {part["class"] for part in values(run)["classes"]} == {*map(quoted, words)}
    page = (run / "report.html").read_text()
    assert "<script>window" not in page
    assert "<script>alert" not in page
    found = predict_images(run, pool, device="cpu", log=lambda _: None)
    assert {*found.names} == {*names}
    assert {unquoted(row[1]) for row in rows(run / "predictions.csv")} <= {*words}


def test_labels_that_judge_nothing_are_told(folder, tmp_path):
    run = tmp_path / "run"
    done = choose_images(folder, 4, run, method="random", model="demo_vit", device="cpu", num_workers=0)
    write_answers(run / "annotate.csv", dict(zip(done.files, ("ant", "bee", "cow", "elk"), strict=True)))
    _, said = train(run)
    assert f"by cross-validation on 4 labels, which says nothing: {NOTHING}; wrote model.pth" in said
    assert f"The accuracy on this page says nothing: {NOTHING}." in (run / "report.html").read_text()
    write_answers(run / "annotate.csv", dict(zip(done.files, ("ant", "bee", "cow", "cow"), strict=True)))
    predict_images(run, folder, device="cpu", log=lambda _: None)
    told = "predictions.csv in it is by an earlier model: scripts/predict.py asks this one"
    _, said = train(run, seed=1)
    assert "says nothing" not in said + (run / "report.html").read_text()
    assert told in said
    predict_images(run, folder, device="cpu", log=lambda _: None)
    _, said = train(run, seed=1)  # the same once more, which changes no model
    assert told not in said


def test_flags_are_checked_before_labels_are_read(tmp_path):
    for words, message in (({"minutes": 0}, "--minutes 0.0 must be above 0"), ({"seed": -1}, "--seed -1 is below 0")):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "nowhere", **words)
