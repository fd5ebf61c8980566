"""Each part of the product beside what the device allows: seconds, and the least that its arithmetic and memory take.

python scripts/benchmark.py roofline --device cuda
python -m torch.distributed.run --nproc_per_node 2 scripts/benchmark.py roofline --device cuda
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data_selection.commands.run_extract import pick_amp
from data_selection.commands.shared import add_device, make_parser
from data_selection.common.distributed import World, on_main, start
from data_selection.common.precision import full_float32
from data_selection.embedding.extraction import extract, images_at_once
from data_selection.embedding.forward import class_tokens, ready
from data_selection.embedding.preprocessing import DINO_PREPROCESS
from data_selection.images.pools import Pool
from data_selection.judging.report import markdown_table
from data_selection.methods.activeft import select_activeft
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.configs import ActiveFTConfig
from data_selection.nearest.similarity import normalise
from scripts.benchmarks import extraction, trainer
from scripts.benchmarks.activeft import IMAGENET, Clock, clustered

PARTS = ("activeft", "imagenet", "bilaf", "extraction", "trainer")
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square products that give the rates
IMAGENET_BATCH = 100_000
REPEATS = 5


class Rates(NamedTuple):
    """What a device does at its best: operations a second in float32 and float64, bytes read and written a second."""

    single: float
    double: float
    memory: float


class Measured(NamedTuple):
    """Seconds of a piece of work, its operations (two per product of numbers) at which rate, bytes it must move."""

    what: str
    seconds: float
    operations: float
    rate: str
    bytes: float


def build_parser():
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "imagenet"], help="to measure")
    add("--rows", type=int, default=50_000, help="pool images")
    add("--columns", type=int, default=384, help="dimensions of their features")
    add("--budget", type=int, default=1000, help="images to choose")
    add("--iterations", type=int, default=100, help="of ActiveFT")
    add("--images", type=int, default=512, help="of an extraction by a ViT-S/16 at 224 pixels")
    add("--rounds", type=int, default=2, help="measurements of extraction and trainer; medians count")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="precision of extraction and trainer")
    add_device(parser)
    return parser


def main(argv=None):
    """Print two Markdown tables: selection beside its bounds; extraction and trainer beside the bare model."""
    args = build_parser().parse_args(argv)
    with start(args.device) as world:
        best = rates(world.device)
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
        world.say(
            f"{world.size} x {name}: {best.single / 1e12:.2f} and {best.double / 1e12:.2f} T operations/s in float32 "
            f"and float64, {best.memory / 1e9:.0f} GB/s\n"
        )
        chosen = [SELECTION[part](args, world) for part in args.parts if part in SELECTION]
        if chosen:
            head = ["part", "seconds", "by arithmetic", "by memory", "share of the bound"]
            world.say(markdown_table(head, [row(one, best, world.size) for one in chosen]))
        shares = [SHARES[part](args, world) for part in args.parts if part in SHARES]
        if shares:
            world.say("\n" + markdown_table(["part", "unit", "bare model", "ours", "share"], shares))


def row(one: Measured, best: Rates, ranks: int) -> list[str]:
    """A piece of work beside the seconds that `ranks` devices need at least."""
    bounds = one.operations / getattr(best, one.rate) / ranks, one.bytes / best.memory / ranks
    return [one.what, *(f"{value:.2g}" for value in (one.seconds, *bounds)), f"{max(bounds) / one.seconds:.2f}"]


def rates(device: torch.device) -> Rates:
    """The device's Rates, by products of square matrices and a copy."""
    side, generator = SIDE[device.type], torch.Generator().manual_seed(0)
    square = torch.randn(side, side, generator=generator).to(device)
    with full_float32():
        found = [2 * side**3 / least(lambda: a @ a, device) for a in (square, square.double())]  # noqa: B023
    wide = square.repeat(4, 1)
    target = torch.empty_like(wide)
    return Rates(*found, 2 * 4 * wide.numel() / least(lambda: target.copy_(wide), device))


