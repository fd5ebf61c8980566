"""The whole main job on the embedded data: embed, choose 100 of 10,000 images, judge, finetune, show.

./scripts/quickstart.sh sets up the environment and calls this; everything is written to outputs/quickstart.
"""

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.annotation.run_folder import PAGE
from data_selection.commands.extract import main_extract
from data_selection.commands.shared import add_device, bar_factory, make_parser
from data_selection.common.distributed import pick_device, start
from data_selection.common.errors import UserError, run
from data_selection.common.feature_table import load_features
from data_selection.common.files import atomic_write, read_json
from data_selection.common.progress import open_bar
from data_selection.common.subset_files import ROOT, describe, save_subset, versions
from data_selection.common.system import ended
from data_selection.images.pools import load_demo
from data_selection.judging.evaluation import judge_subset, mean_sd
from data_selection.judging.report import draw_selections, markdown_table
from data_selection.methods.table import METHODS
from scripts.demo.demo_run import make_run

CORES = 50  # of BiLAF
PROCESSES = 2  # of the finetuning run
PYTHON = os.path.relpath(sys.executable, ROOT) if sys.executable.startswith(f"{ROOT}/") else sys.executable
METHOD_NAMES = ("random", "activeft", "bilaf")


def show(*arguments):
    """Print a command as the user would type it from the repository root. Returns its words."""
    words = [str(word) for word in arguments]
    shown = " ".join(str(Path(word).relative_to(ROOT)) if word.startswith(f"{ROOT}/") else word for word in words)
    print(f"\n$ {PYTHON} {shown}", flush=True)
    return words


def command(*arguments, **variables):
    """Show a command, run it, stop where it fails."""
    words = show(*arguments)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | variables)
    if done.returncode:
        raise UserError(f"the command above {ended(done.returncode)}")


def free_port():
    """A TCP port nobody listens on, so that two quickstarts do not meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def choose_one(features, method, budget, seed, device):
    """(ids, settings) of one selection on a feature file. Settings are the config's fields, for the record."""
    config = METHODS[method].config()
    if method == "bilaf":
        config = dataclasses.replace(config, core_number=CORES)
    ids = METHODS[method].select(load_features(features).features, budget, config=config, seed=seed, device=device)
    return ids, dataclasses.asdict(config)


def choose(table, budget, seeds, world, folder, pool):
    """Choose with each method and seed; the lists are written to folder. Returns {method: [ids of each seed]}.

    pool: an executor, whose processes share the selections; None: one after the other, in this process.
    """
    tasks = [(method, seed) for method in METHOD_NAMES[::-1] for seed in seeds]  # the longest first
    with open_bar(bar_factory(world), len(tasks), "choosing", "subset") as bar:
        if pool is None:
            found = (choose_one(table.path, method, budget, seed, world.device) for method, seed in tasks)
        else:
            words = [(table.path, method, budget, seed, "cpu") for method, seed in tasks]
            found = pool.map(choose_one, *zip(*words, strict=True))
        chosen = {}
        for (method, seed), (ids, settings) in zip(tasks, found, strict=True):
            record = describe(table, method=method, config=settings, seed=seed, budget=budget)
            save_subset(folder / f"{method}_{budget}_seed_{seed}.json", ids, record)
            chosen.setdefault(method, []).append(ids)
            bar.update(1)
    return {method: chosen[method] for method in METHOD_NAMES}


