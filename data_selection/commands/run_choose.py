"""The work of choose_images.py: look ahead, embed, choose, and leave what people and their tools need to label."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_selection.annotation.originals import HOW
from data_selection.annotation.round_labels import EARLIER, digest, note_earlier
from data_selection.annotation.run_folder import (
    BELIEFS,
    FEATURES,
    LABELLED,
    PERCENT,
    RECORD,
    SUBSET,
    VERSION,
    WAITING,
    WEIGHTS,
    class_words,
    is_chosen,
    read_run,
)
from data_selection.commands.any_method import next_round
from data_selection.commands.earlier_rounds import AUTO, Known, backbone_of, borrow, method_of, read_labelled
from data_selection.commands.extract import build_parser
from data_selection.commands.foresight import check_disk, foresee, rows_looked_at
from data_selection.commands.given_labels import numbered
from data_selection.commands.handing_out import Order, hand_out
from data_selection.commands.run_extract import Ready, extract_pool, output_folder, source_of
from data_selection.commands.selection import Plan, choose
from data_selection.common.distributed import World, on_main, one_process, start
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.common.files import atomic_write, one_at_a_time, read_json, sha256
from data_selection.common.subset_files import CHECK, budget_from_percent, versions
from data_selection.images.answers import write_labels
from data_selection.images.label_files import some
from data_selection.images.pools import POOLS, Pool, own_pool
from data_selection.judging.advice import CORE, advise
from data_selection.judging.estimate import FEWEST_DRAWN
from data_selection.methods.table import METHODS

if TYPE_CHECKING:
    from data_selection.common.feature_table import FeatureTable


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What choose_images left. folder: of everything; ids: rows of the pool, ascending; files: their names."""

    folder: Path
    ids: list[int]
    files: list[str]


def choose_images(
    source: Path | str,
    budget: int | str,
    out: Path | str,
    *,
    method: str = "activeft",
    strategy: str = AUTO,
    model: str | None = None,
    weights: str = "",
    allow_http: bool = False,
    check: int = 0,
    labelled: Sequence[Path | str] = (),
    partial: bool = False,
    classes: Sequence[str] | str = (),
    images: str = "link",
    embed: bool = False,
    dry_run: bool = False,
    num_workers: int = 16,
    seed: int = 0,
    device: str = "auto",
) -> Chosen | None:
    """Choose `budget` images (a number, or percent: "2%") of a folder or list, and make the folder `out` to label them.

    method: a row of LABEL_FREE, or `auto`: as judging.advice says once the pool is embedded. check: so many images
    more, drawn at random from the rest of the pool, which training judges by and learns from, too. labelled: folders of
    earlier rounds, or label files of any tool; these images are not chosen again, and with labels of two classes a
    model of them chooses by a strategy, one of STRATEGIES (`auto`: as judging.rounds advises). partial: without those
    that are gone. model: by default that
    of the last folder of `labelled`, with its weights, else MODEL. classes: names for the page, or the `a,b,c` or file
    of the command. images: `link`, `copy` or `none`. The same call again goes on where it was stopped, and never writes
    over labels. dry_run: only say what it would do, and return None. Raises UserError for the user's mistakes, before
    any work.
    """
    # rank 0 alone looks for neighbours and writes the pages, and each step would form a group of its own at one port
    one_process(
        "choose_images.py", "; features can be made by several first: extract_feature.py --output_dir OUT/features"
    )
    if str(source) in POOLS:
        raise UserError(f"{source} is a data set, and a folder of images or a list is needed: write ./{source} for one")
    source, out, *labelled = (Path(os.path.expanduser(one)) for one in (source, out, *labelled))  # noqa: PTH111 - ./~ is a folder
    if images not in HOW:
        raise UserError(f"images {images!r}: {', '.join(HOW)} are known")
    words = class_words(classes)
    model, weights = backbone_of(model, os.path.expanduser(weights), labelled)  # noqa: PTH111 - or an address
    pool = open_images(source, out)
    count = number(budget, len(pool))
    if check and check < FEWEST_DRAWN:
        raise UserError(f"--check {check}: from fewer than {FEWEST_DRAWN} images nothing can be told: 0 asks for none")
    known = read_labelled(labelled, pool, words, partial=partial)
    by, reason = method_of(known, count, method, strategy)
    request = {
        "budget": count, "method": method, "seed": seed, "model": model, "weights": weights and Path(weights).name,
        WEIGHTS: sha256(weights) if weights and os.path.isfile(weights) else None,  # noqa: PTH113 - or an address
        PERCENT: str(budget).replace(" ", "") if str(budget).strip().endswith("%") else None,
        CHECK: check or None, "labelled": digest(known.labels, known.waiting) if labelled else None,
        "strategy": strategy if known.labels else None,
    }  # fmt: skip
    order = Order(out, source, known.classes if words else [], images, embed)
    with contextlib.nullcontext() if dry_run else in_turn(out):
        if not is_chosen(out, request, known.labels):
            free = len(pool) - len(known.labels) - len(known.waiting)
            if not 1 <= count <= free - check:
                most, rest = free - check, f" less the {check} of --check" if check else ""
                raise UserError(
                    f"--budget {count} is outside 1..{most}, the images without a label{rest}: choose another"
                )
            embedding = extraction(source, out, model, weights, num_workers, device, allow_http)
            whole = os.path.abspath(weights) if Path(weights).is_file() else weights  # noqa: PTH100 - a link stays one
            plan = Planned(out, count, check, by, seed, request, whole, known, order)
            if reason:
                print(f"chosen by {by}, which asks a model of the labels so far: {reason}")
            with contextlib.nullcontext() if dry_run else output_folder(embedding.output_dir):
                if not plan.embed(embedding, labelled, dry_run):
                    return None
                plan.choose(device)
        else:
            say_new(pool, out)
            if dry_run:
                print(f"{out} holds this choice already: its page and lists would be made anew, labels kept")
                return None
        with start(device) as world:
            if world.is_main:
                hand_out(order, pool, known.labels, world)
    return Chosen(out, read_json(out / SUBSET), order.files())