def least(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds of a call."""
    work()
    clock = Clock(device)
    return min((work(), clock.lap()[0])[1] for _ in range(REPEATS))


def made_pool(args) -> torch.Tensor:
    """Synthetic features (rows, columns) float32."""
    return torch.from_numpy(next(clustered(np.random.default_rng(0), args.rows, args.columns, args.rows)))


def activeft(args, world: World) -> Measured:
    """An iteration on a pool: similarities of all rows with all centroids."""
    seconds = iteration_seconds(made_pool(args).to(world.device), args.budget, None, args.iterations, world)
    operations = 2.0 * args.rows * args.columns * args.budget
    what = f"ActiveFT, an iteration, {args.rows} x {args.columns}, {args.budget} to choose"
    return Measured(what, seconds, operations, "single", 4.0 * args.rows * args.columns)


def imagenet(args, world: World) -> Measured:
    """An iteration of the ImageNet preset, which reads a batch of the pool."""
    count, columns, budget = IMAGENET
    generator = np.random.default_rng(0)
    features = torch.empty(count, columns)
    at = 0
    for block in clustered(generator, count, columns, IMAGENET_BATCH):
        features[at : at + len(block)] = torch.from_numpy(block)
        at += len(block)
    seconds = iteration_seconds(features.to(world.device), budget, IMAGENET_BATCH, args.iterations, world)
    what = f"ActiveFT, an iteration, {IMAGENET_BATCH} of {count} x {columns}, {budget} to choose"
    return Measured(what, seconds, 2.0 * IMAGENET_BATCH * columns * budget, "single", 4.0 * IMAGENET_BATCH * columns)


def iteration_seconds(features, budget: int, batch: int | None, iterations: int, world: World) -> float:
    """Median seconds of an iteration of ActiveFT."""
    clock, laps = Clock(world.device), []
    config = ActiveFTConfig(max_iter=iterations, batch_size=batch)
    select_activeft(
        features, budget, config=config, device=world.device, on_iteration=lambda *_: laps.append(clock.lap()[0])
    )
    return statistics.median(laps)


def bilaf(args, world: World) -> Measured:
    """A boundary stage: the distances within every class, in float64."""
    features = made_pool(args).to(world.device)
    cores = torch.randperm(args.rows, generator=torch.Generator().manual_seed(0))[: max(1, args.budget // 4)]
    unit = normalise(features)
    own = torch.cat([part @ unit[cores].T for part in unit.split(10_000)]).argmax(1).bincount().double()
    clock = Clock(world.device)
    select_bilaf(features, args.budget, cores=cores.tolist(), device=world.device)
    seconds = clock.lap()[0]
    operations = 2.0 * args.columns * own.square().sum().item()
    what = f"BiLAF, {args.rows} x {args.columns}, {len(cores)} cores, {args.budget} to choose"
    return Measured(what, seconds, operations, "double", 4.0 * args.rows * args.columns)


def extraction_share(args, world: World) -> list[str]:
    """Images a second of extraction beside the bare forward pass, of random colour images of 32 pixels at 224."""
    amp, model = pick_amp(args.amp, world.device), extraction.fresh_model("vit_small").to(world.device)
    pool = extraction.make_pool("cifar", args.images, Path())
    prepared = ready(model, world.device, amp, False)
    at_once = images_at_once(128, DINO_PREPROCESS.size, world.device)
    batch = torch.rand(at_once, 3, DINO_PREPROCESS.size, DINO_PREPROCESS.size, device=world.device)
    turns = []
    with contextlib.ExitStack() as stack:
        folder = Path(on_main(world, lambda: stack.enter_context(tempfile.TemporaryDirectory())))
        for turn in range(args.rounds + 1):
            bare = bare_seconds(prepared, batch, pool, amp, world)
            turns.append((bare, extract_seconds(model, pool, amp, world, folder / f"{turn}.npy")))
        world.barrier()
    bare, ours = (statistics.median(some) for some in zip(*turns[1:], strict=True))  # the first one warms up
    per_rank = -(-args.images // world.size)
    rate, own = per_rank / bare * world.size, args.images / ours
    return ["extraction, ViT-S/16", "images/s", f"{rate:.1f}", f"{own:.1f}", f"{own / rate:.2f}"]


def bare_seconds(model, batch, pool: Pool, amp, world: World) -> float:
    clock = Clock(world.device)
    extraction.forward(model, batch, -(-len(pool) // world.size), class_tokens, amp, world.device)
    return clock.lap()[0]


def extract_seconds(model, pool: Pool, amp, world: World, path: Path) -> float:
    clock = Clock(world.device)
    extract(pool, model, path, world=world, preprocess=DINO_PREPROCESS, amp_dtype=amp, log=lambda _: None)
    return clock.lap()[0]


def trainer_share(args, world: World) -> list[str]:
    """Seconds of a step of the trainer beside a bare one of the same model and images: the device's busy share."""
    amp = args.amp
    if amp == "auto":
        amp = "off" if pick_amp(amp, world.device) is None else "bf16"
    times = zip(*trainer.step_times(amp, args.rounds, world=world), strict=True)
    bare, ours = (statistics.median(some) for some in times)
    return [f"trainer, demo ViT, {amp}", "s a step", f"{bare:.4f}", f"{ours:.4f}", f"{bare / ours:.2f}"]


SELECTION = {"activeft": activeft, "imagenet": imagenet, "bilaf": bilaf}
SHARES = {"extraction": extraction_share, "trainer": trainer_share}
