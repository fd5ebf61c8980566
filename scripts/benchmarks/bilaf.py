"""Time of BiLAF's boundary stage: the fast path against the plain-loop version, and at ImageNet size.

python scripts/benchmark.py bilaf --size cifar

The cores are random images: which they are matters little for the time.
"""

import argparse
import dataclasses
import gc
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data_selection.commands.shared import times
from data_selection.common.distributed import pick_device
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.configs import BILAF_PRESETS as PRESETS
from scripts.benchmarks.activeft import anew, high_water
from tests.support.oracles_bilaf import released_program

SIZES = {  # images, [(cores, budget)], compared with the plain loops
    "cifar": (50_000, [(250, 1_000), (50, 500), (250, 5_000)], True),
    "imagenet": (1_281_167, [(6_405, 12_811), (6_405, 64_058)], False),
}
DIMENSIONS = 384
GROUPS = 1000  # clusters of the made pool
CHUNK = 20_000
COLUMNS = (
    "images", "cores", "budget", "variant", "seconds", "processor s", "plain loops, s", "their processor s",
    "times faster", "same list", "peak GB",
)  # fmt: skip


def build_parser():
    parser = argparse.ArgumentParser(description="Time of BiLAF's boundary stage on a made pool of 384 dimensions.")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all", help="pool of CIFAR's or ImageNet's size")
    parser.add_argument("--variant", choices=["paper", "released", "both"], default="both", help="algorithms to time")
    parser.add_argument("--pool", type=Path, help="array (images, dimensions) in an .npy file to measure on instead")
    parser.add_argument("--images", type=int, help="use only so many images and the same share of cores and budget")
    parser.add_argument("--threads", type=int, help="processor cores to use (default: PyTorch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--runs", type=times, default=1, help="runs of the fast path; the best counts")
    parser.add_argument("--max_memory", type=float, help="working memory in GB")
    return parser


def main(argv=None):
    """Print a Markdown table: wall and processor seconds of each case and variant, and peak memory."""
    args = build_parser().parse_args(argv)
    args.device = str(pick_device(args.device))
    if args.threads:
        torch.set_num_threads(args.threads)
    variants = ["released", "paper"] if args.variant == "both" else [args.variant]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for size in SIZES if args.size == "all" else [args.size]:
        images, cases, compare = SIZES[size]
        scale = (args.images or images) / images
        with tempfile.TemporaryDirectory() as folder:
            if args.pool:
                features = np.load(args.pool, mmap_mode="r", allow_pickle=False)[: round(images * scale)]
            else:
                features = make_pool(Path(folder) / "pool.npy", round(images * scale))
            for cores, budget in cases:
                cores, budget = max(1, round(cores * scale)), max(1, round(budget * scale))
                for variant in variants:
                    print(row(features, cores, budget, variant, compare and variant == "released", args), flush=True)
            del features
            gc.collect()


def make_pool(path, count):
    """A memory map (count, 384) float32 of unequal clusters in a space of falling variance, in chunks."""
    rng = np.random.default_rng(0)
    scale = np.linspace(1.5, 0.1, DIMENSIONS, dtype=np.float32)
    centres = rng.standard_normal((GROUPS, DIMENSIONS), dtype=np.float32) * scale
    share = rng.dirichlet(np.full(GROUPS, 3.0))
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, DIMENSIONS))
    for start in range(0, count, CHUNK):
        group = rng.choice(GROUPS, size=min(CHUNK, count - start), p=share)
        noise = rng.standard_normal((len(group), DIMENSIONS), dtype=np.float32)
        table[start : start + len(group)] = centres[group] + noise * scale
    del table
    return np.load(path, mmap_mode="r")


def row(features, cores, budget, variant, compare, args):
    """One line of the table; the plain loops run in the same process, right after the fast path."""
    chosen = np.random.default_rng(1).permutation(len(features))[:cores].tolist()
    config = dataclasses.replace(PRESETS[variant], max_memory=args.max_memory)
    anew()  # of this row alone, and not the pages of a pool that was made
    runs = [
        timed(select_bilaf, features, budget, cores=chosen, config=config, device=args.device) for _ in range(args.runs)
    ]
    wall, processor, ids = min(runs, key=lambda run: run[0])
    peak = high_water() / 1e3 * 1.048576
    plain = ["-"] * 4
    if compare:
        slow, work, expected = timed(released_program, features, chosen, budget)
        distinct = len(set(expected)) == budget
        same = "yes" if ids.tolist() == expected else "NO" if distinct else "plain repeats"
        plain = [f"{slow:.1f}", f"{work:.1f}", f"{slow / wall:.0f}", same]
    cells = [
        f"{len(features):,}",
        cores,
        f"{budget:,}",
        variant,
        f"{wall:.2f}",
        f"{processor:.2f}",
        *plain,
        f"{peak:.1f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def timed(function, *args, **kwargs):
    """(wall seconds, processor seconds, result) of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor, result
