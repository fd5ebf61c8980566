"""What must be float32 is computed in float32, whatever the process is set to, and the setting comes back."""

import argparse
import os

import pytest
import torch
from torch.overrides import TorchFunctionMode

from data_selection.common.distributed import World
from data_selection.common.precision import fix_workspaces, full_float32, repeatable
from data_selection.embedding.extraction import extract
from data_selection.images.pools import open_pool
from data_selection.judging.evaluation import knn_accuracy
from data_selection.methods.table import METHODS
from data_selection.nearest.graph import nearest_neighbours
from deit import trainer
from tests.support.beliefs import beliefs

PRODUCTS = {torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.addmm, torch.nn.functional.conv2d}


def setting():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


class Products(TorchFunctionMode):
    """Notes the setting at every product."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            self.seen.add(setting())
        return function(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def _coarse():
    """A process whose products may be coarse, as NVIDIA's containers set it."""
    before = setting()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    assert setting() == ("high", True)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_full_within_and_as_it_was_after_an_error():
    with pytest.raises(AssertionError), full_float32():
        assert setting() != ("highest", False)


def embed(tmp_path):
    pool = open_pool("DEMO", "test")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 28), torch.nn.Flatten())
    pool.arrays, pool.labels = pool.arrays[:2], pool.labels[:2]
    world = World(0, 1, torch.device("cpu"))
    extract(pool, model, tmp_path / "x.npy", world=world, embed=lambda net, x: net(x), log=lambda _: None)


def select(name):
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    return lambda _: METHODS[name].select(features, 6, **beliefs(METHODS[name], features))


some = torch.eye(4)
NO_PRODUCT = ("random", "kmeans", "stratified", "zcore", "margin")  # of torch
CASES = {name: select(name) for name in METHODS if name not in NO_PRODUCT} | {
    "neighbours": lambda _: nearest_neighbours(some, 2),
    "knn": lambda _: knn_accuracy(some, torch.arange(4), some, torch.arange(4), k=1),
    "extraction": embed,
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_products(case, tmp_path):
    with Products() as products:
        case(tmp_path)
    assert products.seen == {("highest", False)}


def order():
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


def test_a_gpu_adds_in_one_order_within_and_as_it_did_after_an_error():
    before = order()
    with pytest.raises(KeyError, match="True, True, False"), repeatable(torch.device("cuda", 0)):
        raise KeyError(order())
    with repeatable(torch.device("cpu")):
        assert order() == before
    assert order() == before


def test_a_users_workspaces_stay(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fix_workspaces()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    fix_workspaces()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_trainer(monkeypatch):
    def start(*_):
        raise KeyError(setting())

    monkeypatch.setattr(trainer.distributed, "start", start)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError, match="'highest', False"):
        trainer.train(argparse.Namespace(device="cpu"))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # before anything is multiplied
