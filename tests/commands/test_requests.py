"""What is part of a request, so that another one is not taken for made, and what is free to be chosen."""

import contextlib
import json
import shutil

import pytest

from data_selection.annotation.run_folder import read_run
from data_selection.commands import run_choose
from data_selection.commands.earlier_rounds import backbone_of
from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from deit.labelled import runs
from deit.labelled.runs import open_run, training_folder
from deit.recipes import recipe_values
from tests.commands.test_choose_images import label, rows
from tests.support.extraction_cases import COUNT
from tests.support.pages import page_data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_waits_for_labels_is_part_of_the_request(choose, tmp_path):
    one, other = choose(tmp_path / "one"), choose(tmp_path / "other", seed=1)
    label(one, 9)
    choose(tmp_path / "two", labelled=[one], budget=5)
    with pytest.raises(UserError, match="labelled was"):  # no new label, and 12 images more that are not chosen again
        choose(tmp_path / "two", labelled=[one, other], budget=5)


def test_what_waits_for_labels_is_not_free(choose, tmp_path):
    one = choose(tmp_path / "one")
    label(one, 9)
    with pytest.raises(UserError, match=rf"outside 1\.\.{COUNT - 12}, the images without a label"):
        choose(tmp_path / "two", labelled=[one], budget=COUNT - 11)
    assert not (tmp_path / "two").exists()


def test_a_second_start_waits_until_the_first_has_ended(choose, tmp_path, monkeypatch):
    """So that it finds what that has chosen, and a folder holds one choice."""
    inside, held = [], []

    @contextlib.contextmanager
    def one_at_a_time(path, say):
        inside.append(path)
        yield
        inside.pop()

    def watched(name):
        real = getattr(run_choose, name)
        monkeypatch.setattr(run_choose, name, lambda *words: (held.append((name, list(inside))), real(*words))[1])

    monkeypatch.setattr(run_choose, "one_at_a_time", one_at_a_time)
    for name in ("is_chosen", "output_folder", "hand_out"):
        watched(name)
    choose(tmp_path / "one")
    path = tmp_path / "one" / "run.json"
    assert held == [("output_folder", []), ("is_chosen", [path]), ("output_folder", [path]), ("hand_out", [path])]
    assert inside == []
    held.clear()
    choose(tmp_path / "other", dry_run=True)  # it writes nothing, and waits for nobody
    assert held == [("is_chosen", [])]
    assert not (tmp_path / "other").exists()


