"""Command line of ActiveFT: feature file -> subset file, with the flags and defaults of the released scripts."""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_selection.commands.settings import add_settings, given, replaced
from data_selection.commands.shared import (
    DATA_SELECTION,
    add_device,
    add_label_column,
    add_seed,
    add_taken,
    add_where,
    make_parser,
)
from data_selection.common.files import atomic_write, check_own_table, check_writable
from data_selection.common.subset_names import activeft_name, default_folder
from data_selection.methods.configs import ACTIVEFT_PRESETS, DISTANCES, INITS, OBJECTIVES, SCHEDULERS
from data_selection.methods.table import METHODS

if TYPE_CHECKING:
    from data_selection.commands.selection import Plan
    from data_selection.common.distributed import World
    from data_selection.common.feature_table import FeatureTable

HISTORY = "iteration,lr,loss"
UNTOLD = ("batch_size", "threshold")  # settings that the released names do not tell, and that change the list
FILES = {"cifar": "CIFAR10_train.npy", "imagenet": "ImageNet_train.npy"}


def build_parser(preset: str) -> argparse.ArgumentParser:
    """The flags of the released script whose defaults are ACTIVEFT_PRESETS[preset], and ours."""
    config, percent = ACTIVEFT_PRESETS[preset]
    parser = make_parser("ActiveFT: choose which images to annotate, from cached features and without labels.")
    add = parser.add_argument
    features = DATA_SELECTION / "features" / FILES[preset.split("_")[1]]
    add("--feature_path", "--features", type=Path, default=features, help="feature file written by extract_feature.py")
    add_where(parser)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--percent", default=str(percent), help="images to choose, in percent (0-100), rounded down")
    size.add_argument("--budget", type=int, help="images to choose, as a number")
    choices = {"init": INITS, "distance": DISTANCES, "scheduler": SCHEDULERS, "objective": OBJECTIVES}
    add_settings(parser, {"activeft": config}, choices=choices)
    add_taken(parser, "images that have labels already, which repel and attract")
    add("--history", type=Path, help="CSV file for the loss of every step")
    add("--verbose", action="store_true", help="print a line per step, as the released scripts do")
    add_label_column(parser)
    add_seed(parser)
    add_device(parser)
    return parser


def main_activeft(preset: str, argv: Sequence[str] | None = None) -> None:
    """Entry of the ActiveFT scripts. Raises UserError for the user's mistakes, before any work."""
    args = build_parser(preset).parse_args(argv)
    from data_selection.commands.selection import Plan, budget_of, choose, taken  # slow: imports torch

    released = ACTIVEFT_PRESETS[preset].config
    config = replaced(released, "activeft", given(args, [released]))
    values = {name: getattr(config, name) or None for name in UNTOLD}  # a threshold of 0 is none
    told = {name: value for name, value in values.items() if value != getattr(released, name)}
    history = check_writable(args.history) if args.history else None
    if history:
        check_own_table(history, HISTORY)
    steps = Steps()

    def plan(world: "World", table: "FeatureTable") -> "Plan":
        budget = budget_of(args, table)
        steps.verbose = args.verbose and world.is_main
        extra = {"on_iteration": steps} if args.verbose or history else {}
        return Plan(
            folder=args.output_dir or default_folder(args.feature_path),
            name=activeft_name(args.feature_path.stem, config, budget, args.seed, told),
            budget=budget,
            select=functools.partial(METHODS["activeft"].select, config=config, seed=args.seed, **extra),
            method="activeft",
            settings=dataclasses.asdict(config),
            by="ActiveFT",
            taken=taken(args, table, world),
        )

    if choose(args, args.feature_path, plan, quiet=args.verbose, afresh=history is not None) and history:
        steps.write(history)


class Steps:
    """What happened in every step: kept for the history file, printed where wanted."""

    def __init__(self) -> None:
        self.verbose, self.lines = False, [HISTORY]

    def __call__(self, iteration: int, lr: float, loss: float) -> None:
        self.lines.append(f"{iteration},{lr:.8g},{loss:.8f}")
        if self.verbose:
            print(f"Iter: {iteration}, lr: {lr:.6f}, loss: {loss:.6f}", flush=True)

    def write(self, path: Path) -> None:
        with atomic_write(path, "w") as handle:
            handle.write("\n".join(self.lines) + "\n")
