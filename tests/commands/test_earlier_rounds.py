"""What a round takes over from the ones before it: features, images to judge by, what is still waiting."""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_selection.annotation.run_folder import check_names, chosen_names, read_run
from data_selection.commands import run_choose
from data_selection.commands.earlier_rounds import borrow
from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from data_selection.common.feature_table import save_features
from data_selection.images.answers import write_labels
from deit.labelled.runs import open_run
from tests.support.extraction_cases import COUNT
from tests.support.pages import page_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def shoes(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "shoes"))


@pytest.fixture
def earlier(tmp_path):
    """A run of tmp_path/shoes with features of two images."""
    run = tmp_path / "run"
    save_features(run / "features" / "x.npy", np.eye(2), names=["a", "b"], provenance={"source": "s"})
    content = {"version": 1, "source": os.path.realpath(tmp_path / "shoes"), "features": "features/x.npy"}
    (run / "run.json").write_text(json.dumps(content))
    return run


def borrowed(folder, source, runs):
    """The files that a new run has of earlier ones, in the order in which they came."""
    came, real = [], Path.hardlink_to
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "hardlink_to", lambda self, file: came.append(self.name) or real(self, file))
        folder.mkdir(exist_ok=True)
        borrow(argparse.Namespace(output_dir=folder, dataset=str(source)), runs)
    return came


def test_features_come_after_what_tells_of_them(earlier, tmp_path):
    """A kill in between leaves no table that nobody can tell the rows of."""
    came = borrowed(tmp_path / "new", tmp_path / "shoes", [tmp_path / "none", earlier])
    assert set(came) == {"x.npy", "x.names.json", "x.provenance.json"}
    assert came[-1] == "x.npy"


def test_features_are_found_whatever_their_pool_is_called(earlier, tmp_path):
    for file in (earlier / "features").iterdir():
        file.rename(file.with_name(file.name.replace("x.", "pets[1].", 1)))
    record = (earlier / "run.json").read_text()
    (earlier / "run.json").write_text(record.replace("x.npy", "pets[1].npy"))
    assert borrowed(tmp_path / "new", tmp_path / "shoes", [earlier])[-1] == "pets[1].npy"


def test_features_of_another_pool_or_beside_ones_own_are_left_alone(earlier, shoes, tmp_path):
    shutil.copytree(shoes, tmp_path / "boots")
    assert borrowed(tmp_path / "new", tmp_path / "boots", [earlier]) == []
    (tmp_path / "new" / "x.partial").mkdir()  # begun: its rows go on
    assert borrowed(tmp_path / "new", tmp_path / "shoes", [earlier]) == []


def test_a_start_that_was_killed_while_it_took_features_over_goes_on(earlier, tmp_path):
    new, real = tmp_path / "new", Path.hardlink_to
    new.mkdir()
    for kind in (KeyboardInterrupt, OSError):  # a kill; a disk that knows no links
        came = []

        def fails(self, file, came=came, kind=kind):
            came.append(self.name)
            if len(came) > 1:
                raise kind
            real(self, file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "hardlink_to", fails)
            wanted = argparse.Namespace(output_dir=new, dataset=str(tmp_path / "shoes"))
            if kind is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    borrow(wanted, [earlier])
            else:
                borrow(wanted, [earlier])
    assert {file.name for file in new.iterdir()} == {"x.npy", "x.names.json", "x.provenance.json"}
    assert all(file.read_bytes() == (earlier / "features" / file.name).read_bytes() for file in new.iterdir())


def test_labels_of_a_start_that_was_killed_are_not_those_of_a_later_one(choose, tmp_path, monkeypatch):
    one, two = choose(tmp_path / "one"), tmp_path / "two"
    (one / "annotate.csv").write_text(write_labels({name: "ab"[i % 2] for i, name in enumerate(chosen_names(one))}))

    def killed(self, device):
        (two / "beliefs.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_choose.Planned, "choose", killed)
        with pytest.raises(KeyboardInterrupt):
            choose(two, labelled=[one])
    assert (two / "labelled.csv").exists()
    choose(two)
    assert not (two / "labelled.csv").exists()
    assert not (two / "beliefs.json").exists()


def test_a_picture_under_the_name_of_one_that_waited_may_be_chosen(choose, shoes, tmp_path, capsys):
    one = choose(tmp_path / "one", source=shoes)
    first, second, third, *_ = chosen_names(one)
    (one / "annotate.csv").write_text(write_labels({first: "a", second: "b"}))
    (shoes / third).write_bytes((shoes / first).read_bytes() + b"0")
    choose(tmp_path / "two", source=shoes, labelled=[one], budget=5)
    assert "2 images have labels of 2 classes; 9 that were handed out have none" in capsys.readouterr().out


def test_images_drawn_at_random_judge_later_rounds_whatever_they_are_called(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes, budget=2, check=10)
    names, drawn = chosen_names(one), check_names(one)
    (one / "annotate.csv").write_text(write_labels({name: f"class {i % 2}" for i, name in enumerate(names)}))
    (shoes / drawn[0]).rename(shoes / "new.png")
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=2)
    assert len(drawn) == 10
    assert check_names(two) == ["new.png", *drawn[1:]]


