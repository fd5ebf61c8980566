"""A next round takes over the labels of a run: by content where files were renamed, and those training was given."""

import shutil

import pytest

from data_selection.annotation.run_folder import chosen_names, read_run
from data_selection.commands import earlier_rounds
from data_selection.commands.any_method import main_select
from data_selection.common.errors import UserError
from data_selection.images import following
from data_selection.images.answers import write_labels
from data_selection.images.pools import open_pool
from data_selection.images.record import record_pool


@pytest.fixture
def shoes(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "shoes")
    return tmp_path / "shoes"


def label(run):
    """Labels for all chosen images: their own names, in two classes."""
    names = sorted(chosen_names(run))
    labels = {name: f"class {place % 2}" for place, name in enumerate(names)}
    (run / "annotate.csv").write_text(write_labels(labels))
    return labels


def taken(run):
    rows = (run / "labelled.csv").read_text().splitlines()[1:]
    return dict(row.split(",") for row in rows)


def test_labels_follow_the_content_of_renamed_and_exchanged_files(choose, shoes, tmp_path, capsys):
    one = choose(tmp_path / "one", source=shoes)
    labels = label(one)
    first, second, third, *_ = labels
    (shoes / first).rename(shoes / "t.png")
    (shoes / second).rename(shoes / first)
    (shoes / "t.png").rename(shoes / second)
    (shoes / third).rename(shoes / "new.png")
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=5)
    expected = {**labels, first: labels[second], second: labels[first], "new.png": labels[third]}
    del expected[third]
    assert taken(two) == expected
    assert "3 images of earlier rounds are found by their content" in capsys.readouterr().out
    assert not set(chosen_names(two)) & set(expected)


def test_several_rounds_read_the_pool_once(choose, shoes, tmp_path, monkeypatch):
    one = choose(tmp_path / "one", source=shoes)
    first, *_ = label(one)
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=5)
    second, *_ = label(two)
    for name in (first, second):
        (shoes / name).rename(shoes / f"new-{name}")
    pool, read = open_pool(str(shoes)), []
    monkeypatch.setattr(earlier_rounds, "record_pool", lambda pool: read.append(pool) or record_pool(pool))
    monkeypatch.setattr(following, "record_pool", lambda _: pytest.fail("of one round alone"))
    known = earlier_rounds.read_labelled([one, two], pool)
    assert {f"new-{first}", f"new-{second}"} <= set(known.labels)
    assert read == [pool]


def test_an_image_that_waits_for_its_label_is_not_chosen_again_under_another_name(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    first, second, third, *_ = label(one)
    (one / "annotate.csv").write_text(write_labels({first: "a", second: "b"}))
    (shoes / third).rename(shoes / "new.png")
    rest = len(list(shoes.iterdir())) - 12
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=rest)
    assert "new.png" not in chosen_names(two)
    assert len(chosen_names(two)) == rest
    with pytest.raises(UserError, match=f"1 of the chosen images .*'{third}' is now 'new.png'; give them back"):
        choose(one, source=shoes)


