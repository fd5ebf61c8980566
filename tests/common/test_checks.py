"""Requests are refused with one clear line; results are asserted."""

import pytest
import torch

from data_selection.common.checks import check_finite, check_ids, check_labelled, check_request, check_selection
from data_selection.common.errors import UserError, run

FEATURES = torch.ones(10, 3)


def test_request_returns_labelled_sorted_and_the_candidates():
    labelled, candidates = check_request(FEATURES, 3, labelled=[7, 2], excluded=[0])
    assert labelled.tolist() == [2, 7]
    assert candidates.tolist() == [1, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("budget", [0, -1, 11])
def test_budget_outside_the_pool_names_the_range(budget):
    with pytest.raises(UserError, match=rf"budget {budget} is outside 1\.\.10"):
        check_request(FEATURES, budget)


def test_budget_counts_only_free_images():
    check_request(FEATURES, 7, labelled=[1, 2], excluded=[3])
    with pytest.raises(UserError, match=r"outside 1\.\.7 .*3 of them labelled or excluded"):
        check_request(FEATURES, 8, labelled=[1, 2], excluded=[3])


@pytest.mark.parametrize("budget", [2.0, "3", True, None])
def test_budget_must_be_a_whole_number(budget):
    with pytest.raises(UserError, match="not a whole number"):
        check_request(FEATURES, budget)


@pytest.mark.parametrize("features", [torch.ones(3), torch.ones(2, 2, 2), torch.ones(0, 4), torch.ones(4, 0)])
def test_features_must_be_a_non_empty_table(features):
    with pytest.raises(UserError, match="shape"):
        check_request(features, 1)


def test_integer_features_are_refused():
    with pytest.raises(UserError, match="float type"):
        check_request(torch.ones(4, 2, dtype=torch.int64), 1)


def test_ids_out_of_range_name_the_id_and_the_range():
    with pytest.raises(UserError, match=r"core id 10 is outside the pool's 0\.\.9"):
        check_ids([1, 10], 10, "core")
    with pytest.raises(UserError, match="core id -1"):
        check_ids([-1], 10, "core")


def test_repeated_ids_name_one_of_them():
    with pytest.raises(UserError, match="4 entries but only 3 distinct ones; id 5 is repeated"):
        check_ids([1, 5, 5, 2], 10, "subset")


def test_labels_keep_their_order():
    ids, labels = check_labelled([5, 1, 3], torch.tensor([2, 0, 7], dtype=torch.uint8), 10)
    assert ids.tolist() == [5, 1, 3]
    assert labels.tolist() == [2, 0, 7]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1, 2], "2 labels for 3 ids"),
        ([], "0 labels for 3 ids"),
        ([0, 1, -1], "label -1 is no class number"),
        ([0.5, 1.5, 2.7], r"not torch.float32 of shape \[3\]"),
        ([[0, 1], [1, 0], [1, 0]], r"not torch.int64 of shape \[3, 2\]"),
        (["a", "b", "c"], "number the classes"),
        ([0, 1, None], "number the classes"),
    ],
)
def test_labels_are_class_numbers_one_for_each_id(labels, told):
    with pytest.raises(UserError, match=told):
        check_labelled([5, 1, 3], labels, 10)


def test_ids_keep_their_order():
    assert check_ids([5, 1, 3], 10, "core").tolist() == [5, 1, 3]


def test_nan_names_its_row():
    block = torch.ones(4, 3)
    block[2, 1] = float("nan")
    with pytest.raises(UserError, match="row 102"):
        check_finite(block, first_row=100)


def test_large_values_pass_as_long_as_their_rows_have_a_length():
    """Else each row would be brought to zeros, and the first ones be chosen."""
    check_finite(torch.full((400, 3), 1e19))  # together they have none
    check_finite(torch.full((4, 384), 6e4, dtype=torch.float16))
    rows = torch.ones(9, 3)
    rows[4, 1], rows[6] = 2e20, 1e30
    with pytest.raises(UserError, match="too large for float32, first in row 104: divide all by one number"):
        check_finite(rows, first_row=100)
    with pytest.raises(UserError, match="too large for float32, first in row 40: divide"):
        check_finite(rows, ids=torch.arange(9) * 10)
    rows[8, 0] = torch.inf
    with pytest.raises(UserError, match="NaN or infinity, first in row 8"):
        check_finite(rows)


@pytest.mark.parametrize("ids", [[1, 2], [1, 1, 2], [1, 2, 12], [1, 2, 7], [-1, 2, 3]])
def test_a_wrong_selection_is_a_bug(ids):
    with pytest.raises(RuntimeError):
        check_selection(torch.tensor(ids), 3, 10, labelled=[7])


def test_run_turns_mistakes_into_one_line_and_status_2(capsys, tmp_path):
    def wrong(argv):
        raise UserError("budget 0 is too small")

    assert run(wrong) == 2
    assert capsys.readouterr().err == "error: budget 0 is too small\n"
    assert run(lambda argv: (tmp_path / "none").read_text()) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_run_says_other_failures_of_the_system_in_one_line(capsys, tmp_path):
    assert run(lambda argv: (tmp_path / ("x" * 300)).write_text("")) == 2
    assert "File name too long" in capsys.readouterr().err

    def full(argv):
        raise OSError(28, "No space left on device")

    assert run(full) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_run_keeps_the_traceback_of_a_bug():
    with pytest.raises(ZeroDivisionError):
        run(lambda argv: 1 / 0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([10**20], f"x id {10**20} is outside"), ([0, -(2**70)], "is outside"), (["a"], "whole"), ([[1], 2], "flat")],
)  # fmt: skip
def test_ids_that_no_tensor_holds_are_refused(ids, message):
    with pytest.raises(UserError, match=message):
        check_ids(ids, 10, "x")


@pytest.mark.parametrize(("ids", "told"), [([0, 99], 99), ([-3, 0], -3), ([-3, 99], -3), ([10], 10)])
def test_an_id_outside_the_pool_is_named(ids, told):
    with pytest.raises(UserError, match=rf"subset id {told} is outside the pool's 0\.\.9: were"):
        check_ids(ids, 10, "subset")
    assert check_ids([0, 9], 10, "subset").tolist() == [0, 9]
