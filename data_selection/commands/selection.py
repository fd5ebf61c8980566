"""What every selection command does once its flags are read: open, choose, write, say so."""

import argparse
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from data_selection.annotation.run_folder import in_place_of_runs
from data_selection.commands.shared import bar_factory
from data_selection.common.checks import check_request
from data_selection.common.distributed import World, on_all, on_main, start
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, load_features, sidecar
from data_selection.common.kinds import Log
from data_selection.common.standing import standing
from data_selection.common.subset_files import (
    CHECK,
    budget_from_percent,
    describe,
    names_files,
    save_names,
    save_subset,
)
from data_selection.common.subset_names import output_path, setting_word, shortened, with_settings
from data_selection.images.known_lists import find_images, of_features
from data_selection.images.record import copies, load_record
from data_selection.judging.quality import quality
from data_selection.methods.random_choice import select_random

CHECK_SEED = 1_000_003


class Plan(NamedTuple):
    """What a command makes of its flags for one pool.

    name: the default one. select: called as select(features, budget, device=, progress=, **taken). method, settings,
    budget: for the record. order: of the ids in the file, `given` or `sorted`. by: the words after `chosen by`. taken:
    the ids of --labelled and --excluded, as selection.taken gives them. cores: ids that are chosen in any case. check:
    of the budget, images that are drawn at random from what the method leaves, and marked in the record.
    """

    folder: Path
    name: str
    budget: int
    select: Callable[..., torch.Tensor]
    method: str
    settings: dict[str, Any]
    by: str
    order: str = "sorted"
    taken: Mapping[str, list[int]] = MappingProxyType({})
    cores: Sequence[int] = ()
    check: int = 0


def choose(
    args: argparse.Namespace,
    features: Path,
    plan: Callable[[World, FeatureTable], Plan],
    *,
    quiet: bool = False,
    afresh: bool = False,
) -> bool:
    """Open the features, choose as plan(world, table) says, write the list, its record and its names, and say so.

    A list that is there with the same record is left as it is, without choosing again. quiet: no progress bar. afresh:
    choose all the same, for what else comes of it. Returns whether this process has chosen and written. Raises
    UserError for the user's mistakes, before any work.
    """
    with start(args.device) as world:
        table, todo, told, path = on_all(world, lambda: prepared(args, features, functools.partial(plan, world)))

        @functools.cache
        def record() -> dict[str, Any]:
            return describe(
                table, method=todo.method, config=todo.settings, seed=args.seed, budget=todo.budget, taken=told
            )

        there = on_main(world, lambda: standing(path, table, record, overwrite=args.overwrite))
        if there == "same" and not afresh:
            if world.is_main:
                leave(path, table, todo)
            return False
        if there == "other":
            world.say(f"{path} exists and will be replaced, and its names with it")
        taken = on_all(world, lambda: left_out(args, table, todo, world.say))
        began = time.monotonic()
        progress = None if quiet else bar_factory(world)
        ids = todo.select(table.features, todo.budget - todo.check, device=world.device, progress=progress, **taken)
        seconds = time.monotonic() - began
        if not world.is_main:
            return False
        drawn = draw_rest(table, todo.check, [*ids.tolist(), *taken.get("labelled", ())], taken, args.seed)
        ids = torch.cat([ids.cpu(), drawn])
        annotated = sorted({*ids.tolist(), *taken.get("labelled", ())})
        left = sorted({*taken.get("excluded", ())} - {*annotated})
        found = quality(table.features, annotated, excluded=left, seed=args.seed)
        print(f"quality without labels: {found}", flush=True)
        if found.doubt:
            print(f"warning: {found.doubt}")
        chosen = sorted(ids.tolist()) if todo.order == "sorted" else ids.tolist()
        marked = {CHECK: [(table.names or range(len(table)))[i] for i in drawn.tolist()]} if todo.check else {}
        save_subset(path, chosen, record() | {"images": images_of(table, chosen)} | marked)
        lists = " and ".join(str(file) for file in save_names(path, table))
        verb, count = "wrote" if there == "nothing" else "replaced", todo.budget - todo.check
        print(
            f"{verb} {path}: {count} of {len(table)} images chosen by {todo.by} in {seconds:.1f} s"
            + (f", {todo.check} drawn at random from the rest" if todo.check else "")
            + (f"; their names, one a line, in {lists}" if lists else "")
        )
        return True


def prepared(
    args: argparse.Namespace, features: Path, plan: Callable[[FeatureTable], Plan]
) -> tuple[FeatureTable, Plan, dict[str, str], Path]:
    """(features, what to choose of them, what the list's record tells of the flags, the list's path) of a command."""
    table = load_features(features, label_column=not args.no_label_column)
    todo = plan(table)
    told = {what: setting_word(sorted(ids)) for what, ids in todo.taken.items() if ids}
    told |= {"keep_duplicates": "yes"} if args.keep_duplicates else {}
    columns = {"no_label_column": "yes"} if args.no_label_column else {}
    path = output_path(todo.folder, args.filename or shortened(with_settings(todo.name, told | columns)))
    check_not_input([path, sidecar(path, "provenance"), *names_files(path, table)], args)
    return table, todo, told, path


