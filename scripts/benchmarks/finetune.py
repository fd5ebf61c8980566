"""What labels are worth under each way to use them: probes of frozen features, and the trainer's recipes and modes.

python scripts/benchmark.py finetune --train outputs/quickstart/DEMO_train.npy --test outputs/quickstart/DEMO_test.npy \
    --output_dir outputs/finetune
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from data_selection.commands.run_extract import pick_amp
from data_selection.commands.shared import make_parser
from data_selection.common.distributed import pick_device
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.common.files import atomic_write, read_json, sha256
from data_selection.common.subset_files import load_subset, save_subset, versions
from data_selection.images.record import list_digest
from data_selection.judging.evaluation import mean_sd
from data_selection.judging.experiments.store import Store
from data_selection.judging.report import markdown_table
from data_selection.judging.smoothed import choose_c, fit_probe, fit_smoothed
from data_selection.methods.table import LABEL_FREE, METHODS
from data_selection.nearest.similarity import normalise
from deit.samples.sources import open_images
from scripts.experiments.trainer import train

PROBES = ("plain probe", "smoothed probe")
PAPER = ["--recipe", "paper", "--clip-grad", "2", "--epochs", "30", "--batch-size", "32"]
SHORT = ["--folds", "0", "--epochs", "15", "--restarts", "1"]  # the few-shot recipe, but nothing is asked first
TRAINED = {
    "paper recipe, 30 epochs": PAPER,
    "few-shot": [],
    "self-train": ["--mode", "self-train"],
}
RESTARTS = {  # the same start, without asking the labels whether to finetune
    "one training": ["--folds", "0", "--restarts", "1"],
    "one of twice the epochs for 100 labels": ["--folds", "0", "--restarts", "1", "--epochs", "60"],
    "two trainings": ["--folds", "0", "--restarts", "2"],
    "three trainings": ["--folds", "0", "--restarts", "3"],
    "one training, the head as fitted": ["--folds", "0", "--restarts", "1", "--head-scale", "1", "--head-rate", "1"],
    "one training, the head from zero": ["--folds", "0", "--restarts", "1", "--head-scale", "0"],
}
BY_FEATURES = {"smoothed": ["--mode", "smoothed"], "auto": ["--mode", "auto"]}  # --train must be by the model's weights
MORE = {name: ["--mode", name] for name in ("linear", "full", "three-phase")} | BY_FEATURES | RESTARTS
FACTORS = {
    "few-shot, 15 epochs": [],
    "batch norm in training mode": ["--batch-norm", "train"],
    "SGD at the papers' rate": ["--opt", "SGD", "--lr", "0.003"],
    "SGD at 0.01 for 32 images": ["--opt", "SGD", "--lr", "0.16"],
    "crops of 8 to 100 % of the area": ["--augment", "crop"],
    "three repeats of each image": ["--repeated-aug"],
    "ImageNet's mean and std, centre of 256/224": ["--pixels", "data-set"],
    "no label smoothing": ["--smoothing", "0"],
    "stochastic depth 0.1": ["--drop-path", "0.1"],
    "no dropout": ["--drop", "0"],
    "schedule by epochs, 5 of warm-up": ["--sched-unit", "epoch", "--warmup-epochs", "5"],
    "layer decay 0.75": ["--layer-decay", "0.75"],
    "the head as it was fitted": ["--head-scale", "1", "--head-rate", "1"],
    "three times the rate": ["--lr", "0.0144"],
    "batch norm, SGD at the papers' rate, crops": [
        "--batch-norm", "train", "--opt", "SGD", "--lr", "0.003", "--augment", "crop"
    ],
}  # fmt: skip
WAYS = TRAINED | MORE | {name: SHORT + words for name, words in FACTORS.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", type=Path, required=True, help="feature file of the pool")
    add("--test", type=Path, required=True, help="feature file of the test images")
    add("--images", type=Path, help="folder with train/CLASS and val/CLASS, whose features these are; default: DEMO")
    add("--model", help="a timm name; default: demo_vit")
    add("--weights", type=Path, help="pretrained weights of --model")
    add("--input_size", type=int, help="side of the images in pixels")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N: of the choice, the probes and the trainer")
    add("--output_dir", type=Path, required=True, help="lists and scores.jsonl; what is in it is not measured again")
    add(
        "--methods", nargs="+", default=["random", "activeft"], choices=sorted(LABEL_FREE), help="how images are chosen"
    )
    add("--budgets", type=int, nargs="+", default=[50, 100, 250, 1000], help="labels of a run")
    add("--seeds", type=int, nargs="+", default=range(5), help="of the selection")
    add("--training_seeds", type=int, nargs="+", help="several trainings on each list; default: the selection's seed")
    add("--ways", nargs="+", default=[*PROBES, *TRAINED], choices=[*PROBES, *WAYS], metavar="WAY",
        help=f"rows of the table, of {'; '.join([*PROBES, *TRAINED, *MORE])}")  # fmt: skip
    add(
        "--factors", action="store_true", help="the rows are the few-shot recipe in 15 epochs and one change of it each"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, then print tables in Markdown: accuracies, differences, minutes and memory of a run."""
    args = build_parser().parse_args(argv)
    train, test = load_features(args.train), load_features(args.test)
    device = pick_device(args.device)
    pools = open_images("FOLDER", args.images) if args.images else open_images("DEMO")
    for table, pool in zip((train, test), pools, strict=True):
        if len(table) != len(pool):
            raise UserError(f"{table.path} has {len(table)} rows for {len(pool)} images: extract these images")
    ways = list(FACTORS) if args.factors else args.ways
    store = Store(args.output_dir, "scores.jsonl", key)
    check_same(args, pools, device)
    for cell in cells(args.seeds, args.methods, args.budgets, ways, args.training_seeds):
        if key(cell) in store.known():
            continue
        subset = chosen(args.output_dir, train, cell["method"], cell["budget"], cell["seed"], device)
        way = cell["way"]
        if way in PROBES:
            found = probe(way, train, test, pools, load_subset(subset, len(train)), device)
        else:
            words = ["--features", str(args.train)] if way in BY_FEATURES else []
            found = run(args, subset, cell["training"], WAYS[way] + words)
        store.append(cell | found | {"versions": versions()})
        print(json.dumps(cell | found), file=sys.stderr, flush=True)
    report(store.known(), args.methods, args.budgets, ways, args.seeds, args.training_seeds)


