"""Command line over the whole table of methods: features -> subset, one flag set for every method."""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_selection.commands.settings import add_settings, given, replaced, told
from data_selection.commands.shared import add_device, add_label_column, add_seed, add_taken, add_where, make_parser
from data_selection.common.errors import UserError
from data_selection.common.subset_names import default_folder, method_name
from data_selection.methods.configs import BILAF_PRESETS, Config
from data_selection.methods.table import LABEL_FREE, METHODS

if TYPE_CHECKING:
    from data_selection.commands.selection import Plan
    from data_selection.common.distributed import World
    from data_selection.common.feature_table import FeatureTable

AUTO = "auto"
FLAGS = {"core_number": ("--cores", "--core_number")}
NAMED = {"core_number": "cores"}  # in file names
# methods whose order in the file means something; the others are written ascending
NEEDS_ORDER = (
    "bilaf", "facility", "fps", "herding", "maxherding", "probcover", "typiclust", "voptimal", "zcore"
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Choose which images to annotate: any method of the table, on any feature file.")
    parser.add_argument("--features", type=Path, required=True, help="feature file written by extract_feature.py")
    parser.add_argument("--method", choices=[*sorted(LABEL_FREE), AUTO], default="activeft", help="selection method; "
                        f"{AUTO}: the one that suits pool and budget, and why")  # fmt: skip
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", type=int, help="images to choose")
    size.add_argument("--percent", type=str, help="images to choose, in percent (0-100) of the pool, rounded down")
    parser.add_argument(
        "--variant", choices=("paper", "released"), help="bilaf: the published or the released algorithm"
    )
    add_taken(parser)
    add_where(parser)
    add_label_column(parser)
    add_seed(parser)
    add_device(parser)
    settings = parser.add_argument_group("settings of the methods", "each is for the methods that its text names")
    add_settings(settings, defaults(), flags=FLAGS)
    return parser


def defaults() -> dict[str, Config]:
    """{method: its default config}."""
    return {name: method.config() for name, method in LABEL_FREE.items()}


def make_config(method: str, args: argparse.Namespace) -> Config:
    """The method's default config with the flags of this command put in."""
    if args.variant is not None and method != "bilaf":
        raise UserError(f"--variant is for bilaf; method {method} has no variants: drop it")
    config = BILAF_PRESETS[args.variant] if args.variant else METHODS[method].config()
    return replaced(config, method, given(args, defaults().values()), defaults(), FLAGS)


def named_settings(args: argparse.Namespace, config: Config) -> dict[str, object]:
    """What the default file name must say: the settings that are typed."""
    typed = {NAMED.get(name, name): value for name, value in told(given(args, [config])).items()}
    return {"variant": args.variant, **typed} if args.variant else typed


def main_select(argv: Sequence[str] | None = None) -> None:
    """Entry of scripts/select_subset.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser().parse_args(argv)
    from data_selection.commands.selection import Plan, budget_of, choose, taken  # slow: imports torch
    from data_selection.judging.advice import advise

    if args.method != AUTO:
        make_config(args.method, args)  # which is wrong or right whatever the pool

    def plan(world: "World", table: "FeatureTable") -> "Plan":
        budget, lists, method = budget_of(args, table), taken(args, table, world), args.method
        if method == AUTO:
            known, barred = lists["labelled"], lists["excluded"]
            advice = advise(table.features, budget, labelled=known, excluded=barred, seed=args.seed)
            method = advice.method
            world.say(f"--method {AUTO} takes {method}: {advice.reason}. Then: {advice.labels}")
        config = make_config(method, args)
        return Plan(
            folder=args.output_dir or default_folder(args.features),
            name=method_name(args.features.stem, method, budget, args.seed, named_settings(args, config)),
            budget=budget,
            select=functools.partial(METHODS[method].select, config=config, seed=args.seed),
            method=method,
            settings=dataclasses.asdict(config),
            by=method,
            order="given" if method in NEEDS_ORDER else "sorted",
            taken=lists,
        )

    choose(args, args.features, plan)