def test_the_folder_of_images_is_left_alone_by_any_name(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    for source, out in ((folder, tmp_path / "link" / "run"), (tmp_path / "link", folder / "run")):
        with pytest.raises(UserError, match="lies in the folder of images"):
            run_choose.open_images(source, out)
    assert len(run_choose.open_images(folder, tmp_path / "run")) == COUNT


def test_auto_looks_by_the_seed(choose, tmp_path, monkeypatch):
    real, seeds = run_choose.advise, []
    monkeypatch.setattr(
        run_choose, "advise", lambda *a, seed=0, **how: seeds.append(seed) or real(*a, seed=seed, **how)
    )
    choose(tmp_path / "out", method="auto", seed=5)
    assert seeds == [5]


def test_class_names_are_remembered(choose, tmp_path):
    out = choose(tmp_path / "run", classes="odd,even,none")
    label(out, 3)
    shown = ["odd", "even", "none"]
    choose(out)  # without a word of them they stay
    assert page_data(out / "annotate.html")["classes"] == read_run(out)["classes"] == shown
    choose(out, classes="even,odd")
    assert page_data(out / "annotate.html")["classes"] == read_run(out)["classes"] == ["even", "odd"]
    first = rows(out)[1][0]
    label(out, 3, lambda name: "od" if name == first else "even")
    with pytest.raises(UserError, match=r"'od' \(1 images\) is not among the classes even, odd: did you mean 'odd'"):
        open_run(out, [], None, partial=True, log=lambda _: None)
    choose(out, classes="even,odd,od")
    assert len(set(open_run(out, [], None, partial=True, log=lambda _: None).answers.labels.values())) == 2


def test_another_pool_or_recipe_is_another_training(choose, tmp_path, folder, monkeypatch):
    moving = shutil.copytree(folder, tmp_path / "images")
    out = choose(tmp_path / "run", source=moving)
    label(out, 12)
    (moving / "069.png").rename(tmp_path / "kept.png")  # not chosen by this seed
    some = open_run(out, [], None, partial=True, log=lambda _: None)
    (tmp_path / "kept.png").rename(moving / "069.png")
    whole = open_run(out, [], None, partial=True, log=lambda _: None)
    assert (some.whole, whole.whole) == (False, True)
    assert training_folder(some, ["--seed", "0"]) != training_folder(whole, ["--seed", "0"])
    assert training_folder(whole, ["--seed", "1"]) != training_folder(whole, ["--seed", "0"])
    before = training_folder(whole, ["--seed", "0"])
    assert training_folder(whole, ["--seed", "0"]) == before
    monkeypatch.setattr(runs, "recipe_values", lambda name: {**recipe_values(name), "lr": 1.0})
    assert training_folder(whole, ["--seed", "0"]) != before


def test_what_cannot_be_meant_is_said_with_what_may_be(choose, tmp_path, folder):
    for flag, words in (("--method", {"method": "activft"}), ("--strategy", {"strategy": "activft"})):
        with pytest.raises(UserError, match=rf"^{flag} 'activft' is none of auto, .*"):
            choose_images(folder, 5, tmp_path / "out", model="demo_vit", device="cpu", **words)
    with pytest.raises(UserError, match=r"'facilty' is none of .* \(did you mean facility\?\)"):
        choose_images(folder, 5, tmp_path / "out", model="demo_vit", device="cpu", method="facilty")
    out = choose(tmp_path / "run")
    with pytest.raises(UserError, match=r"weights was .*\.safetensors, now not given"):
        choose(out, weights="")


def test_images_that_came_later_are_told(choose, tmp_path, folder, capsys):
    growing = shutil.copytree(folder, tmp_path / "images")
    out = choose(tmp_path / "run", source=growing)
    shutil.copyfile(growing / "000.png", growing / "late.png")
    capsys.readouterr()
    choose(out, source=growing)
    assert f"1 images are new since this choice, or could not be read then, and are not in it: late.png; a further " \
           f"round (--labelled {out}) chooses among them" in capsys.readouterr().out  # fmt: skip
    (growing / "late.png").unlink()
    choose(out, source=growing)
    assert "new since" not in capsys.readouterr().out


def test_a_further_round_goes_on_with_the_backbone_of_the_one_before(folder, weights, tmp_path, capsys):
    how = {"method": "random", "device": "cpu", "num_workers": 0}
    one = choose_images(folder, 9, tmp_path / "one", model="demo_vit", weights=weights, **how).folder
    label(one, 9)
    two = choose_images(folder, 9, tmp_path / "two", labelled=[one], **how).folder
    first, second = (read_run(out) for out in (one, two))
    assert (second["request"]["model"], second["weights"]) == ("demo_vit", first["weights"])
    assert f"the backbone is that of {one}: demo_vit, {weights} (--model names another)" in capsys.readouterr().out
    assert backbone_of("vit_tiny", "", [one]) == ("vit_tiny", "")
    assert backbone_of(None, "w.pth", [tmp_path]) == ("vit_small", "w.pth")


def test_copies_that_leave_too_few_images_are_told(folder, weights, tmp_path):
    twins = shutil.copytree(folder, tmp_path / "twins")
    for i in range(40, 70):
        shutil.copyfile(twins / "000.png", twins / f"{i:03}.png")
    how = {"method": "random", "model": "demo_vit", "weights": weights, "device": "cpu", "num_workers": 0}
    told = "of 70 images 0 are labelled or excluded and 30 are exact copies of others, which leaves 40"
    with pytest.raises(UserError, match=f"a budget of 41 is too large: {told}"):
        choose_images(twins, 41, tmp_path / "one", **how)
    with pytest.raises(UserError, match=f"a budget of 30 and 11 to judge by is too large: {told}"):
        choose_images(twins, 30, tmp_path / "two", check=11, **how)
    assert len(choose_images(twins, 30, tmp_path / "two", check=10, **how).ids) == 40


def test_budgets_from_one_image_to_what_is_left_are_taken(choose, tmp_path):
    assert len(rows(choose(tmp_path / "one", budget=1))) == 2  # with the header
    with pytest.raises(
        UserError, match=rf"--budget {COUNT - 9} is outside 1\.\.{COUNT - 10}, .* label less the 10 of --check"
    ):
        choose(tmp_path / "two", budget=COUNT - 9, check=10)
    with pytest.raises(UserError, match=rf"--budget 0 is outside 1\.\.{COUNT}, the images without a label: choose"):
        choose(tmp_path / "two", budget=0)


def test_a_folder_may_be_called_as_a_data_set_a_flag_or_the_home_folder(choose, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("CIFAR10", "-pets", "~"):
        (tmp_path / name).mkdir()
        for i in range(4):
            shutil.copyfile(folder / f"{i:03}.png", tmp_path / name / f"{i}.png")
        out = choose(tmp_path / f"run {name}", source=f"./{name}", budget=2)
        assert read_run(out)["source"] == str(tmp_path / name)
    with pytest.raises(UserError, match=r"CIFAR10 is a data set, .*: write \./CIFAR10 for one"):
        choose(tmp_path / "run", source="CIFAR10", budget=2)
    assert not (tmp_path / "home").exists()


def test_the_home_folder_is_meant_by_its_sign(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(weights, tmp_path / "w.safetensors")
    (tmp_path / "pets").mkdir()
    shutil.copyfile(folder / "000.png", tmp_path / "pets" / "0.png")
    how = {"weights": "~/w.safetensors", "method": "random", "model": "demo_vit", "device": "cpu", "num_workers": 0}
    assert choose_images("~/pets", 1, "~/runs/x", **how).folder == tmp_path / "runs" / "x"
    assert not (tmp_path / "~").exists()
    assert read_run(tmp_path / "runs" / "x")["request"]["weights_sha256"]


def test_other_weights_of_the_same_file_name_are_another_request(choose, weights, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        shutil.copyfile(weights, tmp_path / name / "w.safetensors")
    (tmp_path / "b" / "w.safetensors").write_bytes((tmp_path / "b" / "w.safetensors").read_bytes() + b"0")
    out = choose(tmp_path / "run", weights=tmp_path / "a" / "w.safetensors")
    with pytest.raises(UserError, match=r"asked for otherwise \(weights_sha256 was \w{64}, now \w{64}\)"):
        choose(out, weights=tmp_path / "b" / "w.safetensors")
    (tmp_path / "a" / "w.safetensors").unlink()
    choose(out, weights=tmp_path / "a" / "w.safetensors")  # nothing is left to embed
    record = read_run(out)
    del record["request"]["weights_sha256"]  # of an earlier version
    (out / "run.json").write_text(json.dumps(record))
    choose(out, weights=tmp_path / "b" / "w.safetensors")


def test_a_budget_in_percent_is_the_same_one_of_a_pool_that_has_grown(choose, tmp_path, folder, capsys):
    growing = shutil.copytree(folder, tmp_path / "images")
    out = choose(tmp_path / "run", source=growing, budget="10%")
    for i in range(20):
        shutil.copyfile(growing / f"{i:03}.png", growing / f"late {i}.png")
    choose(out, source=growing, budget="10 %")
    assert "20 images are new since this choice" in capsys.readouterr().out
    assert len(rows(out)) == 8  # with the header
    choose(out, source=growing, budget=7)
    with pytest.raises(UserError, match=r"\(budget was 7, now 18\): choose another --out"):
        choose(out, source=growing, budget="20%")
