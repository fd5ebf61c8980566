"""What every selection command does once its flags are read: open, choose, write, say so."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_selection.commands.shared import bar_factory
from data_selection.common.distributed import World, on_main, start
from data_selection.common.feature_table import FeatureTable, load_features
from data_selection.common.kinds import Ids
from data_selection.common.subset_files import (
    budget_from_percent,
    check_replaced,
    describe,
    load_subset,
    save_names,
    save_subset,
)
from data_selection.common.subset_names import output_path


class Plan(NamedTuple):
    """What a command makes of its flags for one pool.

    select: called as select(features, budget, device=, progress=). method, settings, budget, seed: for the record.
    order: of the ids in the file, `given` or `sorted`. by: the words after `chosen by`.
    """

    folder: Path
    name: str
    budget: int
    select: Callable[..., torch.Tensor]
    method: str
    settings: dict[str, Any]
    by: str
    order: str = "sorted"


def choose(
    args: argparse.Namespace, features: Path, plan: Callable[[World, FeatureTable], Plan], *, quiet: bool = False
) -> bool:
    """Open the features, choose as plan(world, table) says, write the list, its record and its names, and say so.

    quiet: no progress bar. Returns whether this process is the one that wrote. Raises UserError for the user's
    mistakes, before any work.
    """
    with start(args.device) as world:
        table = load_features(features, label_column=not args.no_label_column)
        todo = plan(world, table)
        path = output_path(todo.folder, todo.name)
        replaced = on_main(world, lambda: check_replaced(path, table))
        if replaced and world.is_main:
            print(f"{path} exists and will be replaced, and its names with it", flush=True)
        began = time.monotonic()
        progress = None if quiet else bar_factory(world)
        ids = todo.select(table.features, todo.budget, device=world.device, progress=progress)
        seconds = time.monotonic() - began
        if not world.is_main:
            return False
        record = describe(table, method=todo.method, config=todo.settings, seed=args.seed, budget=todo.budget)
        save_subset(path, ids, record, order=todo.order)
        lists = " and ".join(str(file) for file in save_names(path, table))
        print(
            f"{'replaced' if replaced else 'wrote'} {path}: {todo.budget} of {len(table)} images chosen by {todo.by} "
            f"in {seconds:.1f} s" + (f"; their names, one a line, in {lists}" if lists else "")
        )
        return True


def budget_of(args: argparse.Namespace, table: FeatureTable) -> int:
    """The number of images that --budget or --percent asks for."""
    budget: int | None = args.budget
    return budget_from_percent(len(table), args.percent) if budget is None else budget


def taken(args: argparse.Namespace, table: FeatureTable) -> dict[str, Ids]:
    """The ids of --labelled and --excluded, as the keywords of a selection method."""
    files = {"labelled": args.labelled, "excluded": args.excluded}
    return {what: load_subset(path, len(table)) if path else () for what, path in files.items()}
