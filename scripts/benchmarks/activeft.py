"""ActiveFT: seconds per iteration against the textbook version in tests/support/oracles.py, memory, ImageNet size."""

import multiprocessing
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data_selection.commands.shared import make_parser
from data_selection.common.distributed import pick_device
from data_selection.common.feature_table import load_features
from data_selection.common.files import atomic_write
from data_selection.methods.activeft import select_activeft
from data_selection.methods.configs import ACTIVEFT_PRESETS as PRESETS
from data_selection.methods.configs import ActiveFTConfig
from tests.support import oracles

SAMPLES = 5  # textbook iterations timed among ours
IMAGENET = (1_281_167, 384, 12_811)  # images, dimensions, budget


def build_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, help="folder of the Fashion-MNIST idx files: makes the pool of random convolutions")
    add("--features", type=Path, help="feature file to measure on instead")
    add("--rows", type=int, default=50_000, help="pool images")
    add("--budgets", type=int, nargs="+", default=[250, 1000, 5000], help="images to choose")
    add("--iterations", type=int, help="steps of our run, whose mean counts (default: 300; ImageNet's preset: 100)")
    add("--losses", action="store_true", help="run the textbook version to the end as well and compare the last loss")
    add("--imagenet", action="store_true", help="measure a synthetic pool of ImageNet's size instead")
    add("--workdir", type=Path, default=Path("benchmark"), help="folder for made-up pools (ImageNet: 2 GB)")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--device", default="cpu", help="cpu or cuda; the time of a step includes the reading of its loss")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    args.device = str(pick_device(args.device))
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.imagenet:
        return imagenet(args)
    args.iterations = args.iterations or 300
    rows, what = pool(args)
    rows = rows.to(args.device)
    where = f"{args.threads} CPU threads" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"Pool: {what}, {len(rows)} x {rows.shape[1]}; {where}, {args.iterations} iterations.\n")
    print("| budget | ours s/it | textbook s/it | ratio (wall) | ratio (CPU) | last loss / textbook's | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for budget in args.budgets:
        print(measure(rows, budget, args), flush=True)
    return 0


def pool(args):
    """(features (N, D) float32 tensor, what they are)."""
    if args.features:
        return load_features(args.features).tensor()[: args.rows], args.features.name
    if args.source:
        return convolutions(
            args.source, args.rows
        ), "Fashion-MNIST by 96 random 5 x 5 convolutions, averaged over quarters"
    generator = np.random.default_rng(0)
    return torch.from_numpy(next(clustered(generator, args.rows, 384, args.rows))), "synthetic clusters"


def convolutions(folder, count):
    """Random-convolution features of Fashion-MNIST training images, (count, 384): correlated as a network's are."""
    from data_selection.images.dataset_files import find_idx, read_idx

    images = read_idx(find_idx(folder, "train-images-idx3-ubyte"))[:count, None]
    kernels = torch.randn(96, 1, 5, 5, generator=torch.Generator().manual_seed(0)) / 5
    parts = []
    for some in torch.from_numpy(images).split(1000):
        maps = F.conv2d((some.float() / 255 - 0.286) / 0.353, kernels, stride=2).relu()
        parts.append(F.adaptive_avg_pool2d(maps, 2).flatten(1))
    return torch.cat(parts)


def clustered(generator, count, dimensions, block):
    """Blocks of synthetic features: 1,000 clusters, variances that fall as 1 / rank, as a network's features have."""
    scale = (1 / np.sqrt(np.arange(1, dimensions + 1))).astype(np.float32)
    centres = generator.normal(size=(1000, dimensions)).astype(np.float32) * scale
    for start in range(0, count, block):
        size = min(block, count - start)
        noise = generator.standard_normal((size, dimensions), dtype=np.float32) * scale
        yield centres[generator.integers(0, 1000, size)] + 0.7 * noise


def measure(features, budget, args):
    """One line of the table: our whole run with single textbook iterations timed in between."""
    unit = F.normalize(features, dim=1)
    leaf = unit[:budget].clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=1e-3)
    textbook_step(unit, leaf, adam)  # the first one imports and allocates
    ours, textbook, losses = [], [], []
    every = max(1, args.iterations // SAMPLES)
    clock = Clock(features.device)

    def on_iteration(iteration, _lr, loss):
        ours.append(clock.lap())
        losses.append(loss)
        if iteration % every == every // 2:
            textbook_step(unit, leaf, adam)
            textbook.append(clock.lap())

    select_activeft(features, budget, config=ActiveFTConfig(max_iter=args.iterations), on_iteration=on_iteration)
    wall, cpu = (statistics.fmean(times[i] for times in ours) for i in (0, 1))
    wall_textbook, cpu_textbook = (statistics.median(times[i] for times in textbook) for i in (0, 1))
    ratio = "-"
    if args.losses:
        start = torch.tensor(random.Random(0).sample(range(len(unit)), budget), device=unit.device)
        ratio = f"{losses[-1] / oracles.optimise(unit, unit[start], args.iterations)[0][-1]:.6f}"
    return (
        f"| {budget} | {wall:.3f} | {wall_textbook:.3f} | {wall_textbook / wall:.1f} | {cpu_textbook / cpu:.1f} "
        f"| {ratio} | {memory(features, budget, args.workdir):.0f} MB |"
    )


def textbook_step(unit, leaf, adam):
    loss = oracles.activeft_loss(unit, leaf)
    adam.zero_grad()
    loss.backward()
    adam.step()


class Clock:
    """Wall and CPU seconds since the last lap; CPU seconds hardly suffer from other programs on the machine.

    device: what has to be done with its work before the time is read.
    """

    def __init__(self, device="cpu"):
        self.device = torch.device(device)
        self.lap()

    def lap(self):
        if self.device.type == "cuda":  # a call returns before the card has ended
            torch.cuda.synchronize(self.device)
        before, self.now = getattr(self, "now", (0, 0)), (time.perf_counter(), time.process_time())
        return self.now[0] - before[0], self.now[1] - before[1]


def memory(features, budget, workdir):
    """Peak memory in MB that 30 iterations and the assignment need beyond the features, in a fresh process."""
    with tempfile.TemporaryDirectory(dir=workdir) as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        path = Path(folder) / "features.npy"
        np.save(path, features.cpu().numpy(), allow_pickle=False)
        return pool.apply(peak, (path, budget, str(features.device)))


def peak(path, budget, device):
    features = torch.from_numpy(np.load(path, allow_pickle=False)).to(device)
    before = anew(device)
    select_activeft(features, budget, config=ActiveFTConfig(max_iter=30))
    return high_water(device) - before


def anew(device="cpu"):
    """high_water from here on: without, what has been freed before counts, and hides as much of what comes."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return high_water(device)


def high_water(device="cpu"):
    """Peak memory in MB: the GPU's, or this process's resident memory (ru_maxrss would begin with the parent's)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def imagenet(args):
    """Time and peak memory of the ImageNet preset on a memory-mapped synthetic pool."""
    count, dimensions, budget = IMAGENET
    path = args.workdir / "synthetic_imagenet.npy"
    if not path.exists():
        with atomic_write(path) as handle:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimensions)}
            np.lib.format.write_array_header_2_0(handle, header)
            for block in clustered(np.random.default_rng(0), count, dimensions, 50_000):
                handle.write(block.astype("<f4").tobytes())
    config = PRESETS["activeft_imagenet"].config
    if args.iterations:
        config = ActiveFTConfig(max_iter=args.iterations, batch_size=config.batch_size)
    laps, clock = [], Clock(args.device)
    began = clock.now
    features = np.load(path, mmap_mode="r", allow_pickle=False)
    device = torch.device(args.device)
    select_activeft(features, budget, config=config, device=device, on_iteration=lambda *_: laps.append(clock.lap()))
    assignment = clock.lap()
    wall, cpu = (after - before for after, before in zip(clock.now, began, strict=True))
    print("| pool | budget | iterations | total s (CPU s) | s/it (CPU s) | assignment s (CPU s) | peak memory |")
    print("|---|---|---|---|---|---|---|")
    steps = [statistics.median(lap[i] for lap in laps) for i in (0, 1)]
    print(
        f"| {count} x {dimensions} | {budget} | {len(laps)} | {wall:.0f} ({cpu:.0f}) | {steps[0]:.2f} ({steps[1]:.2f}) "
        f"| {assignment[0]:.0f} ({assignment[1]:.0f}) | {high_water(args.device) / 1024:.1f} GB |"
    )
    return 0
