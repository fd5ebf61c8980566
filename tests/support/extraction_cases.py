"""Helpers of the extraction tests: a small pool, extraction with defaults, and the plain version as the oracle."""

import numpy as np
import torch

from data_selection.common.distributed import World
from data_selection.embedding.extraction import extract
from data_selection.embedding.preprocessing import DEMO_PREPROCESS
from data_selection.images.pools import FASHION_MEAN, FASHION_STD, Pool, load_demo

ALONE = World(0, 1, torch.device("cpu"))
COUNT = 70  # images of the small pools


def small_pool(count=COUNT):
    demo = load_demo()
    return Pool(arrays=demo["train_images"][:count], labels=demo["train_labels"][:count], classes=10)


def oracle(model, images):
    """Plain extraction: one image at a time, timm's forward."""
    rows = []
    for image in images:
        x = (torch.from_numpy(image).float() / 255 - FASHION_MEAN) / FASHION_STD
        with torch.inference_mode():
            rows.append(model(x.expand(1, 3, 28, 28))[0].numpy())
    return np.stack(rows)


def save(pool, model, path, **options):
    options = {"world": ALONE, "preprocess": DEMO_PREPROCESS, "batch_size": 16, "log": lambda line: None} | options
    extract(pool, model, path, **options)
    return np.load(path)


def command(weights, out, *flags, dataset):
    return ["--dataset", str(dataset), "--arch", "demo_vit", "--pretrained_weights", weights, "--output_dir", str(out),
            "--device", "cpu", "--num_workers", "0", "--amp", "off", *flags]  # fmt: skip
