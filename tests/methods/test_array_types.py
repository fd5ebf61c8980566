"""Feature files of any float type and byte order: as float64 or float32 would give."""

import functools

import numpy as np
import pytest

from data_selection.common.checks import as_tensor
from data_selection.common.feature_table import load_features
from data_selection.judging.evaluation import judge_subset
from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs

ROWS = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
LABELS = np.arange(120)[:, None] % 3
HELD = ROWS.astype(np.float16).astype(np.float32)  # which every type holds


def choose(method, path, kind):
    """(ids, their judgement) of a method on HELD in a file of a type."""
    np.save(path, np.concatenate([HELD, LABELS], axis=1).astype(kind))
    table, row = load_features(path), METHODS[method]
    ids = row.select(table.features, 9, excluded=[3, 5], **beliefs(row, ROWS)).tolist()
    return ids, judge_subset(ids, table, table)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """choose(method) for float32, once for all types."""
    path = tmp_path_factory.mktemp("plain") / "plain.npy"
    return functools.cache(lambda method: choose(method, path, np.float32))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2", np.longdouble])
def test_types_that_torch_lacks_are_read_as_float64(tmp_path, dtype):
    np.save(tmp_path / "foreign.npy", np.concatenate([HELD, LABELS], axis=1).astype(dtype))
    features = load_features(tmp_path / "foreign.npy").features
    assert as_tensor(features).numpy().dtype == np.float64
    assert np.array_equal(features, HELD)


@pytest.mark.parametrize("dtype", ["<f8", "<f2"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_float_type(tmp_path, plain, method, dtype):
    assert choose(method, tmp_path / "foreign.npy", dtype) == plain(method)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_that_torch_has_are_kept(dtype):
    assert as_tensor(ROWS.astype(dtype)).numpy().dtype == dtype