def helpers(device):
    """An executor with a process of one thread for each core, up to 4, starting now; None where a GPU works."""
    if pick_device(device).type != "cpu":
        return None
    count = min(4, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
    for _ in range(count):
        pool.submit(torch.get_num_threads)
    return pool


def judge(train, test, chosen, world):
    """{method: (k-NN MeanSd, probe MeanSd)} over the seeds of chosen, percent."""
    scores = {}
    with open_bar(bar_factory(world), sum(map(len, chosen.values())), "judging", "subset") as bar:
        for method, subsets in chosen.items():
            pairs = []
            for ids in subsets:
                pairs.append(judge_subset(ids, train, test, k=5))
                bar.update(1)
            scores[method] = tuple(mean_sd(values) for values in zip(*pairs, strict=True))
    return scores


def draw(folder, chosen, args):
    """The picture of the pool with each method's first list. chosen: {name: (ids, probe accuracy of its lists)}."""
    train = load_features(folder / "DEMO_train.npy")
    draw_selections(
        folder / "chosen.png",
        train.features,
        {name: ids for name, (ids, _) in chosen.items()},
        load_demo()["train_images"].__getitem__,
        labels=train.labels,
        captions={name: f"linear probe {probe} %" for name, (_, probe) in chosen.items()},
        title=f"{args.budget} of {len(train):,} Fashion-MNIST images chosen without labels "
        f"(mean ± sd over {args.seeds} seeds; pictures: seed 0)",
    )


def finetune(subset, folder, epochs, device):
    """Finetune the demo backbone on a subset with two processes; returns the content of result.json.

    epochs: a number, or `auto`. In float32, so that every processor gives the same to rounding.
    """
    if torch.cuda.device_count() < PROCESSES:  # nccl wants a GPU for each process
        device = "cpu"
    threads = str(max(1, (os.cpu_count() or 1) // PROCESSES))  # unset, torchrun takes 1 and prints a banner about it
    command(
        "-m", "torch.distributed.run", f"--nproc_per_node={PROCESSES}", f"--master_port={free_port()}",
        "deit/main.py", "--data-set", "DEMOSUBSET", "--subset_ids", subset, "--epochs", epochs, "--amp", "off",
        "--device", device, "--output_dir", folder, OMP_NUM_THREADS=threads,
    )  # fmt: skip
    return read_json(folder / "result.json")


def build_parser():
    parser = make_parser("Run the main job on the embedded Fashion-MNIST pool and show what it gives.")
    parser.add_argument("--budget", type=int, default=100, help="images to annotate, of 10,000")
    parser.add_argument("--seeds", type=int, default=5, help="selections per method")
    parser.add_argument("--epochs", default="auto", help="of the finetuning run; auto: by the number of labels")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "quickstart", help="where results go")
    add_device(parser)
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    folder = args.output_dir.absolute()
    began = time.monotonic()
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: at least 1 is needed")
    if args.budget <= CORES:
        raise UserError(f"--budget {args.budget} must exceed BiLAF's {CORES} cores")
    pool = helpers(args.device)
    for split in ("train", "test"):
        words = show(
            "data_selection/extract_feature.py", "--dataset", "DEMO", "--split", split,
            "--output_dir", folder, "--device", args.device, "--amp", "off",
        )  # fmt: skip
        main_extract(words[1:])  # in this process, which has PyTorch already
    with start(args.device) as world:
        train, test = (load_features(folder / f"DEMO_{split}.npy") for split in ("train", "test"))
        print(f"\nchoosing {args.budget} of {len(train)} images: {', '.join(METHOD_NAMES)}; {args.seeds} seeds each")
        chosen = choose(train, args.budget, range(args.seeds), world, folder, pool)
        scores = judge(train, test, chosen, world)
        names = {"random": "random", "activeft": "ActiveFT", "bilaf": f"BiLAF ({CORES} cores)"}
        table = markdown_table(
            ["chosen by", "linear probe, %", "5-NN, %"],
            [[names[method], probe, knn] for method, (knn, probe) in scores.items()],
        )
        summary = (
            f"Accuracy on {len(test):,} test images with {args.budget} labels, mean ± sd over {args.seeds} seeds:"
            f"\n\n{table}\n"
        )
        print(f"\n{summary}")
    drawing = (
        folder,
        {names[method]: (subsets[0].tolist(), scores[method][1]) for method, subsets in chosen.items()},
        args,
    )
    drawn = pool.submit(draw, *drawing) if pool else draw(*drawing)
    result = finetune(folder / f"activeft_{args.budget}_seed_0.json", folder / "finetune", args.epochs, args.device)
    if pool:
        drawn.result()
        pool.shutdown()
    kept = "the head alone is kept" if (result["verdict"] or {}).get("kept") == "probe" else "every weight is trained"
    told = (
        f"Finetuning on ActiveFT's list (seed 0, recipe few-shot, two processes): {result['last']['acc1']:.2f} %; "
        f"cross-validation on the labels says that {kept}."
    )
    with atomic_write(folder / "result.md", "w") as handle:
        handle.write(f"{summary}\n{told}\n\n{json.dumps(versions())}\n")
    print(f"\n{summary}\n{told}\n")
    print(f"pictures in {folder / 'chosen.png'}, lists and table beside it; {time.monotonic() - began:.0f} s")
    run_folder = make_run(folder / "mine", device=args.device)
    shown = run_folder.relative_to(ROOT) if run_folder.is_relative_to(ROOT) else run_folder
    print(
        f"\nThe same on images of your own is three commands. The first has just been run on a part of the demo pool "
        f"as PNG files, from {ROOT}:\n"
        f"  {PYTHON} scripts/choose_images.py {shown.parent}/images --budget 100 --out {shown} --model demo_vit\n"
        f"Label them in {run_folder / PAGE} (or take {shown.parent}/labels.csv, which is filled in), then:\n"
        f"  {PYTHON} scripts/train_on_labels.py {shown} --labels {shown.parent}/labels.csv\n"
        f"  {PYTHON} scripts/predict.py {shown} {shown.parent}/images\n"
        f"The second leaves {shown}/report.html, the third {shown}/predictions.csv."
    )


if __name__ == "__main__":
    sys.exit(run(main))
