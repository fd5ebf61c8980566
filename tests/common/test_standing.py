"""What may stand where a list goes: the same list is known again, another one is told in words and kept."""

import json

import pytest

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features
from data_selection.common.standing import standing
from data_selection.common.subset_files import describe, save_names, save_subset


def table_of(folder, names, source="/x/pets"):
    folder.mkdir()
    save_features(folder / "P.npy", [[1.0, 2.0]] * len(names), names=names, provenance={"source": source})
    return load_features(folder / "P.npy")


def record_of(table, **changes):
    usual = {"method": "m", "config": {"temperature": 0.1, "slice": 3, "cores": [1, 2]}, "seed": 0, "budget": 1}
    return describe(table, **usual | changes)


@pytest.fixture
def table(tmp_path):
    return table_of(tmp_path / "1", ["a", "b"])


@pytest.fixture
def path(tmp_path, table):
    """A list that was chosen from the table."""
    path = tmp_path / "s.json"
    save_subset(path, [0], record_of(table))
    save_names(path, table)
    return path


def look(path, table, *, overwrite=False, **changes):
    return standing(path, table, lambda: record_of(table, **changes), overwrite=overwrite)


def test_the_same_list_is_known_again(tmp_path, path, table):
    assert look(tmp_path / "other.json", table) == "nothing"
    assert look(path, table) == "same"
    assert look(path, table, config={"temperature": 0.1, "slice": 9, "max_memory": 2, "cores": (1, 2)}) == "same"
    assert look(path, table_of(tmp_path / "2", ["a", "b"], "/moved/pets")) == "same"
    assert look(path, table, overwrite=True) == "other"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "n"}, "method m there, n now"),
        ({"seed": 3}, "seed 0 there, 3 now"),
        ({"budget": 2}, "budget 1 there, 2 now"),
        ({"config": {"temperature": 0.2, "cores": [1, 2]}}, "temperature 0.1 there, 0.2 now"),
        ({"config": {"temperature": 0.1, "cores": [1, 3]}}, r"cores 2_\w{8} there, 2_\w{8} now"),
        ({"config": {"temperature": 0.1, "cores": [1, 2], "new": True}}, "new none there, yes now"),
        ({"taken": {"labelled": "5_12345678"}}, "labelled none there, 5_12345678 now"),
    ],
)
def test_a_list_that_was_chosen_otherwise_is_kept_and_the_words_told(path, table, changes, words):
    with pytest.raises(
        UserError, match=rf"s\.json is there, and was chosen otherwise: {words}\. Choose another --file"
    ):
        look(path, table, **changes)
    assert look(path, table, overwrite=True, **changes) == "other"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "c"], r"names \w{8} there, \w{8} now"),
        (["a", "b", "c"], "pool 2 there, 3 now; .*of /x/pets there, .*of /y"),
    ],
)
def test_a_list_of_other_images_is_kept(tmp_path, path, names, words):
    with pytest.raises(UserError, match=words):
        look(path, table_of(tmp_path / "2", names, "/y/pets"))


def test_a_list_without_a_record_or_of_another_length_is_kept(path, table):
    path.write_text("[0, 1]")
    with pytest.raises(UserError, match="it holds 2 images, not 1"):
        look(path, table)
    path.with_name("s.provenance.json").unlink()
    with pytest.raises(UserError, match="it has no record of how it was chosen"):
        look(path, table)
    assert json.loads(path.read_text()) == [0, 1]


def test_a_file_of_names_that_somebody_wrote_is_kept(tmp_path, table):
    (tmp_path / "s.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"s\.txt is there, and no list of ours"):
            look(tmp_path / "s.json", table, overwrite=overwrite)
