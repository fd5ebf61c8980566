"""A label that is corrected is never lost: the word that came last counts in training and in the next round."""

import json
import os
import shutil

import pytest
from PIL import Image

from data_selection.annotation.run_folder import chosen_names
from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from data_selection.images.answers import written_labels
from deit.labelled import training
from deit.labelled.runs import open_run
from tests.support.labelled_runs import train, word
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")


def choose(pool, out, count=12, **words):
    given = {"method": "random", "model": "demo_vit", "device": "cpu", "num_workers": 0, "images": "none"}
    choose_images(pool, count, out, **given | words)
    return out


@pytest.fixture(scope="module")
def rounds(folder, tmp_path_factory):
    """A folder with two rounds of a pool, all labels filled in, that no test changes."""
    place = tmp_path_factory.mktemp("rounds")
    shutil.copytree(folder, place / "pool")
    one = choose(place / "pool", place / "one")
    write_answers(one / "annotate.csv", {name: word(name) for name in chosen_names(one)})
    two = choose(place / "pool", place / "two", 6, labelled=[one])
    write_answers(two / "annotate.csv", {name: word(name) for name in chosen_names(two)})
    return place


@pytest.fixture
def place(rounds, tmp_path):
    """A copy of the rounds; the earlier one is found beside the later one alone."""
    return shutil.copytree(rounds, tmp_path / "rounds", ignore=lambda _, names: {*names} & {"training"})


@pytest.fixture
def pool(place):
    return place / "pool"


def other(label):
    return {"top": "shoe", "shoe": "else", "else": "top"}[label]


def correct(table, *names):
    """Correct the labels of these images in a table; gives the first one's old and new."""
    labels = written_labels(table)
    told = [(labels[name], other(labels[name])) for name in names]
    write_answers(table, labels | {name: new for name, (_, new) in zip(names, told, strict=True)})
    return told[0]


def opened(run, *labels, pool, partial=False):
    said = []
    found = open_run(run, labels, pool, partial=partial, log=said.append)
    return found.answers.labels, "\n".join(said)


def test_a_correction_in_an_earlier_round_arrives_in_the_later_one(rounds, place, pool, tmp_path):
    """Also where both folders have moved, and through a round in between."""
    name = sorted(chosen_names(place / "one"))[0]
    three = choose(pool, place / "three", 4, labelled=[place / "two"])
    write_answers(three / "annotate.csv", {name: word(name) for name in chosen_names(three)})
    moved = tmp_path / "moved"
    place.rename(moved)
    old, new = correct(moved / "one" / "annotate.csv", name)
    for run in (moved / "three", moved / "three"):
        labels, said = opened(run, pool=moved / "pool")
        assert labels[name] == new
        assert f"1 labels of earlier rounds are corrected: {name} ({old} -> {new}), by " in said
    train(moved / "three", source=moved / "pool")
    assert written_labels(moved / "three" / "labels.csv")[name] == new
    four = choose(moved / "pool", moved / "four", 3, labelled=[moved / "three"])
    assert written_labels(four / "labelled.csv")[name] == new


def test_a_correction_that_training_has_taken_stays_when_the_earlier_round_is_gone(place, pool, tmp_path):
    """And goes where that says the first word again."""
    one, two = place / "one", place / "two"
    name = sorted(chosen_names(one))[0]
    old, new = correct(one / "annotate.csv", name)
    record = json.loads((two / "run.json").read_text())
    record["earlier"][0]["folder"] = str(place / "nowhere")  # where the one that this is a copy of lies
    (two / "run.json").write_text(json.dumps(record))
    train(two, source=pool)
    away = one.rename(tmp_path / "away")
    for turn in ("first", "later"):
        labels, said = opened(two, pool=pool)
        assert labels[name] == new, turn
        assert f"corrected: {name} ({old} -> {new}), by {two / 'labels.csv'}" in said
        three = choose(pool, place / f"{turn} three", 3, labelled=[two])
        assert written_labels(three / "labelled.csv")[name] == new, turn
        train(two, source=pool)
    away.rename(one)
    last = other(new)
    write_answers(one / "annotate.csv", written_labels(one / "annotate.csv") | {name: last})
    assert opened(two, pool=pool)[0][name] == last
    train(two, source=pool)
    write_answers(one / "annotate.csv", written_labels(one / "annotate.csv") | {name: old})
    assert opened(two, pool=pool)[0][name] == old
    train(two, source=pool)
    assert written_labels(two / "labels.csv")[name] == old


