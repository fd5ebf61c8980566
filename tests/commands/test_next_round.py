"""select_subset.py with labels: rounds that ask a model of them."""

import json
import re

import pytest
import torch

from data_selection.commands.any_method import main_select
from data_selection.commands.given_labels import numbered
from data_selection.common.errors import UserError, run
from data_selection.common.feature_table import FeatureTable, save_features
from data_selection.judging.rounds import choose_next
from data_selection.methods.table import METHODS

ROUNDS = [name for name, row in METHODS.items() if row.rounds]
NAMES = [f"{'abc'[i % 3]}/{i:03d}.png" for i in range(90)]


@pytest.fixture
def select(tmp_path, capsys):
    """A function of a method and lists: (rows chosen, what was said)."""
    labels = torch.arange(90) % 3
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 8, generator=generator) + 2.5 * torch.eye(8)[labels]
    save_features(tmp_path / "x.npy", rows.numpy(), names=NAMES)
    (tmp_path / "labels.csv").write_text("file;label\n" + "".join(f"{name};{name[0]}\n" for name in NAMES[:12]))
    (tmp_path / "more.json").write_text("[20, 21]")

    def selected(method, *lists, budget=6, **flags):
        words = ["--features", tmp_path / "x.npy", "--method", method, "--budget", budget, "--device", "cpu",
                 "--output_dir", tmp_path, "--filename", "out.json", "--overwrite"]  # fmt: skip
        words += [word for name, value in flags.items() for word in (f"--{name}", value)]
        words += ["--labelled", *(tmp_path / name for name in lists)] if lists else []
        main_select([str(word) for word in words])
        return json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out

    selected.rows = rows
    return selected


@pytest.mark.parametrize("method", ROUNDS)
def test_a_round_is_chosen_by_the_labels_of_the_list(select, method, tmp_path):
    chosen, _ = select(method, "labels.csv", "more.json", seed=3)
    known = torch.arange(12)
    oracle = choose_next(select.rows, known % 3, known, 6, method=method, labelled=[20, 21], seed=3)
    assert chosen == oracle.ids.tolist()  # in its order: the first half of a list is the first half of the choice
    record = json.loads((tmp_path / "out.provenance.json").read_text())
    assert record["method"] == method
    assert re.fullmatch(r"12_\w{8}", record["config"]["labels"])
    assert (tmp_path / "x.neighbours.npz").exists()  # the next round finds the graph


def test_a_word_that_is_asked_about_is_a_class_where_it_is_named(select, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace(";c\n", ";None\n"))
    with pytest.raises(UserError, match=r"None.*--classes"):
        select("margin", "labels.csv")
    named, _ = select("margin", "labels.csv", classes="a,b,None")
    table.write_text(table.read_text().replace(";None\n", ";c\n"))
    assert named == select("margin", "labels.csv")[0]


def test_what_was_understood_is_told(select):
    assert "labels.csv: a table apart by semicolon, 12 rows" in select("margin", "labels.csv")[1]


EXPORTS = {
    "tasks.json": lambda rows: json.dumps(
        [{"data": {"image": n}, "annotations": [{"result": [{"value": {"choices": [w]}}]}]} for n, w in rows]
    ),
    "studio.csv": lambda rows: "image,id,choice\n" + "".join(f"/data/local-files/?d=x/{n},1,{w}\n" for n, w in rows),
    "cvat.xml": lambda rows: "<a>" + "".join(f"<image name='{n}'><tag label='{w}'/></image>" for n, w in rows) + "</a>",
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_lists_of_labels(select, name, tmp_path):
    (tmp_path / name).write_text(EXPORTS[name]([(file, file[0]) for file in NAMES[:12]]))
    assert select("wvoptimal", name)[0] == select("wvoptimal", "labels.csv")[0]
    (tmp_path / name).write_text(EXPORTS[name]([("gone.png", "a"), *((file, file[0]) for file in NAMES[:12])]))
    with pytest.raises(UserError, match=rf"{name}: 1 of 13 images are not in .*gone\.png"):
        select("wvoptimal", name)


def test_auto_goes_by_the_labels_where_there_are_some(select):
    assert "--method auto takes wvoptimal: 6 labels a class, at most 25" in select("auto", "labels.csv")[1]
    assert "--method auto takes half: 30 labels a class, above 25" in select("auto", "labels.csv", budget=78)[1]
    assert "--method auto takes facility: " in select("auto", "more.json")[1]


def test_a_setting_reaches_the_method(select, monkeypatch):
    seen = []
    row = METHODS["margin-clusters"]
    monkeypatch.setattr(
        type(row), "select", property(lambda self: lambda *a, **how: seen.append(how) or torch.arange(30, 36))
    )
    select("margin-clusters", "labels.csv", pool=7)
    assert seen[0]["config"].pool == 7


def test_a_round_without_labels_says_what_to_begin_with(select, tmp_path, capsys):
    for lists in ((), ("more.json",)):
        with pytest.raises(
            UserError, match=r"--method margin asks a model of the labels so far.*begin with --method auto"
        ):
            select("margin", *lists)
    (tmp_path / "labels.csv").write_text(f"file,label\n{NAMES[0]},a\n{NAMES[1]},b\n{NAMES[1]},c\n")
    with pytest.raises(UserError, match=r"the labels cannot be used: 1 images have two labels"):
        select("margin", "labels.csv")
    assert run(main_select, ["--method", "margin", "--features", str(tmp_path / "x.npy"), "--budget", "3"]) == 2
    assert "asks a model" in capsys.readouterr().err


def test_rows_of_no_image_are_left_out_where_asked(select, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text() + "gone.png;a\n")
    with pytest.raises(UserError, match=r"gone\.png.*skip"):
        select("margin", "labels.csv")
    chosen, said = select("margin", "labels.csv", missing="skip")
    assert len(chosen) == 6
    assert "left out: 1 rows are of no image of the pool: gone.png (labels.csv)" in said


def test_a_mended_label_makes_another_request(select, tmp_path):
    told = []
    for word in ("a", "b"):
        text = (tmp_path / "labels.csv").read_text().replace("a/000.png;a", f"a/000.png;{word}")
        (tmp_path / "labels.csv").write_text(text)
        select("margin", "labels.csv")
        told.append(json.loads((tmp_path / "out.provenance.json").read_text())["config"]["labels"])
    assert told[0] != told[1]


def test_labels_are_numbered_by_word_and_stand_in_the_order_of_the_rows():
    table = FeatureTable(torch.zeros(4, 2).numpy(), None, ("z", "b", "m", "a"))
    found = numbered({"a": "owl", "z": "cat", "gone": "ant", "m": "owl"}, table)
    assert (found.ids, found.labels.tolist(), found.classes) == ([0, 2, 3], [0, 1, 1], ["cat", "owl"])


def test_labels_of_one_class_leave_the_choice_to_the_pool(select, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{name},whole\n" for name in NAMES[:12]))
    assert "--method auto takes facility: " in select("auto", "labels.csv")[1]
    with pytest.raises(UserError, match="12 labels of 1 classes: rounds ask a model of two classes at least; choose"):
        select("margin", "labels.csv")