def cells(seeds, methods, budgets, ways, trainings) -> Iterator[dict]:
    """What is to be measured: every list, and each way to use it with every seed of the training, of probes one."""
    for seed, method, budget, way in itertools.product(seeds, methods, budgets, ways):
        for training in [seed] if way in PROBES else trainings or [seed]:
            cell = {"way": way, "method": method, "budget": budget, "seed": seed, "training": training}
            yield cell | ({"flags": WAYS[way]} if way in WAYS else {})


def check_same(args: argparse.Namespace, pools, device: torch.device) -> None:
    """Raise UserError where a folder holds scores of other features, images, model or device: no line tells them.

    What an earlier version did not note counts as the same.
    """
    path = args.output_dir / "files.json"
    weights = sha256(args.weights) if args.weights and args.weights.is_file() else str(args.weights)
    mine = {"train": sha256(args.train), "test": sha256(args.test), "model": args.model, "weights": weights,
            "input_size": args.input_size, "device": f"{device.type}, {pick_amp('auto', device)}",
            "images": [list_digest(part) for pool in pools for part in (pool.names, pool.labels)]}  # fmt: skip
    held = read_json(path) if path.exists() else mine
    other = ", ".join(f"--{name}" for name in mine if held.get(name, mine[name]) != mine[name])
    if other:
        raise UserError(f"{args.output_dir} holds scores of another {other}: name another --output_dir")
    with atomic_write(path, "w") as handle:
        json.dump(mine, handle)


def key(cell: dict) -> tuple:
    """What was measured: (way, its flags, method, budget, seed, seed of the training).

    A line that an earlier version wrote without flags counts as of today's.
    """
    flags = " ".join(cell.get("flags", WAYS.get(cell["way"], [])))
    return cell["way"], flags, cell["method"], cell["budget"], cell["seed"], cell.get("training", cell["seed"])


def chosen(folder: Path, table, method: str, budget: int, seed: int, device: torch.device) -> Path:
    """The file of a method's list; chosen once."""
    path = folder / f"{method}_{budget}_seed_{seed}.json"
    if not path.exists():
        config = METHODS[method].config()
        save_subset(path, METHODS[method].select(table.features, budget, config=config, seed=seed, device=device))
    return path


