"""Names and class words of any kind come through training, report and predictions."""

import shutil

import pytest

from data_selection.commands.run_choose import choose_images
from data_selection.common.listed_names import quoted, unquoted
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
