"""The feature file: the released layout in and out, and every damaged file refused when it is opened."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_selection.common.errors import UserError
from data_selection.common.feature_table import (
    FeatureTable,
    compared_by_position,
    labels_like,
    load_features,
    save_features,
    sidecar,
)

FEATURES = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LABELS = [3, 0, -1, 2, 2, 9]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_round_trip(tmp_path, dtype):
    path = tmp_path / "X.npy"
    save_features(path, FEATURES.astype(dtype), LABELS, names=list("abcdef"), provenance={"pool": "demo"})
    table = load_features(path)
    assert np.array_equal(table.features, FEATURES.astype(dtype))
    assert (table.labels.dtype, table.labels.tolist(), table.names) == (np.int64, LABELS, tuple("abcdef"))
    assert (len(table), table.tensor().dtype.itemsize, table.path) == (6, 4, path)
    assert json.loads(sidecar(path, "provenance").read_text()) == {"pool": "demo"}


def test_released_layout(tmp_path):
    """One float64 array, the label in the last column, as the released extraction writes it."""
    np.save(tmp_path / "X.npy", np.concatenate([FEATURES, np.arange(6)[:, None]], axis=1))
    table = load_features(tmp_path / "X.npy")
    assert np.array_equal(table.features, FEATURES)
    assert table.labels.tolist() == list(range(6))
    assert isinstance(table.features, np.memmap)
    assert table.names is None


def test_no_labels(tmp_path):
    save_features(tmp_path / "X.npy", FEATURES)
    assert load_features(tmp_path / "X.npy").labels is None
    np.save(tmp_path / "ade.npy", FEATURES)
    assert load_features(tmp_path / "ade.npy", label_column=False).features.shape == (6, 4)
    with pytest.raises(UserError, match="say so with --no_label_column"):
        load_features(tmp_path / "ade.npy")


def test_saving_again_removes_stale_names(tmp_path):
    save_features(tmp_path / "X.npy", FEATURES, names=list("abcdef"))
    save_features(tmp_path / "X.npy", FEATURES[:3])
    assert load_features(tmp_path / "X.npy").names is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["X.npy"]


def test_names_must_fit(tmp_path):
    save_features(tmp_path / "X.npy", FEATURES)
    for names in (["a"] * 5, list(range(6)), {"a": 1}):
        sidecar(tmp_path / "X.npy", "names").write_text(json.dumps(names))
        with pytest.raises(UserError, match="should be a list of 6 names"):
            load_features(tmp_path / "X.npy")


def test_float16_cannot_hold_large_labels(tmp_path):
    with pytest.raises(UserError, match="labels up to 2049 do not fit the feature type float16"):
        save_features(tmp_path / "X.npy", FEATURES[:1].astype(np.float16), [2049])


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (FEATURES[0], r"shape \(4,\)"),
        (FEATURES[:0], r"shape \(0, 4\)"),
        (FEATURES[:, :1], r"shape \(6, 1\)"),
        (FEATURES.astype(int), "int64 values; a float type is needed"),
        (FEATURES.astype(object), "no .npy array"),
    ],
)
def test_wrong_arrays(tmp_path, array, match):
    np.save(tmp_path / "X.npy", array)
    with pytest.raises(UserError, match=match):
        load_features(tmp_path / "X.npy")


def test_damaged_files(tmp_path):
    save_features(tmp_path / "X.npy", FEATURES)
    data = (tmp_path / "X.npy").read_bytes()
    for cut in (0, 10, len(data) - 1):
        (tmp_path / "cut.npy").write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cut.npy is truncated or no .npy array"):
            load_features(tmp_path / "cut.npy")
    np.savez(tmp_path / "X.npz", FEATURES)
    with pytest.raises(UserError, match="archive of several arrays"):
        load_features(tmp_path / "X.npz")
    with pytest.raises(UserError, match=r"none.npy does not exist: write it with data_selection/extract_feature.py"):
        load_features(tmp_path / "none.npy")


def test_every_label_must_fit_the_type(tmp_path):
    """2049 becomes 2048 in float16 though 2050, the largest, fits."""
    with pytest.raises(UserError, match=r"labels up to 2050 do not fit .*float16 exactly \(2049 becomes 2048\)"):
        save_features(tmp_path / "X.npy", FEATURES[:2].astype(np.float16), [2049, 2050])
    with pytest.raises(UserError, match="70000 becomes inf"):
        save_features(tmp_path / "X.npy", FEATURES[:1].astype(np.float16), [70_000])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [np.inf, -np.inf, np.nan, 0.5, -2, 1e300])
def test_labels_are_whole_numbers(tmp_path, label):
    with pytest.raises(UserError, match="is no label: whole numbers"):
        save_features(tmp_path / "X.npy", FEATURES.astype(float), [0, 1, label, 0, 0, 0])
    np.save(tmp_path / "X.npy", np.concatenate([FEATURES, [[0], [1], [label], [0], [0], [0]]], axis=1))
    with pytest.raises(UserError, match="should hold class labels"):
        load_features(tmp_path / "X.npy")


def test_class_names_stand_beside_the_features(tmp_path):
    save_features(tmp_path / "X.npy", FEATURES, [0, 1, 2, -1, 0, 0], class_names=["cat", "dog", "fox"])
    assert json.loads(sidecar(tmp_path / "X.npy", "classes").read_text()) == ["cat", "dog", "fox"]
    assert load_features(tmp_path / "X.npy").class_names == ("cat", "dog", "fox")
    sidecar(tmp_path / "X.npy", "classes").write_text('["cat", "dog"]')
    with pytest.raises(UserError, match=r"names 2 classes, but .*X\.npy holds the label 2"):
        load_features(tmp_path / "X.npy")
    save_features(tmp_path / "X.npy", FEATURES)
    assert load_features(tmp_path / "X.npy").class_names is None


def test_labels_are_compared_by_name():
    def table(names, labels):
        return FeatureTable(FEATURES[: len(labels)], np.array(labels), class_names=names)

    train = table(("cat", "dog", "fox"), [0, 1, 2])
    assert labels_like(table(("dog", "fox"), [0, 1, -1]), train).tolist() == [1, 2, -1]
    assert labels_like(table(None, [0, 1]), train).tolist() == [0, 1]
    assert labels_like(table(("dog", "owl"), [0, 0]), train).tolist() == [1, 1]  # no image of an owl
    numbered = table(("0.0", "1.0", "10.0", "2.0"), [1, 2, -1])
    assert labels_like(numbered, table(None, [0])).tolist() == [1, 10, -1]
    assert labels_like(table(None, [10, 2, -1]), numbered).tolist() == [2, 3, -1]
    with pytest.raises(UserError, match=r"has images of owl, 1 classes that .* does not have"):
        labels_like(table(("dog", "owl"), [0, 1]), train)
    with pytest.raises(UserError, match="has no labels"):
        labels_like(FeatureTable(FEATURES), train)


def test_words_that_are_whole_numbers_are_compared_with_numbers():
    """A table of labels makes class names of what a list makes class numbers of."""
    numbers = FeatureTable(FEATURES[:4], np.array([1, 2, 10, -1]))
    words = FeatureTable(FEATURES[:4], np.array([0, 2, 1, -1]), class_names=("1", "10", "2"))
    assert labels_like(numbers, words).tolist() == words.labels.tolist()
    assert labels_like(words, numbers).tolist() == numbers.labels.tolist()
    strange = FeatureTable(FEATURES[:3], np.array([0, 1, 3]))
    with pytest.raises(UserError, match=r"labels 0, 3, which are none of the classes .*\(1, 10, 2, \.\.\.\): label"):
        labels_like(strange, words)


def test_words_and_bare_numbers_are_compared_by_position_and_it_is_said():
    numbers = FeatureTable(FEATURES[:2], np.array([0, 1]), path=Path("numbers.npy"))
    words = FeatureTable(FEATURES[:2], np.array([0, 1]), class_names=("cat", "dog"), path=Path("words.npy"))
    for tables in ((numbers, words), (words, numbers)):
        assert compared_by_position(*tables).startswith(
            "numbers.npy numbers its classes and words.npy names them: 0 is taken for cat, the last of 2 for dog; "
        )
    whole = FeatureTable(FEATURES[:2], np.array([0, 1]), class_names=("1", "2.0"))
    assert [compared_by_position(*two) for two in ((words, words), (numbers, numbers), (numbers, whole))] == [""] * 3


def test_labels_of_the_first_class_alone_are_labels(tmp_path):
    save_features(tmp_path / "X.npy", FEATURES, np.zeros(len(FEATURES), dtype=np.int64))
    assert load_features(tmp_path / "X.npy").labels.tolist() == [0] * len(FEATURES)
