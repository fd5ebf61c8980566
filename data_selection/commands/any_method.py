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
from data_selection.methods.table import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from data_selection.commands.given_labels import Labels
    from data_selection.commands.selection import Plan
    from data_selection.common.distributed import World
    from data_selection.common.feature_table import FeatureTable
    from data_selection.common.progress import OpenBar

AUTO = "auto"
ROUNDS = [name for name, method in METHODS.items() if method.rounds]
FLAGS = {"core_number": ("--cores", "--core_number")}
NAMED = {"core_number": "cores"}  # in file names
# methods whose order in the file means something; the others are written ascending
NEEDS_ORDER = (
    "bilaf", "facility", "fps", "half", "herding", "herding-uncertainty", "margin", "margin-clusters", "maxherding",
    "probcover", "typiclust", "voptimal", "wvoptimal", "zcore"
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Choose which images to annotate: any method of the table, on any feature file.")
    parser.add_argument("--features", type=Path, required=True, help="feature file written by extract_feature.py")
    parser.add_argument("--method", choices=[*sorted(METHODS), AUTO], default="activeft", help="selection method; "
                        f"{AUTO}: the one that suits pool, budget and the labels so far, and why; {', '.join(ROUNDS)} "
                        "ask a model of the labels in --labelled")  # fmt: skip
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", type=int, help="images to choose")
    size.add_argument("--percent", type=str, help="images to choose, in percent (0-100) of the pool, rounded down")
    parser.add_argument(
        "--variant", choices=("paper", "released"), help="bilaf: the published or the released algorithm"
    )
    add_taken(parser)
    parser.add_argument(
        "--classes", default="", metavar="WORDS",
        help="the classes in --labelled, where a word is asked about that is one: a,b,c or a text file of one a line",
    )  # fmt: skip
    add_where(parser)
    add_label_column(parser)
    add_seed(parser)
    add_device(parser)
    settings = parser.add_argument_group("settings of the methods", "each is for the methods that its text names")
    add_settings(settings, defaults(), flags=FLAGS)
    return parser


def defaults() -> dict[str, Config]:
    """{method: its default config}."""
    return {name: method.config() for name, method in METHODS.items()}


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
    from data_selection.annotation.run_folder import class_words
    from data_selection.commands.given_labels import labels_of
    from data_selection.commands.selection import Plan, budget_of, choose, taken  # slow: imports torch

    classes = class_words(args.classes)
    if args.method != AUTO:
        make_config(args.method, args)  # which is wrong or right whatever the pool

    def plan(world: "World", table: "FeatureTable") -> "Plan":
        budget, lists, method = budget_of(args, table), taken(args, table, world), args.method
        asks = method == AUTO or METHODS[method].rounds
        skip = args.missing == "skip"
        labels = labels_of(args.labelled or (), table, world.say, classes, skip=skip) if asks else None
        if method == AUTO:
            method, told = advised(table, budget, lists, labels, args.seed)
            world.say(f"--method {AUTO} takes {method}: {told}")
        config = make_config(method, args)
        select = functools.partial(METHODS[method].select, config=config, seed=args.seed)
        if METHODS[method].rounds:
            if labels is None:
                raise UserError(
                    f"--method {method} asks a model of the labels so far: give them with --labelled FILE (a table of "
                    f"file,label, an export, class folders); without labels, begin with --method {AUTO}"
                )
            select = functools.partial(next_round, table, labels, world, method, config, args.seed)
        return Plan(
            folder=args.output_dir or default_folder(args.features),
            name=method_name(args.features.stem, method, budget, args.seed, named_settings(args, config)),
            budget=budget,
            select=select,
            method=method,
            settings=dataclasses.asdict(config) | ({"labels": told_labels(labels)} if METHODS[method].rounds else {}),
            by=method,
            order="given" if method in NEEDS_ORDER else "sorted",
            taken=lists,
        )

    choose(args, args.features, plan)


def advised(
    table: "FeatureTable", budget: int, lists: dict[str, list[int]], labels: "Labels | None", seed: int
) -> tuple[str, str]:
    """(method, what is said of it) for --method auto: by the labels where they are of two classes, else by the pool."""
    from data_selection.judging.advice import advise
    from data_selection.judging.rounds import advise_rounds

    if labels is not None and len(labels.classes) > 1:
        return advise_rounds(labels.labels, budget)
    advice = advise(table.features, budget, labelled=lists["labelled"], excluded=lists["excluded"], seed=seed)
    return advice.method, f"{advice.reason}. Then: {advice.labels}"


def next_round(
    table: "FeatureTable", labels: "Labels", world: "World", method: str, config: Config, seed: int,
    features: "Tensor", budget: int, *, labelled: Sequence[int] = (), excluded: Sequence[int] = (),
    progress: "OpenBar | None" = None, device: object = None,  # noqa: ARG001 - it is the world's
) -> "Tensor":  # fmt: skip
    """The ids that a method of rounds chooses, called as Plan.select is."""
    from data_selection.judging.rounds import choose_next
    from data_selection.nearest.graph import NEIGHBOURS
    from data_selection.nearest.stored_graph import pool_graph

    more = sorted(set(labelled) - set(labels.ids))
    return choose_next(
        features, labels.labels, labels.ids, budget, method=method, config=config, labelled=more, excluded=excluded,
        classes=len(labels.classes), seed=seed, graph=pool_graph(table, NEIGHBOURS, world=world, progress=progress),
        world=world, progress=progress,
    ).ids  # fmt: skip


def told_labels(labels: "Labels | None") -> str:
    """Labels in one word of a record: their number, and a digest of which image has which."""
    from data_selection.common.subset_names import setting_word

    assert labels is not None
    words = [f"{row} {labels.classes[place]}" for row, place in zip(labels.ids, labels.labels.tolist(), strict=True)]
    return setting_word(words)