def test_a_correction_follows_a_renamed_image(place, pool):
    one = choose(pool, place / "first", seed=3)
    write_answers(one / "annotate.csv", {name: word(name) for name in chosen_names(one)})
    name = sorted(chosen_names(one))[0]
    (pool / name).rename(pool / "new.png")
    two = choose(pool, place / "second", 5, labelled=[one])
    write_answers(two / "annotate.csv", {name: word(name) for name in chosen_names(two)})
    old, new = correct(one / "annotate.csv", name)
    labels, said = opened(two, pool=pool)
    assert labels["new.png"] == new
    assert f"corrected: new.png ({old} -> {new}), by {one / 'annotate.csv'}" in said


def test_a_row_of_an_image_that_was_not_handed_out_is_of_no_other_of_its_file_name(place, tmp_path):
    """In the earlier round's table, as the later one reads it."""
    pool, one = tmp_path / "pool", tmp_path / "one"
    for part in ("a", "b"):
        shutil.copytree(place / "pool", pool / part, ignore=lambda _, names: sorted(names)[15:])
    for path in (pool / "b").iterdir():  # no copies
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    names = chosen_names(choose(pool, one, 8))
    twins = {name: f"{'b' if name[0] == 'a' else 'a'}{name[1:]}" for name in names}
    name, row = next((name, twin) for name, twin in twins.items() if twin not in names)
    labels = {name: name[0] for name in names} | {row: row[0]}
    write_answers(one / "annotate.csv", labels)
    two = choose(pool, tmp_path / "two", 4, labelled=[one])
    write_answers(two / "annotate.csv", {name: name[0] for name in chosen_names(two)})
    for changed in ({row: "c"}, {name: "c"}, {name: ""}):
        write_answers(one / "annotate.csv", labels | changed)
        found, _ = opened(two, pool=pool)
        wanted = labels | {name: label for name, label in changed.items() if label}
        assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("by", ["annotate.csv", "--labels"])
def test_a_round_corrects_labels_of_the_rounds_before_it(place, pool, tmp_path, by, capsys):
    name = sorted(chosen_names(place / "one"))[0]
    two, old = place / "two", word(name)
    labels, given = written_labels(two / "annotate.csv") | {name: other(old)}, []
    if by == "annotate.csv":
        write_answers(two / by, labels)
    else:
        given = [tmp_path / "fixed.csv"]
        write_answers(given[0], written_labels(two / "labelled.csv") | labels)
    found, said = opened(two, *given, pool=pool)
    assert found[name] == other(old)
    table = given[0] if given else two / by
    assert f"1 labels of earlier rounds are corrected: {name} ({old} -> {other(old)}), by {table}" in said
    train(two, labels=given, source=pool)
    assert opened(two, pool=pool)[0][name] == other(old)  # without --labels, too
    for number, runs in enumerate(([place / "one", two], [two], [two, place / "one"])):
        three = choose(pool, place / f"three {number}", 3, labelled=runs)
        assert written_labels(three / "labelled.csv")[name] == other(old)
    assert f"corrected: {name} ({old} -> {other(old)}), by {two}" in capsys.readouterr().out


def test_labels_that_training_was_given_stay_until_the_table_says_another_word(place, pool, tmp_path, capsys):
    one = place / "one"
    first, second, third, *_ = sorted(chosen_names(one))
    fixed = tmp_path / "fixed.csv"
    shutil.copyfile(one / "annotate.csv", fixed)
    correct(fixed, first, second)
    _, said = train(one, labels=[fixed], source=pool)
    learned = written_labels(one / "labels.csv")
    assert learned == written_labels(fixed)
    two = choose(pool, place / "a", 3, labelled=[one])
    assert written_labels(two / "labelled.csv") == learned
    told = f"2 labels of {one / 'annotate.csv'} are corrected: {first} ({word(first)} -> {learned[first]})"
    assert told in capsys.readouterr().out
    _, said = train(one, source=pool)
    assert told in said
    assert written_labels(one / "labels.csv") == learned
    labels = written_labels(one / "annotate.csv")
    last = ({"top", "shoe", "else"} - {labels[first], learned[first]}).pop()
    write_answers(one / "annotate.csv", labels | {first: last, third: other(labels[third])})
    wanted = learned | {first: last, third: other(labels[third])}
    found, said = opened(one, pool=pool)
    assert found == wanted
    assert f"1 labels of {one / 'labels.csv'} are corrected: {first} ({learned[first]} -> {last})" in said
    _, said = train(one, source=pool)
    assert f"2 labels are others than those of the training before: {first} ({learned[first]} -> {last})" in said
    assert written_labels(choose(pool, place / "b", 3, labelled=[one]) / "labelled.csv") == wanted


