"""Throughput of feature extraction against the pure forward pass and the plain approach, and peak memory.

python scripts/benchmark.py extraction
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from data_selection.commands.run_extract import AMP, cores, pick_amp
from data_selection.commands.shared import add_device, times
from data_selection.common.distributed import World, pick_device
from data_selection.embedding.backbones import build_model
from data_selection.embedding.extraction import extract, images_at_once
from data_selection.embedding.forward import class_tokens, ready
from data_selection.embedding.preprocessing import DEMO_PREPROCESS, DINO_PREPROCESS
from data_selection.images.pools import Pool, load_demo, open_pool
from scripts.benchmarks.activeft import anew, high_water

CASES = {  # what, backbone, preprocessing, images of every round
    "demo": ("demo pool, 28 x 28", "demo_vit", DEMO_PREPROCESS, 10_000),
    "cifar": ("CIFAR-shaped, 32 x 32", "vit_small", DINO_PREPROCESS, 128),
    "jpeg": ("JPEG files, 500 x 375", "vit_small", DINO_PREPROCESS, 128),
}
MEMORY_IMAGES = (10_000, 100_000)
COLUMNS = (
    "pool", "backbone", "precision", "batch", "pure forward, images/s", "extraction, images/s", "share",
    "plain (float32), images/s", "times faster",
)  # fmt: skip


def main(argv=None):
    """Print Markdown tables: the rates of each case, and peak memory beyond the start for two sizes of pool."""
    parser = argparse.ArgumentParser(description="Throughput and memory of feature extraction.")
    parser.add_argument("--case", nargs="+", choices=[*CASES, "memory"], default=["demo", "cifar", "memory"],
                        help="pools to measure; memory: how it grows with the pool")  # fmt: skip
    parser.add_argument("--images", type=int, help="images of every round (default: the demo pool, 128 of the others)")
    parser.add_argument("--rounds", type=times, default=3, help="each measures all three in turn; the median counts")
    parser.add_argument("--batch", type=int, default=128, help="images in a forward pass")
    parser.add_argument("--amp", default="auto", choices=["auto", *AMP], help="precision of all but the plain approach")
    parser.add_argument("--compile", action="store_true", help="torch.compile, for all but the plain approach")
    parser.add_argument("--threads", type=int, help="processor cores to use (default: PyTorch's choice)")
    add_device(parser)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cases = [case for case in args.case if case != "memory"]
    if cases:
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            print(row(case, args, Path(folder)), flush=True)
    if "memory" in args.case:
        print("\n| images | peak memory, MB | beyond the start, MB |\n|---|---|---|")
        for images in MEMORY_IMAGES:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                whole, beyond = fresh.apply(peak, (images, args.batch))
                print(f"| {images:,} | {whole:.1f} | {beyond:.1f} |", flush=True)


def row(case, args, folder):
    """One line of the table: the pure forward pass, extraction and the plain approach in turn, in every round."""
    what, arch, preprocess, images = CASES[case]
    images, world = args.images or images, World(0, 1, pick_device(args.device))
    amp, model = pick_amp(args.amp, world.device), fresh_model(arch).to(world.device)
    embed = torch.compile(class_tokens) if args.compile else class_tokens
    pool, prepared = make_pool(case, images, folder), ready(model, world.device, amp, args.compile)
    at_once = images_at_once(args.batch, preprocess.size, world.device)
    batch = torch.rand(at_once, 3, preprocess.size, preprocess.size, device=world.device)

    turn = itertools.count()  # a file for each call: beside one that is there, images would not be read anew

    def pure():
        forward(prepared, batch, images, embed, amp, world.device)

    def ours():
        extract(
            pool, model, folder / f"{case}_{next(turn)}.npy", world=world, preprocess=preprocess, batch_size=args.batch,
            num_workers=cores(), amp_dtype=amp, compiled=args.compile, log=lambda _: None,
        )  # fmt: skip

    for way in (pure, ours):
        timed(way)  # the first call compiles and allocates
    # the plain way in a process of its own, which keep_freed_memory does not reach
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as other:
        slow = (pool, arch, preprocess, args.batch, world.device)
        other.apply(plain_seconds, slow)  # as of the others, the first call does not count
        seconds = [(timed(pure), timed(ours), other.apply(plain_seconds, slow)) for _ in range(args.rounds)]
    rates = [[images / second for second in turn] for turn in seconds]
    shares = [f"{statistics.median(rate[1] / rate[i] for rate in rates):.2f}" for i in (0, 2)]
    middle = [f"{statistics.median(column):.1f}" for column in zip(*rates, strict=True)]
    cells = [what, arch, "float32" if amp is None else str(amp).removeprefix("torch."), args.batch, *middle[:2],
             shares[0], middle[2], shares[1]]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def fresh_model(arch):
    """The backbone with weights drawn at random: speed does not depend on them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(arch).eval()


def make_pool(case, images, folder):
    """The first demo images, random 32 x 32 colour images, or JPEG files of smooth noise in a new folder."""
    if case == "demo":
        return Pool(arrays=load_demo()["train_images"][:images])
    rng = np.random.default_rng(0)
    if case == "cifar":
        return Pool(arrays=rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8))
    (folder / case).mkdir()
    for i in range(images):
        small = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / case / f"{i:05}.jpg", quality=90)
    return open_pool(str(folder / case))


@torch.inference_mode()
def forward(model, batch, images, embed, amp, device):
    """The forward pass of extraction alone, on a batch that is there already, as often as `images` asks for."""
    with torch.autocast(device.type, amp, enabled=amp is not None):
        for at in range(0, images, len(batch)):
            embed(model, batch[: images - at])


@torch.inference_mode()
def plain(pool, model, preprocess, batch_size, device):
    """The plain way: each image through PIL and torchvision, float32, all features joined anew at every batch."""
    prepare = transforms.Compose([
        transforms.Resize((preprocess.size, preprocess.size), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std),
    ])  # fmt: skip
    features = torch.empty(0)
    for at in range(0, len(pool), batch_size):
        images = torch.stack([prepare(pool.image(i)) for i in range(at, min(at + batch_size, len(pool)))])
        features = torch.cat([features, model(images.to(device)).cpu()])  # timm pools these by the class token
    return features


def plain_seconds(pool, arch, preprocess, batch_size, device):
    """Wall seconds of the plain way."""
    model = fresh_model(arch).to(device)
    return timed(lambda: plain(pool, model, preprocess, batch_size, device))


def timed(function):
    """Wall seconds of a call."""
    began = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak(images, batch_size):
    """Peak memory of an extraction on the CPU in MB: of the process, and beyond what it had before."""
    image = load_demo()["train_images"][0]
    arrays = np.lib.stride_tricks.as_strided(image, (images, 28, 28), (0, *image.strides))  # takes no memory
    pool, model = Pool(arrays=arrays, labels=np.zeros(images)), fresh_model("demo_vit")
    world = World(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npy"
        before = anew()
        extract(pool, model, path, world=world, preprocess=DEMO_PREPROCESS, batch_size=batch_size, log=lambda _: 0)
        return high_water(), high_water() - before
