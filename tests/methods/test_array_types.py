"""Feature files of any float type and byte order: as float64 or float32 would give."""

import numpy as np
import pytest

from data_selection.common.checks import as_tensor
from data_selection.common.feature_table import load_features
from data_selection.judging.evaluation import judge_subset
from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs

ROWS = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
LABELS = np.arange(120)[:, None] % 3


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2", np.longdouble, "<f8"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_float_type(tmp_path, method, dtype):
    rows = ROWS.astype(np.float16).astype(np.float32)  # which every type holds
    tables = []
    for name, kind in (("plain", np.float32), ("foreign", dtype)):
        np.save(tmp_path / f"{name}.npy", np.concatenate([rows, LABELS], axis=1).astype(kind))
        tables.append(load_features(tmp_path / f"{name}.npy"))
    row = METHODS[method]
    plain, foreign = (row.select(table.features, 9, excluded=[3, 5], **beliefs(row, ROWS)).tolist() for table in tables)
    assert plain == foreign
    assert judge_subset(plain, *[tables[0]] * 2) == judge_subset(plain, *[tables[1]] * 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_that_torch_has_are_kept(dtype):
    assert as_tensor(ROWS.astype(dtype)).numpy().dtype == dtype
