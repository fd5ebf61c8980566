"""Containers have 64 MB of shared memory: batches that may not fit go through pipes, with the same values."""

import multiprocessing.reduction
import os
import types

import numpy as np
import pytest
import torch

from data_selection.embedding import image_batches
from data_selection.embedding.image_batches import batches, stacked
from data_selection.embedding.preprocessing import DEMO_PREPROCESS
from data_selection.images.pools import open_pool
from deit.datasets import prepare
from deit.samples.batches import Part
from deit.samples.pipeline import Pipeline
from tests.support.extraction_cases import COUNT

CPU = torch.device("cpu")


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes that are free; workers inherit it. Where they are few, sending a tensor ends the worker."""

    def give(free):
        monkeypatch.setattr(image_batches.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))

        def forbidden(tensor):
            os._exit(1)  # an exception would be lost in the queue's thread, and the test wait for ever

        if free < 1e6:
            reducers = multiprocessing.reduction.ForkingPickler._extra_reducers
            monkeypatch.setitem(reducers, torch.Tensor, forbidden)

    return give


@pytest.mark.parametrize("free", [0, 1e12])
def test_extraction(folder, room, free):
    room(free)
    pool, ranges = open_pool(str(folder)), [range(0, 32), range(32, COUNT)]
    found = list(batches(pool, ranges, DEMO_PREPROCESS, None, 2, CPU))
    assert all(torch.is_tensor(images) and images.dtype == torch.uint8 for images, _ in found)
    expected = np.stack([np.asarray(pool.image(i)) for i in range(COUNT)])
    assert np.array_equal(torch.cat([images for images, _ in found]).permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("free", [0, 1e12])
def test_training(folder, room, free):
    room(free)
    pool = open_pool(str(folder))
    pool.labels = list(range(COUNT))
    pipeline = Pipeline(40, (0.5,) * 3, (0.5,) * 3, color_jitter=0.4)
    data = [prepare(pool, range(COUNT), pipeline, CPU, train=True, cache="none", workers=n) for n in (0, 2)]
    parts = [Part(*[torch.arange(at, at + 10)] * 3) for at in (0, 10)]
    try:
        for plain, sent in zip(*(images.augmented(parts, 1) for images in data), strict=True):
            assert torch.equal(plain[0], sent[0])
            assert torch.equal(plain[1], sent[1])
            assert sent[1].dtype == torch.int64
    finally:
        data[1].close()


@pytest.mark.parametrize(("free", "kind"), [(5 * 3 * 200 + 1, torch.Tensor), (5 * 3 * 200, np.ndarray)])
def test_what_counts_as_enough(room, monkeypatch, free, kind):
    """Four batches of each of three workers, and the one that is used."""
    monkeypatch.setattr(image_batches, "get_worker_info", lambda: types.SimpleNamespace(num_workers=3))
    monkeypatch.setattr(image_batches.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    monkeypatch.setattr(image_batches, "default_collate", torch.stack)
    assert isinstance(stacked([torch.zeros(100, dtype=torch.uint8)] * 2), kind)
