"""Command line of BiLAF's boundary stage: feature file + core file -> subset file."""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_selection.commands.settings import add_settings, given, replaced, told
from data_selection.commands.shared import (
    DATA_SELECTION,
    add_device,
    add_keep_duplicates,
    add_label_column,
    add_seed,
    add_where,
    make_parser,
)
from data_selection.common.errors import UserError
from data_selection.common.paths import SUBSETS
from data_selection.common.subset_names import activeft_name, bilaf_name
from data_selection.methods.configs import ACTIVEFT_PRESETS, BILAF_PRESETS, CHOICES, BiLAFConfig

if TYPE_CHECKING:
    from data_selection.commands.selection import Plan
    from data_selection.common.distributed import World
    from data_selection.common.feature_table import FeatureTable
    from data_selection.common.kinds import Log

VARIANTS = ("paper", "released")


class Script(NamedTuple):
    """A released script's defaults; the presets of ActiveFT that wrote its cores, and of its released variant."""

    dataset: str
    cores: int
    budget: int
    activeft: str
    released: str


SCRIPTS = {
    "density_cluster": Script("CIFAR100", 250, 1000, "bilaf_cifar", "released"),
    "density_cluster_imagenet": Script("ImageNet", 6405, 12811, "bilaf_imagenet", "released_imagenet"),
}
SHIPPED_STEPS = 300  # of ActiveFT, in the names of all core files that the papers' repositories ship
FLAGS = {  # field of the config: the released words for it, which others follow
    "density_number": ("--density_nearst_number", "--density_nearest_number", "--density_number"),
    "remove_share": ("--remove_percentage", "--remove_share"),
    "ring_share": ("--cycle_percentage", "--ring_share"),
    "penalty": ("--same_oppo_penalty_ratio", "--penalty"),
}


def build_parser(script: str) -> argparse.ArgumentParser:
    """The flags of one of the two released scripts, and ours. Shares (`percentage`) are fractions 0-1, as released."""
    defaults = SCRIPTS[script]
    parser = make_parser("BiLAF: choose boundary samples around core samples, from cached features and without labels.")
    add = parser.add_argument
    add("--dataset", default=defaults.dataset, help="pool; names the default files")
    add("--feature_path", type=Path, default=DATA_SELECTION / "features", help="folder of the feature files")
    add("--features_inputs", "--features", type=Path, help="feature file (default: <feature_path>/<dataset>_train.npy)")
    add(
        "--indices_file_name", "--init_indices", type=Path,
        help="core file, a subset file as ActiveFT writes it (default: ActiveFT's default name in subsets/<dataset>)",
    )  # fmt: skip
    add(
        "--cur_number",
        type=int,
        help=f"number of cores (default: as many as the core file holds; to find it, {defaults.cores})",
    )
    add("--budget", type=int, default=defaults.budget, help="images to choose, the cores among them")
    add_where(parser, "subsets/<dataset>")
    add(
        "--variant",
        choices=VARIANTS,
        default="paper",
        help="the published algorithm, or what the released program gives",
    )
    variants = {"paper": BILAF_PRESETS["paper"], "released": BILAF_PRESETS[defaults.released]}
    add_settings(parser, variants, flags=FLAGS, choices=CHOICES, without=("core_number",))
    add("--distance", choices=("euclidean",), default="euclidean", help="the only distance BiLAF is defined with")
    add_keep_duplicates(parser)
    add_label_column(parser)
    add_seed(parser, "seed of the cores: names both files; this stage itself draws nothing")
    add_device(parser)
    return parser


def main_bilaf(script: str, argv: Sequence[str] | None = None) -> None:
    """Entry of Boundary_Selection/{script}.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser(script).parse_args(argv)
    from data_selection.commands.selection import Plan, choose  # slow: imports torch
    from data_selection.methods.bilaf.selection import select_bilaf

    config = make_config(script, args)

    def plan(world: "World", table: "FeatureTable") -> "Plan":
        cores = load_cores(script, args, table, world.say)
        if args.budget < len(cores):
            raise UserError(f"--budget {args.budget} is smaller than the {len(cores)} cores it has to hold: raise it")
        return Plan(
            folder=args.output_dir or SUBSETS / args.dataset,
            name=bilaf_name(args.budget, len(cores), args.seed, named_settings(script, args)),
            budget=args.budget,
            select=functools.partial(select_bilaf, cores=cores, config=config),
            method="bilaf",
            settings={"variant": args.variant, **dataclasses.asdict(config), "cores": cores},
            by=f"BiLAF ({args.variant}) around {len(cores)} cores",
            order="given",
            cores=cores,
        )

    choose(args, args.features_inputs or args.feature_path / f"{args.dataset}_train.npy", plan)


def preset_of(script: str, args: argparse.Namespace) -> BiLAFConfig:
    """The variant's settings where no flag says otherwise."""
    return BILAF_PRESETS[SCRIPTS[script].released if args.variant == "released" else args.variant]


def make_config(script: str, args: argparse.Namespace) -> BiLAFConfig:
    """The variant's preset with the given flags put in."""
    config = preset_of(script, args)
    return replaced(config, "bilaf", given(args, [config]))


def named_settings(script: str, args: argparse.Namespace) -> dict[str, object]:
    """What the default file name must say: the settings that are not what the variant has by itself."""
    variant = {} if args.variant == "paper" else {"variant": args.variant}
    preset = preset_of(script, args)
    typed = given(args, [preset])
    return variant | told({name: value for name, value in typed.items() if value != getattr(preset, name)})


def load_cores(script: str, args: argparse.Namespace, table: "FeatureTable", log: "Log") -> list[int]:
    """The core ids (K,) in file order: rows of the features.

    Raises UserError where the file is missing, or not of --cur_number ids.
    """
    from data_selection.images.known_lists import find_images, of_features  # slow: imports torch

    paths = [args.indices_file_name]
    if args.indices_file_name is None:
        config = ACTIVEFT_PRESETS[SCRIPTS[script].activeft].config
        steps = dict.fromkeys((config.max_iter, SHIPPED_STEPS))
        configs = [dataclasses.replace(config, max_iter=max_iter) for max_iter in steps]
        stem, cores = f"{args.dataset}_train", args.cur_number or SCRIPTS[script].cores
        names = [activeft_name(stem, config, cores, args.seed) for config in configs]
        paths = [SUBSETS / args.dataset / name for name in names]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(
            f"core file {' or '.join(map(str, paths))} does not exist: write it with data_selection/Core_Selection, or "
            "name another with --indices_file_name"
        )
    cores = find_images([path], of_features(table), log=log)
    if args.cur_number not in (None, len(cores)):
        raise UserError(f"--cur_number {args.cur_number}, but {path} holds {len(cores)} cores: drop the flag")
    return cores