def test_an_image_that_waited_for_its_label_and_is_gone_takes_no_place(choose, shoes, tmp_path, capsys):
    one = choose(tmp_path / "one", source=shoes)
    first, second, third, *_ = chosen_names(one)
    (one / "annotate.csv").write_text(write_labels({first: "a", second: "b"}))
    (shoes / third).unlink()
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=COUNT - 12)
    assert len(chosen_names(two)) == COUNT - 12
    assert "2 images have labels of 2 classes; 9 that were handed out have none" in capsys.readouterr().out


def test_classes_that_look_like_no_label_go_on_to_the_next_round(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes, classes="crack,None")
    words = {name: ("crack", "None")[place % 2] for place, name in enumerate(sorted(chosen_names(one)))}
    (one / "annotate.csv").write_text(write_labels(words))
    assert len(chosen_names(choose(tmp_path / "two", source=shoes, labelled=[one], budget=4))) == 4
    table = tmp_path / "table.csv"
    table.write_text(write_labels(words))
    with pytest.raises(UserError, match=r"labels cannot be used: .*None.*--classes"):
        choose(tmp_path / "three", source=shoes, labelled=[table], budget=4)
    choose(tmp_path / "three", source=shoes, labelled=[table], budget=4, classes="crack,None")
    labelled = (tmp_path / "three" / "labelled.csv").read_text()
    assert labelled.count("None") == 6


def test_announced_classes_are_those_of_the_next_round_too(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes, classes="crack,none,fox")
    words = {name: ("crack", "none")[place % 2] for place, name in enumerate(sorted(chosen_names(one)))}
    (one / "annotate.csv").write_text(write_labels(words))
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=4)
    assert page_data(two / "annotate.html")["classes"] == ["crack", "none", "fox"]
    found = open_run(two, [], None, partial=True, log=lambda _: None)
    assert set(found.answers.labels.values()) == {"crack", "none"}
    for _ in range(2):  # others are given for it, with what labels need; they stay without a word
        choose(two, source=shoes, labelled=[one], budget=4, classes="owl,crack")
        choose(two, source=shoes, labelled=[one], budget=4)
        assert read_run(two)["classes"] == ["owl", "crack", "none"]


def test_a_kill_beside_the_labels_of_earlier_rounds_leaves_a_folder_that_goes_on(choose, shoes, tmp_path, monkeypatch):
    one = choose(tmp_path / "one", source=shoes)
    words = {name: ("a", "b")[place % 2] for place, name in enumerate(chosen_names(one))}
    (one / "annotate.csv").write_text(write_labels(words))
    real, two = run_choose.atomic_write, tmp_path / "two"
    for killed in ("run.json", "labelled.csv"):

        def dies(path, mode, killed=killed):
            if Path(path).name == killed:
                raise KeyboardInterrupt
            return real(path, mode)

        monkeypatch.setattr(run_choose, "atomic_write", dies)
        with pytest.raises(KeyboardInterrupt):
            choose_images(shoes, 4, two, labelled=[one], device="cpu", num_workers=0)
    monkeypatch.undo()
    assert len(choose_images(shoes, 4, two, labelled=[one], device="cpu", num_workers=0).ids) == 4
    assert (two / "labelled.csv").read_text() == write_labels(words)


def test_a_pool_whose_folder_has_moved_is_not_embedded_again(choose, shoes, tmp_path, capsys):
    one = choose(tmp_path / "one", source=shoes)
    first, second, *_ = chosen_names(one)
    (one / "annotate.csv").write_text(write_labels({first: "a", second: "b"}))
    shoes.rename(tmp_path / "boots")
    shutil.copyfile(tmp_path / "boots" / first, tmp_path / "boots" / "late.png")
    choose(tmp_path / "two", source=tmp_path / "boots", labelled=[one], budget=5)
    assert f"{COUNT + 1} reused" in capsys.readouterr().out
    assert read_run(tmp_path / "two")["features"] == "features/boots_train.npy"


def test_images_that_wait_since_an_earlier_round_are_not_chosen_again(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    first, second, third, *waiting = chosen_names(one)
    (one / "annotate.csv").write_text(write_labels({first: "a", second: "b", third: "a"}))
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=4)
    (two / "annotate.csv").write_text(write_labels(dict(zip(chosen_names(two), "abab", strict=True))))
    (shoes / waiting[0]).rename(shoes / "new.png")
    three = choose(tmp_path / "three", source=shoes, labelled=[two], budget=COUNT - 16)
    assert len({*chosen_names(three), *waiting, "new.png"}) == COUNT - 16 + len(waiting) + 1