def left_out(args: argparse.Namespace, table: FeatureTable, todo: Plan, log: Log) -> dict[str, list[int]]:
    """A plan's taken with exact copies among the excluded. Raises UserError where the budget is beyond what is left."""
    taken = dict(todo.taken)
    known = {*todo.cores, *(i for ids in taken.values() for i in ids)}
    if spare := set_aside(args, table, known, log):
        taken["excluded"] = [*taken.get("excluded", ()), *spare]
        check_distinct(todo, len(table), len(known), len(spare))
    check_request(table.features, todo.budget - todo.check, **taken)
    return taken


def draw_rest(
    table: FeatureTable, count: int, chosen: Sequence[int], taken: Mapping[str, list[int]], seed: int
) -> torch.Tensor:
    """`count` rows at random that are neither chosen nor excluded, (count,) int64: the rest of the pool in small."""
    if not count:
        return torch.zeros(0, dtype=torch.int64)
    own = (seed + CHECK_SEED) % 2**32  # the same draws as a random choice's would lie beside its images
    return select_random(table.features, count, labelled=chosen, excluded=taken.get("excluded", ()), seed=own)


def leave(path: Path, table: FeatureTable, todo: Plan) -> None:
    """Say that a list is there already; its names are written where a kill has prevented it."""
    if not all(file.exists() for file in names_files(path, table)):
        save_names(path, table)
    print(
        f"{path} is already there: {todo.budget} of {len(table)} images chosen by {todo.by}, by the same settings from "
        "the same features; --overwrite chooses again"
    )


def check_not_input(paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Raise UserError where a file would replace a list that is chosen by: --labelled, --excluded or the cores."""
    given = vars(args)
    lists = [*(given.get("labelled") or ()), *(given.get("excluded") or ()), given.get("indices_file_name")]
    sources = {Path(source).resolve() for source in lists if source is not None}
    for path in paths:
        if path.resolve() in sources:
            raise UserError(
                f"{path} is one of the lists to choose by, and would be replaced: choose another name or folder"
            )


def budget_of(args: argparse.Namespace, table: FeatureTable) -> int:
    """The number of images that --budget or --percent asks for."""
    budget: int | None = args.budget
    return budget_from_percent(len(table), args.percent) if budget is None else budget


def taken(args: argparse.Namespace, table: FeatureTable, world: World) -> dict[str, list[int]]:
    """The ids of --labelled and --excluded, as the keywords of a selection method."""
    lists = {"labelled": in_place_of_runs(args.labelled or ()), "excluded": in_place_of_runs(args.excluded or ())}
    today = of_features(table)
    return {what: find_images(some, today, missing=args.missing, log=world.say) for what, some in lists.items()}


def set_aside(args: argparse.Namespace, table: FeatureTable, known: Collection[int], log: Log) -> list[int]:
    """Rows that are exact copies of others, by the record beside the features, so that no image is annotated twice.

    Of a group of equal images the first one stays; none where one of them is known: labelled, excluded or a core.
    """
    record = load_record(table.path, len(table)) if table.path and not args.keep_duplicates else None
    spare: list[int] = []
    for group in copies(record.hashes) if record else ():
        free = [row for row in group if row not in known]
        spare += free[1:] if len(free) == len(group) else free
    if spare:
        how = "--keep-duplicates of the selection scripts chooses among all"
        log(f"set aside: {len(spare)} exact copies of other images ({how})")
    return spare


def check_distinct(todo: Plan, images: int, known: int, spare: int) -> None:
    """Raise UserError where a budget asks for more than the distinct images, of which exact copies are set aside."""
    left = images - known - spare
    if not todo.cores and todo.budget > left:
        asked = f"{todo.budget - todo.check}" + (f" and {todo.check} to judge by" if todo.check else "")
        raise UserError(
            f"a budget of {asked} is too large: of {images} images {known} are labelled or excluded and {spare} are "
            f"exact copies of others, which leaves {left}: choose a smaller one"
        )


def images_of(table: FeatureTable, ids: list[int]) -> dict[str, list[str] | None] | None:
    """What a list's provenance says of its images, in its order: names and content hashes, as far as they are known."""
    record = load_record(table.path, len(table)) if table.path else None
    names = None if table.names is None else [table.names[i] for i in ids]
    if record is None and names is None:
        return None
    return {"name": names, "hash": [record.hashes[i] if record else "" for i in ids]}
