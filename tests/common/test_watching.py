"""A process of several that fails is told of by the others, with its own error; whatever else fails tells itself."""

import contextlib
import ctypes
import time
from functools import partial

import pytest
import torch

from data_selection.common import distributed, watching
from data_selection.common.errors import UserError
from data_selection.methods.bilaf.selection import select_bilaf
from tests.support.ranks import errors_of


def out_of_memory(rank):
    with distributed.start("cpu") as world:
        world.barrier()
        if rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")
        world.sum_(torch.ones(3))


def nan_in_one_share(rank):
    features = torch.randn(40_000, 64, generator=torch.Generator().manual_seed(0))
    features[-1] = torch.nan
    with distributed.start("cpu"):
        select_bilaf(features, 20, cores=range(10))


def stuck_in_another_operation(rank):
    """gloo waits for ever for the barrier of a rank that has failed, as its process lives on."""
    watching.BEAT = 0.2
    with distributed.start("cpu") as world:
        world.barrier()
        if rank == 1:
            try:
                with watching.own_error_told(rank):
                    raise UserError("no space left")
            except UserError:
                time.sleep(30)
        world.barrier()


def holding_the_lock(rank, silence):
    """No thread of rank 1 runs for four seconds."""
    watching.BEAT = 0.2
    with distributed.start("cpu", silence) as world:
        world.barrier()
        if rank == 1:
            ctypes.PyDLL(None).sleep(4)
        world.barrier()


def test_the_first_error_is_told_by_all(tmp_path):
    said = errors_of(2, out_of_memory, tmp_path)
    assert said[1].startswith("OutOfMemoryError: CUDA out of memory")
    assert said[0] == (
        "error: another process of this run has ended (rank 1: OutOfMemoryError: CUDA out of memory. Tried to allocate "
        "2.00 GiB.)\n"
    )


def test_an_error_of_ones_own_is_told_as_it_is():
    with pytest.raises(RuntimeError, match="Invalid scalar type"), watching.broken_by_others():
        raise RuntimeError("Invalid scalar type")


def test_a_value_that_one_rank_meets(tmp_path):
    said = errors_of(2, nan_in_one_share, tmp_path)
    first = next(text for text in said if "another process" not in text)
    assert "row 39999" in first
    assert "39999" in next(text for text in said if text != first)


def test_who_waits_for_one_that_has_failed_ends_too(tmp_path):
    began = time.monotonic()
    with contextlib.suppress(torch.multiprocessing.ProcessExitedException):
        errors_of(2, stuck_in_another_operation, tmp_path)
    assert "(rank 1: no space left): this one ends too" in (tmp_path / "said_0").read_text()
    assert time.monotonic() - began < 25


@pytest.mark.parametrize("silence", [1, 20])
def test_a_rank_may_be_silent_for_so_long(silence, tmp_path):
    with contextlib.suppress(torch.multiprocessing.ProcessExitedException):
        errors_of(2, partial(holding_the_lock, silence=silence), tmp_path)
    said = (tmp_path / "said_0").read_text()
    assert ("stands still (2): this one ends too" in said) == (silence == 1)
