"""Speed of the finetuning trainer: against the released program's structure, and against a bare training step.

python scripts/benchmark.py trainer
python scripts/benchmark.py trainer --images --model tf_efficientnet_lite0 --data_path c10 --input_size 128 --batch 32
"""

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from data_selection.common.distributed import World, pick_device
from data_selection.embedding.backbones import DEMO_WEIGHTS, build_model, load_weights
from data_selection.embedding.forward import write_out_attention
from data_selection.images import pools
from deit.datasets import prepare
from deit.engine import train_one_epoch
from deit.learner.building import SMALL_GREY, build_learner, make_pipeline, memory_layout, resolve
from deit.options import parse
from deit.runs.meters import RunLog
from deit.samplers import epoch_order, plan_epoch
from deit.samples.sources import open_images, where
from deit.trainer import train
from scripts.benchmarks.activeft import Clock
from tests.support.oracles_trainer import bare_step, released_program

INTERVAL = 50  # epochs between evaluations, as the papers' command has it
BATCH = 256


def main(argv=None):
    """Print two Markdown tables: epochs per second, and seconds per step."""
    parser = argparse.ArgumentParser(description="Speed of the trainer on the demo ViT, on a CPU.")
    parser.add_argument("--images", type=int, nargs="*", default=[100, 500, 2500], help="sizes of the subset")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each program, in turn; medians count")
    parser.add_argument("--workers", type=int, default=16, help="of the released program; 16 is its default")
    parser.add_argument(
        "--amp", nargs="+", choices=("off", "bf16"), default=["off", "bf16"], help="precisions to measure"
    )
    parser.add_argument("--model", help="whose steps to measure, a timm name; default: demo_vit")
    parser.add_argument("--data_path", type=Path, help="folder with train/CLASS and val/CLASS; default: DEMO")
    parser.add_argument("--input_size", type=int, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=BATCH, help="images in a step")
    parser.add_argument("--threads", type=int, help="processor cores to use (default: PyTorch's choice)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.images:
        print_epochs(args)
    print("\n| precision | bare step, s | step of the trainer, s | ratio |\n|---|---|---|---|")
    given = (("--model", args.model), ("--data-path", args.data_path), ("--input-size", args.input_size))
    words = ["--data-set", "FOLDER" if args.data_path else "DEMO"]
    words += [str(part) for flag, value in given if value for part in (flag, value)]
    for amp in args.amp:
        times = zip(*step_times(amp, args.rounds, words=words, size=args.batch), strict=True)
        bare, ours = map(statistics.median, times)
        print(f"| {amp} | {bare:.4f} | {ours:.4f} | {ours / bare:.3f} |", flush=True)


def print_epochs(args):
    """The first table."""
    print("| images | released, epochs/s | " + " | ".join(f"{amp}, epochs/s | times" for amp in args.amp) + " |")
    print("|---" * (2 + 2 * len(args.amp)) + "|")
    for count in args.images:
        print(row(count, args), flush=True)


def row(count, args):
    """One line of the first table; the programs take turns, after one epoch of each that does not count."""
    ids = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:count].tolist()
    released(ids, 1, args.workers)
    for amp in args.amp:
        product(ids, 1, amp)
    rounds = [
        [released(ids, args.epochs, args.workers), *(product(ids, args.epochs, amp) for amp in args.amp)]
        for _ in range(args.rounds)
    ]
    theirs, *ours = (1 / statistics.median(times) for times in zip(*rounds, strict=True))
    return f"| {count:,} | {theirs:.2f} | " + " | ".join(f"{x:.2f} | {x / theirs:.1f}" for x in ours) + " |"


def demo_pools():
    arrays = pools.load_demo()
    return [
        pools.Pool(arrays=arrays[f"{split}_images"], labels=arrays[f"{split}_labels"], classes=10)
        for split in ("train", "test")
    ]


def demo_model():
    """The demo ViT with its weights, as the trainer starts it."""
    model = build_model("demo_vit", 10, drop_path_rate=0.1)
    load_weights(model, DEMO_WEIGHTS, allow_missing=("head.*",), log=lambda _: None)
    return model


def released(ids, epochs, workers):
    """Seconds per epoch of the released program, the share of an evaluation every 50 epochs included."""
    train_pool, test_pool = demo_pools()
    stamps = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        released_program(
            demo_model(), train_pool, ids, test_pool, epochs + 1, folder, size=28, mean=SMALL_GREY.mean,
            std=SMALL_GREY.std, batch=BATCH, workers=workers, eval_interval=epochs + 1,
            on_epoch=lambda: stamps.append(time.perf_counter()),
        )  # fmt: skip
    *times, last = [after - before for before, after in itertools.pairwise(stamps)]
    epoch = statistics.mean(times)
    return epoch + max(0.0, last - epoch) / INTERVAL


def product(ids, epochs, amp):
    """Seconds per epoch of the trainer, its share of evaluation and checkpoint every 50 epochs included."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "subset.json").write_text(json.dumps(ids))
        words = ["--data-set", "DEMOSUBSET", "--recipe", "paper", "--subset_ids", f"{folder}/subset.json"]
        words += ["--epochs", str(epochs), "--batch-size", str(BATCH), "--eval_interval", str(INTERVAL)]
        words += ["--clip-grad", "2.0", "--amp", amp]
        with contextlib.redirect_stdout(None):
            result = train(parse([*words, "--device", "cpu", "--output_dir", f"{folder}/out"]))
    return result["train_seconds"] / epochs + (result["seconds"] - result["train_seconds"]) / INTERVAL


def step_times(amp, rounds, epochs=4, world=None, words=("--data-set", "DEMO"), size=BATCH):
    """(seconds of a bare step, of a step of the trainer) of the same model and images a process, in turn.

    words: flags of the trainer that say what is trained on what; size: images in a step of a process.
    """
    world, log = world or World(0, 1, pick_device("cpu")), RunLog("", False)
    args = parse([*words, "--recipe", "paper", "--amp", amp, "--clip-grad", "2.0", "--batch-size", str(size)])
    name, defaults = resolve(args)
    pool, _ = open_images(name, *where(args))
    batch = size * world.size
    data = prepare(pool, range(3 * batch), make_pipeline(args, defaults), world.device, train=True)
    learner = build_learner(args, world, pool.classes, batch, 1, log, "none")
    model = (
        build_model(args.model, pool.classes, img_size=args.input_size, drop_path_rate=args.drop_path)
        .train()
        .to(world.device)
    )
    model.to(memory_format=memory_layout(model))
    if learner.amp is not None and world.device.type == "cpu":
        write_out_attention(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for epoch in range(rounds * epochs + 1):
        steps = plan_epoch(epoch_order(len(data), epoch, repeated=False), batch, size, world.rank, world.size)
        images, labels = next(data.augmented(steps[0].parts, epoch))
        clock = Clock(world.device)
        for _ in steps:
            bare_step(model, images, labels, optimizer, learner.amp)
        bare = clock.lap()[0] / len(steps)
        train_one_epoch(learner, data, steps, epoch, classes=pool.classes, seed=0, clip_grad=2.0)
        ours = clock.lap()[0] / len(steps)
        if epoch:  # the first one warms up
            yield bare, ours