def test_labels_that_training_alone_was_given_are_not_lost_beside_a_table_of_a_few(place, pool, tmp_path):
    one = place / "one"
    first, *rest = sorted(chosen_names(one))
    shutil.copyfile(one / "annotate.csv", tmp_path / "all.csv")
    write_answers(one / "annotate.csv", {first: word(first)} | dict.fromkeys(rest, ""))
    train(one, labels=[tmp_path / "all.csv"], source=pool)
    wanted = written_labels(tmp_path / "all.csv")
    assert written_labels(choose(pool, place / "a", 3, labelled=[one]) / "labelled.csv") == wanted
    assert opened(one, pool=pool)[0] == wanted


def test_a_start_that_ends_between_the_note_and_the_labels_leaves_nothing_in_doubt(place, pool, monkeypatch):
    """A full disk, a kill: the labels that are there are those of the training before, and no word of somebody else."""
    one = place / "one"
    first, second, *_ = chosen_names(one)
    train(one, source=pool)
    old, new = correct(one / "annotate.csv", first)
    write_answers(one / "annotate.csv", written_labels(one / "annotate.csv") | {second: ""})
    with monkeypatch.context() as patched:
        patched.setattr(training, "atomic_write", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            train(one, partial=True, source=pool)
    assert written_labels(one / "labels.csv")[first] == old
    found, _ = opened(one, pool=pool, partial=True)
    assert found[first] == new
    assert second not in found
    train(one, partial=True, source=pool)
    assert written_labels(one / "labels.csv") == found


def test_labels_csv_that_somebody_has_changed_is_not_replaced_unasked(place, pool):
    one, before = place / "one", None
    first, *_ = chosen_names(one)
    train(one, source=pool)
    old, new = correct(one / "labels.csv", first)
    for turn in ("noted", "of an earlier version"):
        told = (
            f"1 images have two labels: {first} ('{old}' in {one}/annotate.csv and '{new}' in {one}/labels.csv); corr"
        )
        for run in (lambda: train(one, source=pool), lambda: choose(pool, place / "a", 3, labelled=[one])):
            with pytest.raises(UserError) as caught:
                run()
            assert told in str(caught.value), turn
        before = (one / "run.json").read_text()
        (one / "run.json").write_text(before.replace('"given"', '"unknown"'))
    os.utime(one / "annotate.csv")  # the one that was saved last
    found, said = opened(one, pool=pool)
    assert found[first] == old
    assert f"1 labels of {one / 'labels.csv'} are corrected: {first} ({new} -> {old})" in said


def test_a_copy_of_labels_that_somebody_has_corrected_is_no_copy(place, pool):
    """The only place where a label of an earlier round could be corrected, once."""
    one, two = place / "one", place / "two"
    first, *_ = chosen_names(one)
    old, new = correct(two / "labelled.csv", first)
    told = f"1 images have two labels: {first} ('{new}' in {two}/labelled.csv and '{old}' in "
    for run in (lambda: opened(two, pool=pool), lambda: choose(pool, place / "a", 3, labelled=[one, two])):
        with pytest.raises(UserError) as caught:
            run()
        assert told in str(caught.value)
    correct(one / "annotate.csv", first)
    assert opened(two, pool=pool)[0][first] == new


def test_a_choice_that_is_asked_for_with_other_labels_says_which(place, pool):
    one, two = place / "one", place / "two"
    first, second, *_ = sorted(chosen_names(one))
    old, new = correct(one / "annotate.csv", first)
    with pytest.raises(UserError) as caught:
        choose(pool, two, 6, labelled=[one])
    assert f"labels were others: {first} ({old} -> {new})" in str(caught.value)
    assert f"training on {two} takes corrected ones without a new choice" in str(caught.value)
    assert "labelled was" not in str(caught.value)
    write_answers(one / "annotate.csv", {name: "" if name == second else word(name) for name in chosen_names(one)})
    with pytest.raises(UserError, match=rf"labels were others: {second} \({word(second)} -> none\)"):
        choose(pool, two, 6, labelled=[one])
