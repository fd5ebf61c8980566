"""The command line of scripts/run_experiment.py: read, check, compute side by side, tell."""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from data_selection.commands.shared import add_device, make_parser
from data_selection.common.errors import UserError, meant, run
from data_selection.common.files import plain
from data_selection.common.system import cores, ended
from data_selection.judging.experiments.plan import PoolSpec, read_plan, resolve

DESCRIPTION = """Compare methods: pools x methods x budgets x seeds x evaluations, as a config says. Killed and started
again, it goes on; started twice, both share the work."""


def build_parser():
    parser = make_parser(DESCRIPTION)
    parser.add_argument("config", type=Path, help="YAML file, such as configs/grid_frozen.yaml")
    parser.add_argument(
        "--output_dir", type=Path,
        help="results.jsonl, lists and outcome go here (default: outputs/<config's name>, with --pool "
        "outputs/<config's name>_<names of these pools>)",
    )  # fmt: skip
    parser.add_argument(
        "--pool", nargs=3, action="append", metavar=("NAME", "TRAIN", "TEST"),
        help="a name and two feature files in place of the config's pools; may come several times",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", action="extend", metavar="POOL",
        help="compute and print only these of the config's pools; the files in --output_dir stay those of all",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, each with one thread")
    parser.add_argument(
        "--shard", type=shard, metavar="I/N", help="only part I (from 0) of N; for jobs that share --output_dir"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the cells and the time that they may take")
    add_device(parser)
    return parser


def shard(text):
    """(i, n) of `i/n`, 0 <= i < n."""
    part, _, count = text.partition("/")
    if not (part.isdigit() and count.isdigit() and int(part) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: 0/4 to 3/4 are the four of four")
    return int(part), int(count)


def load(args):
    """(plan, store, pools, kinds, cells) of a command's flags. Raises UserError before any work."""
    plan = plan_of(args)
    from data_selection.judging.experiments.cells import LoadedPool, make_cells
    from data_selection.judging.experiments.evaluations import FROZEN
    from data_selection.judging.experiments.hashes import Hashes
    from data_selection.judging.experiments.outcome import check_ours
    from data_selection.judging.experiments.store import Store
    from scripts.experiments.trainer import TRAINER

    kinds = FROZEN | {"trainer": TRAINER}
    check_rows(plan)
    check_ours(folder_of(args))
    store = Store(folder_of(args))
    hashes = Hashes(store.folder)
    pools = {pool.name: LoadedPool(pool, hashes) for pool in plan.pools}
    return plan, store, pools, kinds, make_cells(plan, pools, kinds)


def plan_of(args):
    """The config's plan, with the pools of --pool, or those of --only. Raises UserError for its mistakes."""
    plan = whole_plan(args)
    names = [pool.name for pool in plan.pools]
    for name in args.only or ():
        if name not in names:
            raise UserError(f"--only {name}: the pools are {', '.join(names)}{meant(name, names)}")
    return dataclasses.replace(plan, pools=tuple(pool for pool in plan.pools if pool.name in (args.only or names)))


def whole_plan(args):
    """As plan_of, with all pools, whatever --only says."""
    plan = read_plan(args.config)
    if args.pool:
        named = tuple(PoolSpec(name, resolve(train), resolve(test)) for name, train, test in args.pool)
        names = [pool.name for pool in named]
        if len(set(names)) < len(names):
            raise UserError(f"--pool has a name twice, of {', '.join(names)}: give each pool its own")
        plan = dataclasses.replace(plan, pools=named)
    return plan


def check_rows(plan):
    """Raise UserError where no method or no evaluation is for a pool that is asked for."""
    for pool in plan.pools:
        for what, rows in (("method", plan.methods), ("evaluation", plan.evaluations)):
            if not any(row.pools is None or pool.name in row.pools for row in rows):
                raise UserError(
                    f"{plan.path}: no {what} is for pool {pool.name}: every one has pools: of its own; name it there, "
                    "or call it as one of those"
                )


def lacking(cells, records):
    """{evaluation and score: number of the cells whose record has no such score}."""
    without = [
        cell for cell in cells if cell.digest in records and records[cell.digest]["scores"].get(cell.score) is None
    ]
    return Counter(f"{cell.evaluation} asks for the score {cell.score!r}" for cell in without)


def with_the_others(args, pools, kinds, hashes):
    """(plan, cells) with the pools that --only leaves out, those that cannot be opened here aside, which is printed."""
    from data_selection.judging.experiments.cells import LoadedPool, make_cells

    plan, kept, cells = whole_plan(args), [], []
    for pool in plan.pools:
        alone = dataclasses.replace(plan, pools=(pool,))
        try:
            cells += make_cells(alone, {pool.name: pools.get(pool.name) or LoadedPool(pool, hashes)}, kinds)
            kept.append(pool)
        except UserError as error:
            print(f"pool {pool.name} is not in the files: {error}")
    return dataclasses.replace(plan, pools=tuple(kept)), cells


def folder_of(args):
    """Where the outcome goes; that of the config's own pools is not replaced by one of --pool."""
    named = [plain(name) for name, _, _ in args.pool or ()]
    return args.output_dir or Path("outputs") / "_".join([args.config.stem, *named])


def part_of(cells, part):
    """The cells of a shard: every n-th list, with all that is asked of it."""
    if part is None:
        return cells
    place = {digest: i for i, digest in enumerate(dict.fromkeys(cell.list_digest for cell in cells))}
    return [cell for cell in cells if place[cell.list_digest] % part[1] == part[0]]


def compute_all(args, store, pools, kinds, cells):
    """Compute the missing ones of some cells, in this process or in --jobs of its own, with a bar at a terminal."""
    import torch

    from data_selection.commands.shared import bar_factory
    from data_selection.common.distributed import World, pick_device
    from data_selection.common.progress import open_bar
    from data_selection.judging.experiments.work import compute, missing

    pick_device(args.device)  # or its mistakes would be told after the first work
    total = at = len(missing(cells, store))
    with open_bar(bar_factory(World(0, 1, torch.device("cpu"))), total, "cells", "cell") as bar:

        def each(left):
            nonlocal at
            bar.update(at - left)
            at = left

        if args.jobs == 1:
            with one_thread():
                compute(cells, store, pools, kinds, args.device, each)
        else:
            watch_jobs(args, lambda: each(len(missing(cells, store))))


@contextlib.contextmanager
def one_thread():
    """Every library counts with one thread, so that no sum is rounded in another order on another machine."""
    import torch
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def watch_jobs(args, each):
    """Start --jobs processes and wait for them; when one fails, the others end, too. each: called twice a second."""
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=job, args=(args,)) for _ in range(args.jobs)]
    for one in jobs:
        one.start()
    try:
        while any(one.is_alive() for one in jobs):
            check_jobs(jobs)
            time.sleep(0.5)
            each()
        check_jobs(jobs)
    finally:
        for one in jobs:
            one.terminate()
            one.join()


def check_jobs(jobs):
    """Raise UserError where one of some processes has failed. What it said itself is above; of a signal nothing is."""
    for status in (one.exitcode for one in jobs if one.exitcode):
        hint = ", as told above" if status > 0 else "; start again, with fewer --jobs where memory is short"
        raise UserError(f"a job {ended(status)}{hint}: finished cells are kept")


def threads_each(jobs):
    """Threads of a trainer's run in each of some jobs, which share the cores."""
    return max(1, cores() // jobs)


def job(args):
    """One of --jobs. Its trainer runs share the cores with the others'; it ends when the command is killed."""
    from scripts.experiments.trainer import die_with_us  # imports torch

    if last_breath := die_with_us(signal.SIGKILL):
        last_breath()
    os.environ["OMP_NUM_THREADS"] = str(threads_each(args.jobs))

    def work(_):
        _, store, pools, kinds, cells = load(args)
        from data_selection.judging.experiments.work import compute

        with one_thread():
            compute(part_of(cells, args.shard), store, pools, kinds, args.device)

    sys.exit(run(work))


def main(argv=None):
    """Compute a config's cells and print the tables. Raises UserError for the user's mistakes, before any work."""
    args = build_parser().parse_args(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs} must be at least 1")
    plan = plan_of(args)
    counts = f"{len(plan.pools)} pools, {len(plan.methods)} methods, {len(plan.evaluations)} evaluations"
    print(f"{args.config}: {counts}, {len(plan.seeds)} seeds, into {folder_of(args)}", flush=True)
    plan, store, pools, kinds, cells = load(args)
    from data_selection.judging.experiments.hashes import Hashes
    from data_selection.judging.experiments.outcome import tables_of, write_outcome
    from data_selection.judging.experiments.tables import as_markdown
    from data_selection.judging.experiments.work import missing
    from scripts.experiments.forecast import forecast

    tell_doubts(pools)
    mine = part_of(cells, args.shard)
    left = missing(mine, store)
    print(f"{len(mine)} cells, {len(left)} of them to compute", flush=True)
    if args.dry_run:
        return print(forecast(mine, store.known(), args.jobs))
    if left:
        compute_all(args, store, pools, kinds, mine)
    records = store.known()
    if args.shard and missing(cells, store):
        return print(f"{store.path}: this part is done; the last part to end writes the tables")
    for evaluation, count in lacking(mine, records).items():
        print(f"warning: {count} finished cells are in no table: {evaluation}, which its runs do not give")
    if args.only:
        write_outcome(*with_the_others(args, pools, kinds, Hashes(store.folder)), records, store.folder)
        print(as_markdown(tables_of(plan, cells, records)))
    else:
        print(write_outcome(plan, cells, records, store.folder))
    print(f"page, curves, tables (Markdown, CSV, LaTeX) in {store.folder}, the cells in {store.path}")


def tell_doubts(pools):
    """Print what makes the accuracies of some pools doubtful."""
    from data_selection.common.feature_table import compared_by_position
    from data_selection.images.label_files import some

    for pool in pools.values():
        if pool.test is not None and (granted := compared_by_position(pool.test, pool.train)):
            print(f"warning: pool {pool.spec.name}: {granted}")
        if unknown := pool.unknown_classes():
            print(
                f"warning: pool {pool.spec.name}: {len(unknown)} classes of its test images have no image in it: "
                f"{some([str(label) for label in unknown])}; are both labelled alike?"
            )
        if copied := pool.copied():
            print(
                f"warning: pool {pool.spec.name}: {len(copied)} of its {len(pool.test)} test images are copies of "
                f"images in it, and make every accuracy look better than it is: {some(copied)}"
            )
