"""Command line of BiLAF's boundary stage: feature file + core file -> subset file."""

import dataclasses
import time
from pathlib import Path

from data_selection import activeft, subset_files
from data_selection.bilaf import PRESETS, select_bilaf
from data_selection.cli import (
    DATA_SELECTION,
    add_device,
    add_label_column,
    bar_factory,
    make_parser,
    open_table,
    seed,
    write_subset,
)
from data_selection.distributed import start
from data_selection.errors import UserError

VARIANTS = ("paper", "released")
SCRIPTS = {  # dataset, cores, budget, preset of ActiveFT that wrote the cores, preset of the released variant
    "density_cluster": ("CIFAR100", 250, 1000, "bilaf_cifar", "released"),
    "density_cluster_imagenet": ("ImageNet", 6405, 12811, "bilaf_imagenet", "released_imagenet"),
}
SHIPPED_STEPS = 300  # of ActiveFT, in the names of all core files that the papers' repositories ship
OVERRIDES = {  # flag -> config field, where the flag is given
    "density_nearst_number": "density_number",
    "remove_percentage": "remove_share",
    "cycle_percentage": "ring_share",
    "same_oppo_penalty_ratio": "penalty",
    "max_memory": "max_memory",
}


def build_parser(script):
    """The flags of one of the two released scripts, and ours. Shares (`percentage`) are fractions 0-1, as released."""
    dataset, cores, budget, _, released = SCRIPTS[script]
    paper, released = PRESETS["paper"], PRESETS[released]
    parser = make_parser("BiLAF: choose boundary samples around core samples, from cached features and without labels.")
    add = parser.add_argument
    add("--dataset", default=dataset, help="pool; names the default files")
    add("--feature_path", type=Path, default=DATA_SELECTION / "features", help="folder of the feature files")
    add("--features_inputs", type=Path, help="feature file (default: <feature_path>/<dataset>_train.npy)")
    add(
        "--indices_file_name", "--init_indices", type=Path,
        help="core file, a subset file as ActiveFT writes it (default: ActiveFT's default name in subsets/<dataset>)",
    )  # fmt: skip
    add(
        "--cur_number", type=int, help=f"number of cores (default: as many as the core file holds; to find it, {cores})"
    )
    add("--budget", type=int, default=budget, help="images to choose, the cores among them")
    add(
        "--output_dir",
        type=Path,
        help="folder of the subset file (default: subsets/<dataset>); its name says "
        "which settings are not the defaults, and a file of the same name is replaced",
    )
    add(
        "--variant",
        choices=VARIANTS,
        default="paper",
        help="the published algorithm, or what the released program gives",
    )
    add("--nested", action="store_true", help="the list of a budget begins with the list of every smaller one")
    add(
        "--density_nearst_number", "--density_nearest_number", type=int,
        help=f"k of the density (default: {paper.density_number})",
    )  # fmt: skip
    add(
        "--remove_percentage", type=float, help="share of each class removed as noise, fraction 0-1 "
        f"(default: paper {paper.remove_share}, released {released.remove_share})",
    )  # fmt: skip
    add(
        "--cycle_percentage",
        type=float,
        help=f"share of a class in one ring, fraction 0-1 (default: {paper.ring_share})",
    )
    add("--same_oppo_penalty_ratio", type=float, help=f"penalty of an opponent met again (default: {paper.penalty})")
    add("--distance", choices=("euclidean",), default="euclidean", help="the only distance BiLAF is defined with")
    add(
        "--max_memory",
        type=float,
        help="working memory in GB; never changes the result (default: a quarter of the free)",
    )
    add_label_column(parser)
    add("--seed", type=seed, default=0, help="seed of the cores: names both files; this stage itself draws nothing")
    add_device(parser)
    return parser


def main_bilaf(script, argv=None):
    """Entry of Boundary_Selection/{script}.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser(script).parse_args(argv)
    config = make_config(script, args)
    with start(args.device) as world:
        table = open_table(args.features_inputs or args.feature_path / f"{args.dataset}_train.npy", args)
        cores = load_cores(script, args, len(table))
        if args.budget < len(cores):
            raise UserError(f"--budget {args.budget} is smaller than the {len(cores)} cores it has to hold: raise it")
        folder = args.output_dir or subset_files.SUBSETS / args.dataset
        name = subset_files.bilaf_name(args.budget, len(cores), args.seed, named_settings(args))
        path = subset_files.output_path(folder, name)
        began, replaced = time.monotonic(), path.exists()
        ids = select_bilaf(
            table.features, args.budget, cores=cores, config=config, device=world.device, progress=bar_factory(world)
        )
        seconds = time.monotonic() - began
        if not world.is_main:
            return
        settings = {"variant": args.variant, **dataclasses.asdict(config), "cores": cores.tolist()}
        record = subset_files.describe(table, method="bilaf", config=settings, seed=args.seed, budget=args.budget)
        listed = write_subset(path, ids, table, record)
        print(
            f"{'replaced' if replaced else 'wrote'} {path}: {args.budget} of {len(table)} images chosen by BiLAF "
            f"({args.variant}) around {len(cores)} cores in {seconds:.1f} s{listed}"
        )


def make_config(script, args):
    """The variant's preset with the given flags put in."""
    preset = SCRIPTS[script][4] if args.variant == "released" else args.variant
    given = {field: getattr(args, flag) for flag, field in OVERRIDES.items() if getattr(args, flag) is not None}
    return dataclasses.replace(PRESETS[preset], nested=args.nested, **given)


def named_settings(args):
    """What the default file name must say: the settings that are not this command's defaults."""
    given = {field: getattr(args, flag) for flag, field in OVERRIDES.items() if field != "max_memory"}
    given = {name: value for name, value in given.items() if value is not None}
    variant = {} if args.variant == "paper" else {"variant": args.variant}
    return {**variant, **given, **({"nested": "yes"} if args.nested else {})}


def load_cores(script, args, pool_size):
    """The core ids (K,) in file order. Raises UserError where the file is missing, or not of --cur_number ids."""
    _, count, _, preset, _ = SCRIPTS[script]
    paths = [args.indices_file_name]
    if args.indices_file_name is None:
        config = activeft.PRESETS[preset].config
        steps = dict.fromkeys((config.max_iter, SHIPPED_STEPS))
        configs = [dataclasses.replace(config, max_iter=max_iter) for max_iter in steps]
        stem, cores = f"{args.dataset}_train", args.cur_number or count
        names = [subset_files.activeft_name(stem, config, cores, args.seed) for config in configs]
        paths = [subset_files.SUBSETS / args.dataset / name for name in names]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UserError(
            f"core file {' or '.join(map(str, paths))} does not exist: write it with data_selection/Core_Selection, or "
            "name another with --indices_file_name"
        )
    cores = subset_files.load_subset(path, pool_size)
    if args.cur_number not in (None, len(cores)):
        raise UserError(f"--cur_number {args.cur_number}, but {path} holds {len(cores)} cores: drop the flag")
    return cores