def test_a_labelled_image_that_is_gone_or_another_is_named(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    first, second, *_ = label(one)
    (shoes / first).write_bytes((shoes / second).read_bytes() + b"0")
    with pytest.raises(
        UserError, match=f"1 of the 12 labelled images are gone, or .*{first}; give them back; --partial"
    ):
        choose(tmp_path / "two", source=shoes, labelled=[one], budget=5)
    with pytest.raises(UserError, match=f"1 of the chosen images .*'{first}' is gone or has another content"):
        choose(one, source=shoes)
    assert read_run(one)["source"] == str(shoes)


def test_all_labelled_images_that_are_gone_are_named_and_left_out_where_asked(choose, shoes, tmp_path, capsys):
    one = choose(tmp_path / "one", source=shoes)
    labels = label(one)
    changed, *gone = sorted(labels)[:7]
    last = sorted(labels)[-1]
    more = tmp_path / "more.csv"
    before = (one / "annotate.csv").read_text()
    free = next(file.name for file in sorted(shoes.iterdir()) if file.name not in labels)
    more.write_text(f"file,label\n{free},class 1\n")
    for name in (*gone, free):
        (shoes / name).unlink()
    (shoes / changed).write_bytes((shoes / last).read_bytes() + b"0")
    told = f"8 of the 13 labelled images are gone, or have another content than when they were labelled: {changed}, "
    told += ", ".join([*gone, free])
    with pytest.raises(UserError) as caught:
        choose(tmp_path / "two", source=shoes, labelled=[one, more], budget=5)
    assert told in str(caught.value)
    assert "--partial goes on without them" in str(caught.value)
    two = choose(
        tmp_path / "two", source=shoes, labelled=[one, more], budget=5, partial=True, classes="class 0,class 1"
    )
    assert f"warning: left out, {told}" in capsys.readouterr().out
    assert taken(two) == {name: word for name, word in labels.items() if name not in {changed, *gone}}
    assert (one / "annotate.csv").read_text() == before
    for name in labels:
        (shoes / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="13 of the 13 labelled images are gone"):
        choose(tmp_path / "three", source=shoes, labelled=[one, more], budget=5, partial=True)


def test_labels_that_training_was_given_count(choose, shoes, tmp_path, capsys):
    """labels.csv, what training has understood, in place of an annotate.csv that nobody has filled in."""
    one = choose(tmp_path / "one", source=shoes)
    labels = label(one)
    first, second, *_ = labels
    (one / "annotate.csv").rename(one / "labels.csv")
    (one / "annotate.csv").write_text(write_labels(dict.fromkeys(labels, "")))
    assert taken(choose(tmp_path / "two", source=shoes, labelled=[one], budget=5)) == labels
    assert "labels.csv: a table" in capsys.readouterr().out
    some = {first: labels[first], second: labels[second]}  # a row that was emptied stays empty
    (one / "annotate.csv").write_text(write_labels({**dict.fromkeys(labels, ""), **some}))
    assert taken(choose(tmp_path / "three", source=shoes, labelled=[one], budget=5)) == some


def test_a_source_without_any_label_is_refused(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    for source in (one / "subset.txt", one / "images"):
        with pytest.raises(UserError, match=f"--labelled {source} holds no label: give the folder of an earlier round"):
            choose(tmp_path / "two", source=shoes, labelled=[source], budget=5)


def test_two_rows_that_are_one_image_today_have_to_agree(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    labels = label(one)
    first, *_ = labels
    (shoes / first).rename(shoes / "new.png")
    more = tmp_path / "more.csv"
    more.write_text("file,label\nnew.png,class 7\n")
    with pytest.raises(UserError, match=f"1 images have two labels: new.png .*'{first}' is now 'new.png'"):
        choose(tmp_path / "two", source=shoes, labelled=[one, more], budget=5, classes="class 7")
    more.write_text(f"file,label\nnew.png,{labels[first]}\n")
    two = choose(tmp_path / "two", source=shoes, labelled=[one, more], budget=5)
    assert taken(two) == {"new.png" if name == first else name: word for name, word in labels.items()}


def test_a_round_follows_its_own_images_where_names_were_swapped(choose, shoes, tmp_path):
    """A later round knows another picture by the name that an earlier one's label is of."""
    one = choose(tmp_path / "one", source=shoes)
    labels = label(one)
    first, second = next(iter(labels)), next(file.name for file in sorted(shoes.iterdir()) if file.name not in labels)
    for old, new in ((first, "aside"), (second, first), ("aside", second)):
        (shoes / old).rename(shoes / new)
    two = choose(tmp_path / "two", source=shoes, labelled=[one], budget=5)
    right = {second if name == first else name: word for name, word in labels.items()}
    assert taken(two) == right
    for number, runs in enumerate(([one, two], [two, one])):
        assert taken(choose(tmp_path / f"three {number}", source=shoes, labelled=runs, budget=5)) == right


def test_a_label_is_not_taken_for_another_picture_that_a_later_round_knows(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    first, second, *_ = label(one)
    (shoes / first).write_bytes((shoes / second).read_bytes() + b"0")
    two = choose(tmp_path / "two", source=shoes, budget=3, seed=5)
    for runs in ([one, two], [two, one]):
        with pytest.raises(UserError, match=f"1 of the 12 labelled images are gone, or .*{first}"):
            choose(tmp_path / "three", source=shoes, labelled=runs, budget=5)


def test_a_table_may_name_an_image_as_an_earlier_round_knew_it(choose, shoes, tmp_path):
    one = choose(tmp_path / "one", source=shoes)
    labels = label(one)
    old = next(file.name for file in sorted(shoes.iterdir()) if file.name not in labels)
    (tmp_path / "more.csv").write_text(f"file,label\n{old},class 1\n")
    (shoes / old).rename(shoes / "new.png")
    rest = len(list(shoes.iterdir())) - 13
    two = choose(tmp_path / "two", source=shoes, labelled=[one, tmp_path / "more.csv"], budget=rest)
    assert taken(two) == labels | {"new.png": "class 1"}
    assert not set(chosen_names(two)) & set(taken(two))
    (shoes / "new.png").unlink()
    with pytest.raises(UserError, match=f"1 of the 13 labelled images are gone, or .*{old}; give them back"):
        choose(tmp_path / "three", source=shoes, labelled=[one, tmp_path / "more.csv"], budget=5)


@pytest.mark.parametrize("flag", ["--labelled", "--excluded"])
def test_a_run_folder_stands_for_its_images_and_labels_in_lists(choose, shoes, tmp_path, flag, capsys):
    one = choose(tmp_path / "one", source=shoes, images="none")
    labels = label(one)
    waiting = sorted(labels)[-1]
    (one / "annotate.csv").write_text(write_labels({name: labels[name] for name in labels if name != waiting}))
    other = next(file.name for file in sorted(shoes.iterdir()) if file.name not in labels)
    (one / "labels.csv").write_text(write_labels({other: "class 1"}))  # which training was given
    features = next((one / "features").glob("*.npy"))
    words = ["--features", features, flag, one, "--output_dir", tmp_path, "--filename", "x.json", "--device", "cpu"]
    rest = len(list(shoes.iterdir())) - 13
    main_select([str(word) for word in (*words, "--method", "random", "--budget", rest)])
    assert not {*(tmp_path / "x.txt").read_text().splitlines()} & {*labels, other}
    capsys.readouterr()
    main_select([str(word) for word in (*words, "--method", "auto", "--budget", 4, "--overwrite")])
    assert ("takes wvoptimal" in capsys.readouterr().out) is (flag == "--labelled")
