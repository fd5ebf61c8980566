"""Command line over the whole table of methods: features -> subset, one flag set for every method."""

import dataclasses
import time
from pathlib import Path

from data_selection import subset_files
from data_selection.cli import (
    add_device,
    add_label_column,
    add_seed,
    bar_factory,
    make_parser,
    open_table,
    write_subset,
)
from data_selection.distributed import start
from data_selection.errors import UserError
from data_selection.methods import METHODS

NEEDS_ORDER = ("bilaf",)  # methods whose order in the file means something; the others are written ascending


def build_parser():
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
    parser.add_argument("--labelled", type=Path, help="subset file of images that already have labels")
    parser.add_argument("--excluded", type=Path, help="subset file of images that must not be chosen")
    parser.add_argument("--output_dir", type=Path, help="folder of the subset file (default: subsets/<POOL>)")
    parser.add_argument(
        "--filename", help="name of the subset file (default: says pool, method, budget and the flags given)"
    )
    add_label_column(parser)
    add_seed(parser)
    add_device(parser)
    return parser


def make_config(method, args):
    """The method's default config with the flags of this command put in."""
    config = METHODS[method].config()
    given = {"core_number": args.cores, "variant": args.variant}
    given = {name: value for name, value in given.items() if value is not None}
    if "variant" in given:
        from data_selection.bilaf import PRESETS

        config = PRESETS[given.pop("variant")] if method == "bilaf" else config
    fields = {field.name for field in dataclasses.fields(config)}
    if (args.cores is not None or args.variant is not None) and "core_number" not in fields:
        raise UserError(f"--cores and --variant are for bilaf; method {method} has no cores")
    return dataclasses.replace(config, **given)


def main_select(argv=None):
    """Entry of scripts/select_subset.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser().parse_args(argv)
    with start(args.device) as world:
        table = open_table(args.features, args)
        percent = args.percent
        budget = args.budget if percent is None else subset_files.budget_from_percent(len(table), percent)
        taken = {
            what: subset_files.load_subset(path, len(table)) if path else ()
            for what, path in (("labelled", args.labelled), ("excluded", args.excluded))
        }
        config = make_config(args.method, args)
        folder = args.output_dir or subset_files.default_folder(args.features)
        given = {"cores": args.cores, "variant": args.variant}
        given = {name: value for name, value in given.items() if value is not None}
        name = args.filename or subset_files.method_name(args.features.stem, args.method, budget, args.seed, given)
        path = subset_files.output_path(folder, name)
        began = time.monotonic()
        ids = METHODS[args.method].select(
            table.features,
            budget,
            config=config,
            seed=args.seed,
            device=world.device,
            progress=bar_factory(world),
            **taken,
        )
        if not world.is_main:
            return
        record = subset_files.describe(
            table, method=args.method, config=dataclasses.asdict(config), seed=args.seed, budget=budget
        )
        order = "given" if args.method in NEEDS_ORDER else "sorted"
        listed = write_subset(path, ids, table, record, order=order)
        print(
            f"wrote {path}: {budget} of {len(table)} images chosen by {args.method} in "
            f"{time.monotonic() - began:.1f} s{listed}"
        )
