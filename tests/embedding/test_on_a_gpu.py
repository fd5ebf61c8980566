"""Extraction on a pretended GPU: nothing that CUDA refuses, the CPU's features, no wait for a batch."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.common.distributed import World
from data_selection.embedding.backbones import build_model
from data_selection.embedding.forward import class_tokens, pooled
from data_selection.embedding.preprocessing import Preprocess
from data_selection.images.pools import open_pool
from tests.support.extraction_cases import save, small_pool
from tests.support.pretend_cuda import pretended


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 30 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def vit():
    torch.manual_seed(0)
    return build_model("demo_vit").eval()


def convolutions():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 5, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3)
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


def blocks(model, images):
    return class_tokens(model, images, n_last_blocks=2)


def averaged(model, images):
    return class_tokens(model, images, avgpool_patchtokens=True)


CASES = {  # the model, and what extract is told
    "float32": (vit, {}),
    "bf16": (vit, {"amp_dtype": torch.bfloat16}),
    "fp16": (vit, {"amp_dtype": torch.float16}),
    "blocks": (vit, {"amp_dtype": torch.bfloat16, "embed": blocks}),
    "averaged": (vit, {"embed": averaged}),
    "resized": (vit, {"files": True, "preprocess": Preprocess(28, (0.3,) * 3, (0.3,) * 3)}),
    "pooled": (convolutions, {"files": True, "preprocess": Preprocess(32), "embed": pooled}),
}
GPU = World(0, 1, torch.device("cuda", 0))


def features(case, files, path, count=70, **more):
    model, options = CASES[case]
    options = dict(options)
    pool = open_pool(str(files), "train") if options.pop("files", False) else small_pool(count)
    return save(pool, model(), path, **options, **more)


@pytest.mark.parametrize("case", CASES)
def test_the_features_of_the_cpu(case, files, tmp_path):
    expected = features(case, files, tmp_path / "cpu.npy", batch_size=5)
    with pretended() as card:
        found = features(case, files, tmp_path / "gpu.npy", batch_size=5, world=GPU)
    assert card.faults == []
    rounding = 1e-5 if "amp_dtype" not in CASES[case][1] else 0.05
    assert np.abs(found - expected).max() < rounding * np.abs(expected[:, :-1]).max()


def test_no_batch_is_waited_for(files, tmp_path):
    counted = []
    for count in (48, 64):  # batches of 16
        with pretended() as card:
            features("bf16", files, tmp_path / f"{count}.npy", count=count, world=GPU)
        counted.append((Counter(card.waits), sum(card.launches.values())))
    waits = counted[1][0] - counted[0][0]
    assert [kind for kind, _ in waits] == ["event"]  # the features of an earlier batch
    assert sum(waits.values()) == 1
    assert counted[1][1] - counted[0][1] < 250
