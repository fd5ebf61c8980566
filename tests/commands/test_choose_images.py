"""From a folder and a budget to everything that it takes to label: once, again, after a stop, moved, and in rounds."""

import csv
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch

import data_selection
from data_selection.commands import choose_images as command
from data_selection.commands import handing_out, run_choose
from data_selection.commands.choose_images import build_parser
from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.images.answers import read_answers
from data_selection.judging import advice
from data_selection.methods.table import METHODS
from tests.support.extraction_cases import COUNT

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = {
    "annotate.csv", "annotate.html", "cvat_manifest.jsonl", "features", "images", "label_studio_config.xml",
    "label_studio_tasks.json", "run.json", "subset.json", "subset.provenance.json", "subset.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def done(folder, weights, tmp_path_factory):
    """A finished run that no test changes."""
    out = tmp_path_factory.mktemp("done") / "run"
    found = data_selection.choose_images(
        folder, 12, out, method="random", model="demo_vit", weights=weights, device="cpu", num_workers=0
    )
    return found


def rows(out):
    with (out / "annotate.csv").open(newline="") as handle:
        return list(csv.reader(handle))


def label(out, count, word=lambda name: "odd" if int(name[:3]) % 2 else "even"):
    """Fill the first rows of annotate.csv."""
    header, *body = rows(out)
    with (out / "annotate.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [header, *([name, word(name) if i < count else ""] for i, (name, _) in enumerate(body))]
        )


def test_everything_is_there(done, folder):
    out = done.folder
    assert {path.name for path in out.iterdir()} == FILES
    assert rows(out) == [["file", "label"], *([name, ""] for name in done.files)]
    assert json.loads((out / "subset.json").read_text()) == done.ids
    assert sorted(done.files) == sorted(path.name for path in (out / "images").iterdir())
    assert all((out / "images" / name).resolve() == (folder / name).resolve() for name in done.files)
    assert all(name in (out / "annotate.html").read_text() for name in done.files)
    assert len(json.loads((out / "label_studio_tasks.json").read_text())) == 12
    assert len((out / "cvat_manifest.jsonl").read_text().splitlines()) == 14
    assert len(list(folder.iterdir())) == COUNT


def test_the_function_and_the_command_choose_the_same(done, choose, tmp_path):
    out = choose(tmp_path / "run")
    for name in ("subset.json", "annotate.csv", "annotate.html", "label_studio_tasks.json", "cvat_manifest.jsonl"):
        assert (out / name).read_text() == (done.folder / name).read_text(), name


def test_the_same_again_keeps_labels_and_anything_else_is_refused(choose, tmp_path, capsys, monkeypatch):
    out = choose(tmp_path / "run")
    label(out, 5)
    before = (out / "annotate.csv").read_bytes()
    monkeypatch.setattr(run_choose, "extract_pool", None)  # nothing is embedded again
    shutil.rmtree(out / "images")
    choose(out, classes="even,odd,none")
    assert (out / "annotate.csv").read_bytes() == before
    assert len(list((out / "images").iterdir())) == 12
    assert "5 of them labelled" in capsys.readouterr().out
    page = (out / "annotate.html").read_text()
    assert '"classes": ["even", "odd", "none"]' in page
    assert page.count('"label": ') == 5
    with pytest.raises(UserError, match=r"budget was 12, now 20\).*another --out"):
        choose(out, budget=20)
    with pytest.raises(UserError, match="seed was 0, now 3"):
        choose(out, seed=3)
    assert (out / "annotate.csv").read_bytes() == before


def test_a_stop_at_any_step_loses_nothing(done, choose, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for module, name in ((run_choose, "choose"), (handing_out, "show"), (handing_out, "annotation_page")):
        with monkeypatch.context() as patch:

            def stop(*_, **__):
                raise KeyboardInterrupt

            patch.setattr(module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                choose(out)
    monkeypatch.setattr(run_choose, "extract_pool", lambda *_: pytest.fail("chosen already"))
    choose(out)
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "subset.json").read_text() == (done.folder / "subset.json").read_text()


def test_a_dry_run_says_what_would_be_and_writes_nothing(choose, tmp_path, capsys):
    choose(tmp_path / "made" / "run", dry_run=True, budget="10%")
    said = capsys.readouterr().out
    assert f"{COUNT} images to embed: " in said
    assert f"7 of {COUNT} chosen by random" in said
    assert "of memory and" in said
    assert not (tmp_path / "made").exists()


def test_a_run_can_be_moved_and_its_pool_be_read_only(choose, folder, tmp_path):
    pool = shutil.copytree(folder, tmp_path / "pool")
    pool.chmod(0o555)
    out = choose(tmp_path / "run", source=pool).rename(tmp_path / "moved")
    choose(out, source=pool)
    assert all(path.is_file() for path in (out / "images").iterdir())
    pool.chmod(0o755)
    shutil.rmtree(pool)
    with pytest.raises(UserError, match="pool"):
        choose(out, source=pool)


@pytest.mark.parametrize("how", ["copy", "none"])
def test_images_are_copied_or_left_where_they_are(choose, folder, tmp_path, how):
    out = choose(tmp_path / "run", images=how)
    assert (out / "images").exists() == (how == "copy")
    page = (out / "annotate.html").read_text()
    assert (folder.as_uri() in page) == (how == "none")
    if how == "copy":
        assert all(path.is_file() and not path.is_symlink() for path in (out / "images").iterdir())
    assert "data:image/png" not in page
    choose(out, images=how, embed=True)
    assert (out / "annotate.html").read_text().count("data:image/png") == 12


@pytest.mark.parametrize(("method", "enough"), [("facility", 10_000), ("random", None)])
def test_the_forecast_knows_how_much_a_method_looks_at(choose, tmp_path, monkeypatch, method, enough):
    real, told = run_choose.foresee, []
    monkeypatch.setattr(run_choose, "foresee", lambda *words: told.append(words[-1]) or real(*words))
    choose(tmp_path / "run", method=method)
    assert told == [enough]


def test_a_round_takes_labels_in_and_embeds_nothing_again(choose, tmp_path, capsys):
    one = choose(tmp_path / "one")
    label(one, 9)
    said = capsys.readouterr().out
    two = choose(tmp_path / "two", labelled=[one], budget=20)
    said = capsys.readouterr().out
    assert "9 images have labels of 2 classes; 3 that were handed out have none" in said
    assert f"0 images to embed ({COUNT} known)" in said
    assert "20 images: " in said
    beside = next((one / "features").glob("*.provenance.json"))
    told = json.loads(beside.read_text())
    beside.write_text(json.dumps(told | {"preprocess": told["preprocess"] | {"background": "#000000"}}))
    choose(tmp_path / "other", labelled=[one], budget=20)
    assert f"{COUNT} images to embed: " in capsys.readouterr().out  # rows of other pixels are not known
    chosen = {name for name, _ in rows(two)[1:]}
    assert not chosen & {name for name, _ in rows(one)[1:]}
    assert "The model believes" in (two / "annotate.html").read_text()
    assert '"belief": "odd"' in (two / "annotate.html").read_text()
    assert '"predictions"' in (two / "label_studio_tasks.json").read_text()
    label(two, 20)
    three = choose(tmp_path / "three", labelled=[two], budget=5)  # the second run holds the first one's labels, too
    assert "29 images have labels" in capsys.readouterr().out
    assert not {name for name, _ in rows(three)[1:]} & chosen
    label(one, 10)
    with pytest.raises(UserError, match=r"labels were others: \d+\.png \(none -> \w+\)\): choose"):
        choose(two, labelled=[one], budget=20)


def test_a_round_asks_a_model_of_the_labels_unless_told_not_to(choose, tmp_path, capsys):
    one = choose(tmp_path / "one", budget=30)
    with pytest.raises(UserError, match="--strategy half asks a model of labels of two classes"):
        choose(tmp_path / "none", strategy="half")
    with pytest.raises(UserError, match=r"'halv' is none of auto, label-free, .*\(did you mean half"):
        choose(tmp_path / "none", strategy="halv")
    label(one, 30)
    chosen = {}
    for strategy in ("auto", "label-free", "margin"):
        out = choose(tmp_path / strategy, labelled=[one], strategy=strategy, budget=8)
        chosen[strategy] = json.loads((out / "subset.provenance.json").read_text())["method"]
    assert chosen == {"auto": "wvoptimal", "label-free": "random", "margin": "margin"}
    said = capsys.readouterr().out
    assert "chosen by wvoptimal, which asks a model of the labels so far: 19 labels a class" in said
    beliefs = json.loads((tmp_path / "margin" / "beliefs.json").read_text())["probabilities"]
    everything = handing_out.believe(  # of the whole pool, by the same model
        tmp_path / "all.json", load_features(one / "features" / "shoes_train.npy"),
        dict(rows(one)[1:]), list(range(COUNT)), World(0, 1, torch.device("cpu")),
    )  # fmt: skip
    margins = abs(everything.probabilities[:, 0] - everything.probabilities[:, 1])
    free = np.delete(margins, json.loads((one / "subset.json").read_text()))
    assert sorted(abs(a - b) for a, b in beliefs) == pytest.approx(np.sort(free)[:8].tolist(), abs=1e-3)


@pytest.mark.parametrize(("core", "method"), [(12, "facility"), (11, "voptimal")])
def test_the_method_can_be_left_to_the_pool(choose, tmp_path, capsys, monkeypatch, core, method):
    for module in (advice, run_choose):
        monkeypatch.setattr(module, "CORE", core)
    out = choose(tmp_path / "out", method="auto")
    made = json.loads((out / "subset.provenance.json").read_text())
    assert (made["method"], made["config"]) == (method, dataclasses.asdict(METHODS[method].config()))
    assert f"--method auto takes {method}: 12 labels of {COUNT} images" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["request"]["method"] == "auto"
    choose(tmp_path / "out", method="auto")  # the same again
    direct = choose(tmp_path / "direct", method=method)
    assert (direct / "subset.json").read_text() == (out / "subset.json").read_text()
    label(out, 12)
    again = choose(tmp_path / "again", method="auto", strategy="label-free", labelled=[out], budget=3)
    assert json.loads((again / "subset.provenance.json").read_text())["method"] == "voptimal"


def test_labels_that_contradict_each_other_are_told_together(choose, tmp_path):
    (tmp_path / "a.csv").write_text("file,label\n000.png,cat\n001.png,dog\nnone.png,dog\n")
    (tmp_path / "b.csv").write_text("file,label\n000.png,dog\n")
    with pytest.raises(UserError, match=r"1 rows are of no image.*; 1 images have two labels"):
        choose(tmp_path / "run", labelled=[tmp_path / "a.csv", tmp_path / "b.csv"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"source": "DEMO"}, "data set"),
        ({"source": "nowhere"}, "nowhere"),
        ({"budget": "many"}, "no number of images"),
        ({"budget": COUNT + 1}, rf"outside 1\.\.{COUNT}"),
        ({"budget": "0.1%"}, "budget of 0"),
        ({"labelled": ["nowhere"]}, "nowhere"),
    ],
)
def test_mistakes_end_before_the_work(choose, tmp_path, flags, says):
    with pytest.raises(UserError, match=says):
        choose(tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


def test_somebodys_own_files_and_the_pool_itself_are_left_alone(choose, folder, tmp_path):
    (tmp_path / "annotate.csv").write_text("mine")
    with pytest.raises(UserError, match=r"annotate\.csv, which is not from this command"):
        choose(tmp_path)
    with pytest.raises(UserError, match="lies in the folder of images"):
        choose(folder / "run")
    assert len(list(folder.iterdir())) == COUNT


def test_an_image_that_cannot_be_read_is_left_out_and_never_chosen(choose, folder, tmp_path, capsys):
    pool = shutil.copytree(folder, tmp_path / "pool")
    (pool / "000.png").write_bytes(b"no image")
    out = choose(tmp_path / "run", source=pool, budget=COUNT - 1)
    assert "000.png" in capsys.readouterr().out
    assert len(rows(out)) == COUNT
    assert "000.png" not in {name for name, _ in rows(out)}


def test_any_file_name_comes_through_and_copies_are_not_chosen_twice(choose, folder, tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    names = [b"bytes\xff.png", b"two\nlines.png", b" spaces .png", b'"quotes".png', b"plain.png"]
    for i, name in enumerate(names):
        shutil.copyfile(folder / f"{i:03}.png", os.fsencode(pool) + b"/" + name)
    shutil.copyfile(folder / "000.png", pool / "zz.png")
    out = choose(tmp_path / "run", source=pool, budget=5)
    known = read_answers([out / "annotate.csv"], [os.fsdecode(name) for name in names])
    assert not known.faults
    label(out, 5, lambda name: "seen")
    with pytest.raises(UserError, match=r"of 6 images 5 are labelled .* and 1 are exact copies"):  # each is found again
        choose(tmp_path / "next", source=pool, budget=1, labelled=[out])
    assert len(list((out / "images").iterdir())) == 5


def test_every_flag_arrives(choose, folder, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(run_choose, "choose_images", lambda *places, **words: asked.update(words, places=places))
    assert command.build_parser is build_parser
    other = {"budget": "3%", "method": "fps", "strategy": "half", "model": "vit_tiny", "weights": "w.pth", "seed": 5,
             "allow_http": True, "check": 20, "labelled": ["a", "b"], "classes": "x,y", "images": "copy", "embed": True,
             "dry_run": True, "partial": True, "num_workers": 3, "device": "cpu"}  # fmt: skip
    choose(tmp_path, **other)
    assert asked.pop("places") == (str(folder), "3%", tmp_path)
    assert asked == {name: value for name, value in other.items() if name != "budget"}
    assert {action.dest for action in build_parser()._actions} - {"help", "local_rank"} == {*other, "source", "out"}


def test_several_processes_are_refused(choose, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"choose_images\.py works in one process.*features can be made by several"):
        choose(tmp_path / "run")
    assert not (tmp_path / "run").exists()