@contextlib.contextmanager
def in_turn(out: Path) -> Iterator[None]:
    """Keep a second start of the command out of the folder until this one has ended, so that it holds one choice."""
    with output_folder(out), one_at_a_time(out / RECORD, print):
        yield


def say_new(pool: Pool, out: Path) -> None:
    """Say how many images have come to a pool since `out` was chosen from it."""
    seen = set(load_features(out / read_run(out)["features"]).names or ())
    new = [name for name in pool.names or () if name not in seen]
    if new:
        print(
            f"{len(new)} images are new since this choice, or could not be read then, and are not in it: {some(new)}; "
            f"a further round (--labelled {out}) chooses among them"
        )


@dataclasses.dataclass(frozen=True)
class Planned:
    """A choice that is still to be made. method: AUTO where the features are to decide."""

    out: Path
    budget: int
    check: int
    method: str
    seed: int
    request: dict[str, object]
    weights: str
    known: Known
    order: Order

    def embed(self, args: argparse.Namespace, labelled: Sequence[Path | str], dry_run: bool) -> bool:
        """Say what is to come, then extract. Returns whether to go on to the choice."""
        method = self.method
        if method == AUTO:  # what it takes for an even pool, for the time that it needs
            method = "facility" if self.budget + len(self.known.labels) <= CORE else "voptimal"
        config = METHODS[method].config()

        def select(features: torch.Tensor, budget: int) -> torch.Tensor:
            return METHODS[method].select(
                features, budget, config=config, seed=self.seed, device=args.device_used, **self.stand_in(features)
            )

        def look(ready: Ready) -> bool:
            args.device_used, args.path = ready.world.device, ready.path
            whole = self.budget + self.check
            ahead = foresee(ready, whole, select, self.order.images, self.order.embed, rows_looked_at(config, whole))
            ready.world.say(ahead.told(len(ready.pool), self.budget, self.method))
            check_disk(self.out, ahead.disk)
            return not dry_run

        with start(args.device) as world:
            if not dry_run:
                on_main(world, lambda: borrow(args, labelled))
            extract_pool(args, world, world.say, look)
            if not dry_run:
                on_main(world, lambda: self.note(args))  # the others read it next
        return not dry_run

    def stand_in(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a method of rounds is tried with, in place of a model's answers."""
        row = METHODS.get(self.method)
        if row is None or not row.rounds:
            return {}
        said = features[:, : len(set(self.known.labels.values()))].softmax(1)
        return {"probabilities": said} | ({"smoothed": features} if row.smoothed else {})

    def note(self, args: argparse.Namespace) -> None:
        """Write run.json, by which the folder is this command's, and labelled.csv; both come before the choice."""
        record = {
            "version": VERSION, "source": source_of(args.dataset, None), "request": self.request,
            "features": args.path.relative_to(self.out).as_posix(), "weights": self.weights,
            "rounds": self.known.rounds, CHECK: self.known.check, WAITING: self.known.waiting,
            "classes": self.known.classes, EARLIER: note_earlier(self.known.runs, self.out), "versions": versions(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }  # fmt: skip
        with atomic_write(self.out / RECORD, "w") as handle:
            json.dump(record, handle, indent=1)
        if self.known.labels:
            with atomic_write(self.out / LABELLED, "w") as handle:
                handle.write(write_labels(self.known.labels))
        else:
            (self.out / LABELLED).unlink(missing_ok=True)  # of a start with --labelled that was killed
        (self.out / BELIEFS).unlink(missing_ok=True)

    def choose(self, device: str) -> None:
        """Choose from the features, and write the list with its record."""
        features = self.out / read_run(self.out)["features"]
        args = argparse.Namespace(
            device=device, seed=self.seed, no_label_column=False, filename=SUBSET, overwrite=False,
            keep_duplicates=False,
        )  # fmt: skip

        def plan(world: World, table: "FeatureTable") -> Plan:
            rows = {name: row for row, name in enumerate(table.names or ())}
            taken, waiting = (
                [rows[name] for name in some if name in rows] for some in (self.known.labels, self.known.waiting)
            )
            method = self.method
            if method == AUTO:
                advice = advise(table.features, self.budget, labelled=taken, excluded=waiting, seed=self.seed)
                method = advice.method
                world.say(f"--method {AUTO} takes {method}: {advice.reason}")
            config = METHODS[method].config()
            select = functools.partial(METHODS[method].select, config=config, seed=self.seed)
            if METHODS[method].rounds:
                select = functools.partial(
                    next_round, table, numbered(self.known.labels, table), world, method, config, self.seed
                )
            settings = dataclasses.asdict(config) | ({CHECK: self.check} if self.check else {})
            budget = self.budget + self.check
            known = {"labelled": taken, "excluded": waiting}
            return Plan(
                self.out, SUBSET, budget, select, method, settings, method, taken=known, check=self.check
            )  # fmt: skip

        choose(args, features, plan)


def open_images(source: Path, out: Path) -> Pool:
    """The pool of a folder or list; every image has a file and a name."""
    pool = own_pool(source)
    if source.is_dir() and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(source)):
        raise UserError(f"--out {out} lies in the folder of images {source}, which is left as it is: choose another")
    return pool


def number(budget: int | str, images: int) -> int:
    """A budget in images: a whole number, or percent with the sign."""
    text = str(budget).strip()
    if text.endswith("%"):
        return budget_from_percent(images, text[:-1].strip())
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--budget {text!r} is no number of images, as 200, and no percent, as 2%") from None


def extraction(
    source: Path, out: Path, model: str, weights: str, workers: int, device: str, allow_http: bool
) -> argparse.Namespace:
    """The flags of extract_feature.py that embed the pool into out/features."""
    words = [f"--arch={model}", f"--pretrained_weights={weights}", "--num_workers", str(workers), "--device", device,
             "--on_error", "skip", *(["--allow-http"] if allow_http else [])]  # fmt: skip
    args = build_parser().parse_args(["--dataset=", *words])
    args.dataset, args.output_dir = os.path.abspath(source), out / FEATURES  # noqa: PTH100 - by no name that means more
    return args
