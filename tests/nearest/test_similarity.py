"""Exact comparisons of products, and reading of rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.nearest.pool_reader import available_memory
from data_selection.nearest.similarity import block_rows, exact_dot, product_error, read_rows, recheck, row_blocks


def test_equal_rows_have_equal_products_in_any_place():
    row = torch.randn(1, 384, generator=torch.Generator().manual_seed(0))
    others = torch.randn(3000, 384, generator=torch.Generator().manual_seed(1))
    whole = exact_dot(row.expand(3000, -1), others)
    assert torch.equal(exact_dot(row.expand(1700, -1), others[1300:]), whole[1300:])
    torch.testing.assert_close(whole, (others.double() @ row.double().T)[:, 0])


def test_product_error_bounds_float32():
    rows, others = (torch.randn(500, 384, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    norms = (rows.norm(dim=1) * others.norm(dim=1)).double()
    error = ((rows * others).sum(1).double() - exact_dot(rows, others)).abs()
    assert (error <= product_error(384) * norms).all()


def test_recheck_keeps_the_lowest_of_equals():
    rows, points = torch.eye(2, 3), torch.eye(2, 3).repeat(3, 1)
    best, index = exact_dot(rows, points[[4, 5]]), torch.tensor([4, 5])
    recheck(rows, points, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 0]), best, index, max_pairs=1)
    assert index.tolist() == [0, 1]


def test_recheck_keeps_an_earlier_winner_from_another_block():
    rows, points = torch.eye(2, 3), torch.eye(2, 3)
    best, index = torch.tensor([1.0, -torch.inf]).double(), torch.tensor([7, 99])
    recheck(rows, points, torch.tensor([0, 1]), torch.tensor([0, 1]), best, index, first=40)
    assert index.tolist() == [7, 41]
    assert best.tolist() == [1, 1]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.float64])
def test_rows_are_read_as_float32(kind):
    table = torch.rand(9, 4).to(kind) if isinstance(kind, torch.dtype) else np.random.rand(9, 4).astype(kind)
    rows = read_rows(table, 2, 5)
    assert rows.dtype == torch.float32
    np.testing.assert_array_equal(rows, np.asarray(table[2:5], dtype=np.float32))


def test_nan_names_its_row():
    rows = torch.randn(10, 4)
    rows[7, 2] = torch.nan
    with pytest.raises(UserError, match="first in row 7"):
        read_rows(rows, 5, 10)


def test_a_block_has_the_rows_that_fit():
    assert block_rows(10, 400) == 10  # four bytes a number
    assert block_rows(10, 439) == 10
    assert block_rows(10, 3) == 1
    assert row_blocks(25, 10, 400) == [(0, 10), (10, 20), (20, 25)]


def test_available_memory_is_the_systems_word_in_bytes():
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    assert available_memory() <= 1024 * int(lines["MemTotal"].split()[0])
    assert available_memory() > 0.7 * 1024 * int(lines["MemAvailable"].split()[0])
