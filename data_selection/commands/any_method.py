"""Command line over the whole table of methods: features -> subset, one flag set for every method."""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_selection.commands.shared import add_device, add_label_column, add_seed, add_taken, add_where, make_parser
from data_selection.common.errors import UserError
from data_selection.common.subset_names import default_folder, method_name
from data_selection.methods.configs import BILAF_PRESETS, Config
from data_selection.methods.table import METHODS

if TYPE_CHECKING:
    from data_selection.commands.selection import Plan
    from data_selection.common.distributed import World
    from data_selection.common.feature_table import FeatureTable

NEEDS_ORDER = ("bilaf",)  # methods whose order in the file means something; the others are written ascending


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Choose which images to annotate: any method of the table, on any feature file.")
    parser.add_argument("--features", type=Path, required=True, help="feature file written by extract_feature.py")
    parser.add_argument("--method", choices=sorted(METHODS), default="activeft", help="selection method")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", type=int, help="images to choose")
    size.add_argument("--percent", type=str, help="images to choose, in percent (0-100) of the pool, rounded down")
    parser.add_argument("--cores", type=int, help="bilaf: number of core images, counted in the budget")
    parser.add_argument(
        "--variant", choices=("paper", "released"), help="bilaf: the published or the released algorithm"
    )
    add_taken(parser)
    add_where(parser)
    add_label_column(parser)
    add_seed(parser)
    add_device(parser)
    return parser


def make_config(method: str, args: argparse.Namespace) -> Config:
    """The method's default config with the flags of this command put in."""
    config = METHODS[method].config()
    given = {"core_number": args.cores, "variant": args.variant}
    given = {name: value for name, value in given.items() if value is not None}
    if "variant" in given:
        config = BILAF_PRESETS[given.pop("variant")] if method == "bilaf" else config
    fields = {field.name for field in dataclasses.fields(config)}
    if (args.cores is not None or args.variant is not None) and "core_number" not in fields:
        raise UserError(f"--cores and --variant are for bilaf; method {method} has no cores")
    return dataclasses.replace(config, **given)


def main_select(argv: Sequence[str] | None = None) -> None:
    """Entry of scripts/select_subset.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser().parse_args(argv)
    from data_selection.commands.selection import Plan, budget_of, choose, taken  # slow: imports torch

    config = make_config(args.method, args)
    given = {"cores": args.cores, "variant": args.variant}
    given = {name: value for name, value in given.items() if value is not None}

    def plan(world: "World", table: "FeatureTable") -> "Plan":
        budget = budget_of(args, table)
        return Plan(
            folder=args.output_dir or default_folder(args.features),
            name=method_name(args.features.stem, args.method, budget, args.seed, given),
            budget=budget,
            select=functools.partial(METHODS[args.method].select, config=config, seed=args.seed),
            method=args.method,
            settings=dataclasses.asdict(config),
            by=args.method,
            order="given" if args.method in NEEDS_ORDER else "sorted",
            taken=taken(args, table, world),
        )

    choose(args, args.features, plan)
