"""Command line of ActiveFT: feature file -> subset file, with the flags and defaults of the released scripts."""

import dataclasses
import time
from pathlib import Path

from data_selection import subset_files
from data_selection.activeft import INITS, OBJECTIVES, PRESETS, SCHEDULERS, select_activeft
from data_selection.baselines import DISTANCES
from data_selection.cli import (
    DATA_SELECTION,
    add_device,
    add_label_column,
    add_seed,
    bar_factory,
    make_parser,
    open_table,
    write_subset,
)
from data_selection.distributed import start
from data_selection.files import atomic_write, check_writable

FILES = {"cifar": "CIFAR10_train.npy", "imagenet": "ImageNet_train.npy"}


def build_parser(preset):
    """The flags of the released script whose defaults are PRESETS[preset], and ours."""
    config, percent = PRESETS[preset]
    parser = make_parser("ActiveFT: choose which images to annotate, from cached features and without labels.")
    add = parser.add_argument
    features = DATA_SELECTION / "features" / FILES[preset.split("_")[1]]
    add("--feature_path", type=Path, default=features, help="feature file written by extract_feature.py")
    add("--output_dir", type=Path, help="folder of the subset file (default: subsets/<POOL>)")
    add("--filename", help="name of the subset file (default: says pool, settings, budget and seed)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--percent", default=str(percent), help="images to choose, in percent (0-100), rounded down")
    size.add_argument("--budget", type=int, help="images to choose, as a number")
    add("--temperature", type=float, default=config.temperature, help="temperature of the similarity softmax")
    add("--max_iter", type=int, default=config.max_iter, help="optimisation steps")
    add("--lr", type=float, default=config.lr, help="learning rate of Adam")
    add("--init", choices=INITS, default=config.init, help="how the centroids start")
    add("--distance", choices=DISTANCES, default=config.distance, help="distance of --init fps; part of the file name")
    add("--scheduler", choices=SCHEDULERS, default=config.scheduler, help="learning rate: constant or cosine")
    add("--balance", type=float, default=config.balance, help="weight of the repulsion between centroids")
    add("--batch_size", type=int, default=config.batch_size, help="pool images per step (default: all)")
    add("--slice", type=int, help="rows per block of a product; never changes the result (default: automatic)")
    add("--max_memory", type=float, help="working memory in GB (default: a quarter of what is free)")
    add(
        "--threshold", type=float, help="stop when the loss moved by less over 10 steps (default: never; the released "
        "scripts ignore theirs)",
    )  # fmt: skip
    add(
        "--objective", choices=sorted(OBJECTIVES), default=config.objective, help="as released, or the paper's equation"
    )
    add("--labelled", type=Path, help="subset file of images that have labels already: they repel and attract")
    add("--excluded", type=Path, help="subset file of images that must not be chosen")
    add("--history", type=Path, help="CSV file for the loss of every step")
    add("--verbose", action="store_true", help="print a line per step, as the released scripts do")
    add_label_column(parser)
    add_seed(parser)
    add_device(parser)
    return parser


def main_activeft(preset, argv=None):
    """Entry of the ActiveFT scripts. Raises UserError for the user's mistakes, before any work."""
    args = build_parser(preset).parse_args(argv)
    fields = {field.name for field in dataclasses.fields(PRESETS[preset].config)}
    config = dataclasses.replace(
        PRESETS[preset].config, **{name: value for name, value in vars(args).items() if name in fields}
    )
    with start(args.device) as world:
        table = open_table(args.feature_path, args)
        budget = args.budget
        if budget is None:
            budget = subset_files.budget_from_percent(len(table), args.percent)
        taken = {
            what: subset_files.load_subset(path, len(table)) if path else ()
            for what, path in (("labelled", args.labelled), ("excluded", args.excluded))
        }
        folder = args.output_dir or subset_files.default_folder(args.feature_path)
        name = args.filename or subset_files.activeft_name(args.feature_path.stem, config, budget, args.seed)
        path = subset_files.output_path(folder, name)
        history = check_writable(args.history) if args.history else None
        began, replaced = time.monotonic(), path.exists()
        steps = Steps(args.verbose and world.is_main)
        ids = select_activeft(
            table.features, budget, config=config, seed=args.seed, device=world.device,
            progress=None if args.verbose else bar_factory(world),
            on_iteration=steps if args.verbose or history else None, **taken,
        )  # fmt: skip
        if not world.is_main:
            return
        if history:
            steps.write(history)
        settings = dataclasses.asdict(config)
        record = subset_files.describe(table, method="activeft", config=settings, seed=args.seed, budget=budget)
        listed = write_subset(path, ids, table, record, order="sorted")
        print(
            f"{'replaced' if replaced else 'wrote'} {path}: {budget} of {len(table)} images chosen by ActiveFT "
            f"in {time.monotonic() - began:.1f} s{listed}"
        )


class Steps:
    """What happened in every step: kept for the history file, printed where wanted."""

    def __init__(self, verbose):
        self.verbose, self.lines = verbose, ["iteration,lr,loss"]

    def __call__(self, iteration, lr, loss):
        self.lines.append(f"{iteration},{lr:.8g},{loss:.8f}")
        if self.verbose:
            print(f"Iter: {iteration}, lr: {lr:.6f}, loss: {loss:.6f}", flush=True)

    def write(self, path):
        with atomic_write(path, "w") as handle:
            handle.write("\n".join(self.lines) + "\n")
