"""What a run folder says of itself: whose it is, what was asked for, which rounds came before."""

import json

import pytest

from data_selection.annotation.run_folder import (
    check_names,
    chosen_names,
    class_words,
    is_chosen,
    read_run,
    rounds_of,
)
from data_selection.commands.earlier_rounds import backbone_of
from data_selection.common.errors import UserError


def make_run(folder, **record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"version": 1, "source": "pool", "features": "x.npy"} | record))
    (folder / "subset.json").write_text("[0]")
    return folder


def test_a_request_for_more_than_was_known_before_is_another(tmp_path):
    """A record of before a flag was there does not name it."""
    run = make_run(tmp_path, request={"budget": 5})
    assert is_chosen(run, {"budget": 5, "check": None})
    with pytest.raises(UserError, match=r"asked for otherwise \(check was not given, now 20\)"):
        is_chosen(run, {"budget": 5, "check": 20})


def test_somebodys_link_is_not_replaced_though_it_leads_nowhere(tmp_path):
    (tmp_path / "images").symlink_to(tmp_path / "disk that is not there")
    with pytest.raises(UserError, match="holds images, which is not from this command"):
        is_chosen(tmp_path, {})


@pytest.mark.parametrize("name", [
    "labels.csv", "model.pth", "report.html", "smoothed_pool.npz", "predictions.csv", "label_studio_tasks.json",
    "label_studio_config.xml", "cvat_manifest.jsonl",
])  # fmt: skip
def test_what_handing_out_and_training_would_replace_is_not_taken_into_a_run(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}, which is not from this command"):
        is_chosen(tmp_path, {})
    make_run(tmp_path, request={"budget": 5})  # a run's own
    assert is_chosen(tmp_path, {"budget": 5})


def told_round(labels, accuracy=50.0, **more):
    return {"labels": labels, "accuracy": accuracy, "low": accuracy - 9, "high": accuracy + 9} | more


def test_rounds_are_told_in_the_order_of_their_labels(tmp_path):
    first, second, third = (told_round(labels) for labels in (9, 30, 100))
    for name, rounds in (("late", [first, third]), ("early", [second])):
        make_run(tmp_path / name)
        (tmp_path / name / "report.json").write_text(json.dumps({"rounds": rounds}))
    (tmp_path / "untrained").mkdir()
    found = rounds_of([tmp_path / name for name in ("late", "untrained", "early")])
    assert found == [first, second, third]


def test_rounds_of_as_many_labels_are_told_apart_and_a_round_is_what_its_own_report_says(tmp_path):
    one, other = told_round(50, 70.0, list="a"), told_round(50, 90.0, list="b")
    later = told_round(100, list="c")
    before = one | {"accuracy": 60.0}  # as it was when the third was chosen
    for name, rounds in (("one", [one]), ("other", [other]), ("later", [before, other, later])):
        make_run(tmp_path / name)
        (tmp_path / name / "report.json").write_text(json.dumps({"rounds": rounds}))
    runs = [tmp_path / name for name in ("one", "other", "later")]
    assert rounds_of(runs) == [one, other, later]
    (runs[2] / "report.json").write_text(json.dumps({"rounds": [told_round(50, 70.0), told_round(9), later]}))
    assert rounds_of(runs) == [told_round(9), one, other, later]  # of when a report had no lists of its rounds


@pytest.mark.parametrize("report", [[], None, {}, {"rounds": None}, {"rounds": [{}]}, {"rounds": [[]]},
                                    {"rounds": [{"labels": 9, "accuracy": None, "low": 1, "high": 2}]}])  # fmt: skip
def test_a_report_that_is_none_is_named(tmp_path, report):
    make_run(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(
        UserError, match=r"report\.json is no report of train_on_labels\.py: train there again, or take"
    ):
        rounds_of([tmp_path])


@pytest.mark.parametrize("record", [[], {"images": []}, {"images": {"name": {"a": 1}}}, {}])
def test_a_list_whose_record_names_no_images_is_chosen_again(tmp_path, record):
    make_run(tmp_path)
    (tmp_path / "subset.provenance.json").write_text(json.dumps(record))
    for read in (chosen_names, *([check_names] if record == [] else [])):
        with pytest.raises(UserError, match=r"subset\.provenance\.json .*: choose again, into another --out"):
            read(tmp_path)


def test_a_record_without_a_request_is_no_choice_to_go_on_with(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(UserError, match=r"run\.json does not say what was asked for: choose again, into another --out"):
        is_chosen(run, {"budget": 5})
    with pytest.raises(UserError, match="does not say what was asked for"):
        backbone_of(None, "", [run])
    make_run(tmp_path, request={"budget": 5})
    with pytest.raises(UserError, match="does not say which backbone embedded its images: name it with --model"):
        backbone_of(None, "", [run])
    assert backbone_of("demo_vit", "", [run]) == ("demo_vit", "")


@pytest.mark.parametrize("record", [[], {"version": 2, "source": "a", "features": "b"}, {"version": 1, "source": "a"},
                                    {"version": 1, "features": "b"}])  # fmt: skip
def test_a_record_that_lacks_something_is_none(tmp_path, record):
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json is no record of version 1: choose again, into another folder"):
        read_run(tmp_path)


def test_more_class_words_than_a_file_name_can_hold_are_words():
    words = [f"class {number}" for number in range(60)]
    assert class_words(",".join(words)) == words


def test_a_class_word_with_a_comma_stands_in_quotes(tmp_path):
    assert class_words('<script>alert(1)</script>,"a,b", "c, d",=1') == [
        "<script>alert(1)</script>",
        "a,b",
        "c, d",
        "=1",
    ]
    assert class_words('5",6",say ""') == ['5"', '6"', 'say ""']  # quotes within a word are its own
    assert class_words('"a ""b""",c') == ['a "b"', "c"]
    for wrong in ('"a,b', '"a"b,c'):
        with pytest.raises(
            UserError, match=r"--classes .*: the quotes do not fit .*, or give a text file of one class"
        ):
            class_words(wrong)
    (tmp_path / "names.txt").write_text('"a\nb,c\n')  # a line is a name as it is
    assert class_words(str(tmp_path / "names.txt")) == ['"a', "b,c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('class\n"red, white"\nblue\n', ["red, white", "blue"]),
        ("sep=;\r\ncat;\r\ndog;\r\n", ["cat", "dog"]),
        ("Label,\ncat,\n\n", ["cat"]),
        ('"a;b"\nc\n', ["a;b", "c"]),
        ('5"\ncat\n', ['5"', "cat"]),
        ('label\n"""=1"""\n', ["=1"]),  # copied from a table of labels
        ("cat\nclass\n", ["cat", "class"]),
        ('class\n"red, white",3\nblue\n', None),
        ("a,b\n", None),
        ('"a\nb\n', None),
    ],
)
def test_a_table_of_class_names_has_one_column(tmp_path, content, words):
    (tmp_path / "names.csv").write_text(content, newline="")
    if words is None:
        with pytest.raises(
            UserError, match=r"--classes .*names\.csv is no table of one column: give a text file of one"
        ):
            class_words(str(tmp_path / "names.csv"))
    else:
        assert class_words(str(tmp_path / "names.csv")) == words
