"""Labels in rounds: accuracy after each, by methods that ask a model of the labels so far and by methods that do not.

python scripts/benchmark.py rounds --train F_train.npy --test F_test.npy --output_dir outputs/rounds

All methods begin with the same images, but for random, which is random from the first image on. The model of a round
is the smoothed probe. Accuracy is that of a plain probe, its C by cross-validation on the labels, and of the smoothed
probe without (lrZ) and with (csZ) labels spread over the neighbours; differences are to random under a plain probe.
Facility location draws nothing in pools of up to 10,000 images: all seeds begin alike there.
"""

import dataclasses
import sys
import time
from pathlib import Path

import torch

from data_selection.commands.shared import make_parser
from data_selection.common.errors import UserError
from data_selection.judging.experiments.cells import LoadedPool, Task, digest_of
from data_selection.judging.experiments.evaluations import FROZEN
from data_selection.judging.experiments.hashes import Hashes
from data_selection.judging.experiments.plan import PoolSpec
from data_selection.judging.experiments.store import Store
from data_selection.judging.experiments.summary import summarise
from data_selection.judging.experiments.tables import as_markdown, make_tables
from data_selection.judging.rounds import choose_next
from data_selection.methods.table import LABEL_FREE, METHODS

AUTO, RANDOM = "auto", "random"
ROUNDS = [name for name, row in METHODS.items() if row.rounds]
EVALUATIONS = {"probe": {"c": "auto"}, "smoothed": {}}  # kind -> settings
SCORES = ("plain", "lrZ", "csZ")


def build_parser():
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", type=Path, required=True, help="feature file of the pool, with labels")
    add("--test", type=Path, required=True, help="feature file of the test images, with labels")
    add("--imbalance", type=float, help="the pool is a long-tailed cut of --train: its largest class by its smallest")
    add("--output_dir", type=Path, required=True, help="results.jsonl; what is in it is not measured again")
    add("--sizes", type=int, nargs="+", default=[100, 250, 500, 1_000, 2_500], help="labels after each round")
    add("--start", default="facility", choices=sorted(LABEL_FREE), help="the method of the first round")
    add("--methods", nargs="+", default=[RANDOM, "voptimal", *ROUNDS, AUTO], choices=[*sorted(METHODS), AUTO],
        metavar="METHOD", help=f"of the later rounds: {', '.join(METHODS)}, or {AUTO}, by the labels")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=range(5), help="of the selection")
    return parser


def main(argv=None):
    """Measure what is missing, then print Markdown tables: accuracies, differences to random, labels saved."""
    args = build_parser().parse_args(argv)
    if sorted(set(args.sizes)) != args.sizes or args.sizes[0] < 1:
        raise UserError(f"--sizes {' '.join(map(str, args.sizes))}: labels after each round, ascending, are needed")
    store = Store(args.output_dir)
    pool = LoadedPool(PoolSpec(args.train.stem, args.train, args.test, args.imbalance), Hashes(args.output_dir))
    if args.sizes[-1] > len(pool.rows):
        raise UserError(f"--sizes {args.sizes[-1]} exceeds the {len(pool.rows)} images of {args.train}: take fewer")
    values = {}
    for seed in args.seeds:
        for method in args.methods:
            for record in follow(pool, store, method, args.start, args.sizes, seed):
                for score in SCORES:
                    cell = (pool.spec.name, "rounds", f"{method}, {score}", record["labels"])
                    values.setdefault(cell, {})[seed] = record["scores"][score]
    baseline = f"{RANDOM}, plain"
    print(as_markdown(make_tables(summarise(values, baseline), baseline)))
    print(f"{len(store.known())} rounds are in {store.path}")


def follow(pool, store, method, start, sizes, seed):
    """The records of a method's rounds, one for each size: what is in the store, and measured and put there if not.

    A record holds all `ids` so far, rows of the pool (of the cut, where it is one), and its digest all that they and
    the scores depend on, so that rounds that several methods share are measured once.
    """
    ids, steps, records = [], [], []
    for size in sizes:
        name = method if ids or method == RANDOM else start
        steps.append([name, size, settings(name)])
        digest = digest_of([pool.train_hash, pool.test_hash, pool.spec.imbalance, seed, steps, EVALUATIONS])
        if digest not in store.known():
            found = measure(pool, store, name, ids, size, seed)
            record = {"digest": digest, "pool": pool.spec.name, "method": name, "labels": size, "seed": seed} | found
            store.append(record | {"steps": steps, "versions": pool.provenance["versions"]})
            told = ", ".join(f"{score} {value:.2f}" for score, value in found["scores"].items())
            print(f"seed {seed}, {method}, {size} labels: {told}", file=sys.stderr, flush=True)
        records.append(store.known()[digest])
        ids = records[-1]["ids"]
    return records


def settings(name):
    """{method: its settings} of what a name can choose by."""
    return {one: dataclasses.asdict(METHODS[one].config()) for one in (ROUNDS if name == AUTO else [name])}


def measure(pool, store, name, before, size, seed):
    """One round of a method after the labels of `before`: all ids, the scores and the seconds that choosing took."""
    _, labels, _, _ = pool.tensors
    known, smoothing = torch.tensor(before, dtype=torch.int64), pool.smoothed(k=10, steps=2)[0]
    began = time.perf_counter()
    if name in LABEL_FREE:
        row = METHODS[name]
        more = {"smoothed": smoothing.smoothed} if row.smoothed else {}
        new = row.select(pool.features, size - len(before), config=row.config(), labelled=known, seed=seed, **more)
        chosen_by = name
    else:
        new, chosen_by, _ = choose_next(
            pool.features, labels[known], known, size - len(before), method=name, classes=pool.classes, seed=seed,
            base=smoothing,
        )  # fmt: skip
    seconds = round(time.perf_counter() - began, 3)
    ids = [*before, *new.tolist()]
    found = {}
    for kind, given in EVALUATIONS.items():
        complete = FROZEN[kind].check(given, pool.spec, kind)
        found[kind] = FROZEN[kind].run(Task(pool, torch.tensor(ids), store.path, seed, complete, store.folder))
    scores = {"plain": found["probe"]["accuracy"]} | {score: found["smoothed"][score] for score in ("lrZ", "csZ")}
    return {"ids": ids, "scores": scores, "chosen_by": chosen_by, "c": found["probe"]["c"], "seconds": seconds}
