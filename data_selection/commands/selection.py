"""What every selection command does once its flags are read: open, choose, write, say so."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_selection.commands.shared import bar_factory
from data_selection.common.distributed import World, on_main, start
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, load_features
from data_selection.common.subset_files import (
    budget_from_percent,
    check_replaced,
    describe,
    save_names,
    save_subset,
)
from data_selection.common.subset_names import output_path
from data_selection.images.known_lists import find_images, of_features
from data_selection.images.record import load_record
from data_selection.judging.quality import quality


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
        check_not_input(path, args)
        replaced = on_main(world, lambda: check_replaced(path, table))
        if replaced:
            world.say(f"{path} exists and will be replaced, and its names with it")
        began = time.monotonic()
        progress = None if quiet else bar_factory(world)
        ids = todo.select(table.features, todo.budget, device=world.device, progress=progress)
        seconds = time.monotonic() - began
        if not world.is_main:
            return False
        print(f"quality without labels: {quality(table.features, ids, seed=args.seed)}", flush=True)
        chosen = sorted(ids.tolist()) if todo.order == "sorted" else ids.tolist()
        record = describe(table, method=todo.method, config=todo.settings, seed=args.seed, budget=todo.budget)
        save_subset(path, chosen, record | {"images": images_of(table, chosen)})
        lists = " and ".join(str(file) for file in save_names(path, table))
        print(
            f"{'replaced' if replaced else 'wrote'} {path}: {todo.budget} of {len(table)} images chosen by {todo.by} "
            f"in {seconds:.1f} s" + (f"; their names, one a line, in {lists}" if lists else "")
        )
        return True


def check_not_input(path: Path, args: argparse.Namespace) -> None:
    """Raise UserError where the list would replace one that it is chosen by: --labelled, --excluded or the cores."""
    given = vars(args)
    lists = [*(given.get("labelled") or ()), *(given.get("excluded") or ()), given.get("indices_file_name")]
    if any(source is not None and Path(source).resolve() == path.resolve() for source in lists):
        raise UserError(
            f"{path} is one of the lists to choose by, and would be replaced: choose another name or folder"
        )


def budget_of(args: argparse.Namespace, table: FeatureTable) -> int:
    """The number of images that --budget or --percent asks for."""
    budget: int | None = args.budget
    return budget_from_percent(len(table), args.percent) if budget is None else budget


def taken(args: argparse.Namespace, table: FeatureTable, world: World) -> dict[str, list[int]]:
    """The ids of --labelled and --excluded, as the keywords of a selection method."""
    lists, today = {"labelled": args.labelled, "excluded": args.excluded}, of_features(table)
    return {what: find_images(some or (), today, missing=args.missing, log=world.say) for what, some in lists.items()}


def images_of(table: FeatureTable, ids: list[int]) -> dict[str, list[str] | None] | None:
    """What a list's provenance says of its images, in its order: names and content hashes, as far as they are known."""
    record = load_record(table.path, len(table)) if table.path else None
    names = None if table.names is None else [table.names[i] for i in ids]
    if record is None and names is None:
        return None
    return {"name": names, "hash": [record.hashes[i] if record else "" for i in ids]}