def probe(way: str, train, test, pools, ids: list[int], device: torch.device) -> dict:
    """A logistic regression on unit features, or the smoothed probe; C by cross-validation on the labels."""
    began = time.perf_counter()
    labels = torch.tensor([pools[0].label(i) for i in ids])
    known = torch.tensor([pools[1].label(i) for i in range(len(pools[1]))])
    classes = pools[0].classes
    if way == "smoothed probe":
        found = fit_smoothed(train.tensor().to(device), labels, torch.as_tensor(ids), classes=classes)
        predicted = found.predict(test.tensor(), corrected=True).cpu()
    else:
        rows = normalise(train.tensor()[ids])
        predicted = fit_probe(rows, labels, classes, choose_c(rows, labels)).predict(normalise(test.tensor()))
    accuracy = 100 * (predicted.argmax(1) == known).double().mean().item()
    return {"last": accuracy, "minutes": (time.perf_counter() - began) / 60}


def run(args: argparse.Namespace, subset: Path, seed: int, words: list[str]) -> dict:
    """One run of the trainer in a process of its own: its accuracies, and what it took."""
    folder = args.output_dir / f"run_{os.getpid()}"
    command = ["--data-set", "FOLDERSUBSET" if args.images else "DEMOSUBSET", "--subset_ids", subset, "--seed", seed]
    command += ["--eval_interval", 1000, "--device", args.device, *words]
    for flag, value in (("--data-path", args.images), ("--model", args.model), ("--finetune", args.weights),
                        ("--input-size", args.input_size)):  # fmt: skip
        command += [flag, value] if value else []
    found = train(command, folder)
    shutil.rmtree(folder)
    return found


def report(known: dict[tuple, dict], methods, budgets, ways, seeds, trainings) -> None:
    """Print accuracy after the last epoch (mean, sd, lists), differences to the first row, list by list, and costs."""
    apart = f"difference to {ways[0]} on {methods[0]} of the same seed"
    tables: dict[str, list] = {"last epoch, %": [], apart: [], "minutes, GiB": []}
    first: list[list[dict]] = []
    for method in methods:
        for way in ways:
            row = [
                [known[key(cell)] for cell in cells(seeds, [method], [budget], [way], trainings) if key(cell) in known]
                for budget in budgets
            ]
            first = first or row
            tables[apart].append([method, way, *map(difference, row, first)])
            tables["last epoch, %"].append([method, way, *(accuracy(some, "last") for some in row)])
            tables["minutes, GiB"].append([method, way, *(cost(some) for some in row)])
            if any(cell.get("graph") for some in row for cell in some):
                tables["last epoch, %"].append([method, f"{way}, by its graph", *(accuracy(c, "graph") for c in row)])
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown_table(['chosen by', 'labels used by', *budgets], rows)}")


def accuracy(found: list[dict], name: str) -> str:
    """Mean over the lists of their trainings' means, sd and number of lists; and the sd of the trainings of a list."""
    if not found:
        return ""
    lists = by_list(found, name)
    words = f"{mean_sd(map(statistics.fmean, lists.values()))} ({len(lists)})"
    spreads = [statistics.variance(values) for values in lists.values() if len(values) > 1]
    return words + (f", training ± {statistics.fmean(spreads) ** 0.5:.2f}" if spreads else "")


def by_list(found: list[dict], name: str) -> dict[int, list[float]]:
    """{seed of the list: what its trainings have}."""
    lists: dict[int, list[float]] = {}
    for cell in found:
        lists.setdefault(cell["seed"], []).append(cell[name])
    return lists


def difference(found: list[dict], others: list[dict]) -> str:
    """Mean, sd and number of the differences of accuracy to others, list by list; "" where they share no seed."""
    ours, theirs = by_list(found, "last"), by_list(others, "last")
    pairs = [statistics.fmean(ours[seed]) - statistics.fmean(theirs[seed]) for seed in ours if seed in theirs]
    return f"{'+' if statistics.fmean(pairs) > 0 else ''}{mean_sd(pairs)} ({len(pairs)})" if pairs else ""


def cost(found: list[dict]) -> str:
    if not found:
        return ""
    minutes = mean_sd(cell["minutes"] for cell in found).mean
    return f"{minutes:.1f}" + (f", {max(cell['gib'] for cell in found):.1f}" if "gib" in found[0] else "")
