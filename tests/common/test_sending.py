"""Tensors that travel to a GPU together arrive as they are."""

import pytest
import torch

from data_selection.common.sending import sent
from tests.support.pretend_cuda import pretended

SOME = (
    torch.arange(5), torch.tensor([True, False, True]), torch.rand(2, 3), torch.empty(0, 4), torch.tensor(7.5),
    torch.rand(3, 4).double().T, torch.tensor([1, 2, 3], dtype=torch.uint8),
)  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_as_they_are(device):
    with pretended() as card:
        there = sent(torch.device(device), *SOME)
        assert {tensor.device.type for tensor in there} == {device}
        found = [tensor.cpu() for tensor in there]
        copies = sum(card.waits.values())
    for one, other in zip(SOME, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert copies <= len(SOME)  # those back


def test_on_the_cpu_nothing_is_copied():
    assert all(one is other for one, other in zip(SOME, sent(torch.device("cpu"), *SOME), strict=True))


def test_nobody_waits():
    with pretended() as card:
        sent(torch.device("cuda"), *SOME)
    assert not card.waits
