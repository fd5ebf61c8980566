"""The feature file: the released layout in and out, and every damaged file refused when it is opened."""

import json

import numpy as np
import pytest

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features, sidecar

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
