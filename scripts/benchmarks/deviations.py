"""What each deviation of the released BiLAF program changes: accuracy of a linear probe or of finetuning.

Every variant has the same cores.

python scripts/benchmark.py deviations --train outputs/quickstart/DEMO_train.npy --test outputs/quickstart/DEMO_test.npy
"""

import dataclasses
import functools
import json
from pathlib import Path

import torch

from data_selection.commands.shared import bar_factory, make_parser, times
from data_selection.common.distributed import start
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.common.files import atomic_write, read_json, sha256
from data_selection.common.progress import open_bar
from data_selection.common.subset_files import budget_from_percent
from data_selection.images.pools import open_pool
from data_selection.judging.evaluation import judge_subset, mean_sd
from data_selection.judging.report import markdown_table
from data_selection.methods.activeft import select_activeft
from data_selection.methods.bilaf.selection import default_core_number, select_bilaf
from data_selection.methods.configs import BILAF_PRESETS as PRESETS
from data_selection.methods.configs import CHOICES
from data_selection.methods.random_choice import select_random
from scripts.benchmarks.loops import score

FIELDS = ("normalised", "small_class", *CHOICES)  # each is one deviation


def build_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--train", type=Path, required=True, help="feature file of the pool, with labels")
    add("--test", type=Path, required=True, help="feature file of the images to judge on")
    add("--percents", nargs="+", default=["0.5", "1", "2", "5", "10"], help="budgets, percent (0-100) of the pool")
    add("--cores", type=int, help="cores, at most half of the budget (default: as select_bilaf chooses)")
    add("--seeds", type=times, default=5, help="ActiveFT runs per budget; every variant takes their cores")
    add("--rows", nargs="+", metavar="ROW", help="only these rows of the table")
    add("--finetune", action="store_true", help="judge by finetuning the demo backbone; only for the demo pool")
    add("--epochs", type=int, default=40, help="of a finetuning")
    add(
        "--scores", type=Path,
        help="JSON file of accuracies: those in it of the same files are not measured again, new ones are added",
    )  # fmt: skip
    return parser


def main(argv=None):
    """Print two Markdown tables: accuracies, and differences to BiLAF paper with the same seed."""
    args = build_parser().parse_args(argv)
    titles, budgets, scores = measure(args)
    seeds = range(args.seeds)
    accuracy = [[t, *(mean_sd(scores[t, b, s] for s in seeds) for b in budgets)] for t in titles]
    header = ["chosen by", *(f"{percent} % ({budget})" for percent, budget in zip(args.percents, budgets, strict=True))]
    judged = f"finetuning, {args.epochs} epochs, the last" if args.finetune else "linear probe"
    print(f"{judged}, %, mean ± sd over {args.seeds} seeds, torch {torch.__version__}\n")
    print(markdown_table(header, accuracy))
    if "paper" in titles:
        gain = [
            [t, *(mean_sd(scores[t, b, s] - scores["paper", b, s] for s in seeds) for b in budgets)]
            for t in titles if t != "paper"
        ]  # fmt: skip
        print("\nminus BiLAF paper with the same seed and cores, points\n")
        print(markdown_table(header, gain))


def measure(args):
    """(rows of the table, budgets, {(row, budget, seed): accuracy}); known accuracies are not measured again."""
    train, test = (load_features(path) for path in (args.train, args.test))
    budgets = [budget_from_percent(len(train), percent) for percent in args.percents]
    variants = configs()
    titles = args.rows or ["random", "ActiveFT", *variants]
    unknown = set(titles) - {"random", "ActiveFT", *variants}
    if unknown:
        raise UserError(f"--rows {' '.join(unknown)} is unknown: use random, ActiveFT, {', '.join(variants)}")
    if args.finetune and (train.labels is None or list(train.labels) != open_pool("DEMO").labels):
        raise UserError(f"--finetune trains on the demo pool, whose ids {args.train} does not hold: use DEMO_train.npy")
    known = read_json(args.scores) if args.scores and args.scores.exists() else {}
    files = f"{args.train.name} {sha256(args.train)[:16]}, judged on {args.test.name} {sha256(args.test)[:16]}"
    scores = {}

    @functools.cache  # some variants choose the same images
    def judge(ids, seed):
        if args.finetune:
            return score("full", list(ids), seed, args.epochs, every=args.epochs)[0]
        return judge_subset(torch.tensor(ids), train, test)[1]

    with start("cpu") as world, open_bar(bar_factory(world), args.seeds * len(budgets), "deviations") as bar:
        for seed in range(args.seeds):
            activeft = functools.cache(functools.partial(select_activeft, train.features, seed=seed))  # budget -> ids
            for budget in budgets:
                count = default_core_number(len(train), budget)
                count = count if args.cores is None else min(args.cores, budget // 2)
                for title in titles:
                    key = f"{files}, {title}, budget {budget}, seed {seed}"
                    key += f", {count} cores" if title in variants else ""
                    key += f", {args.epochs} epochs" if args.finetune else ""
                    if key not in known:
                        ids = choose(title, variants, train.features, budget, count, seed, activeft)
                        known[key] = judge(tuple(sorted(ids.tolist())), seed)
                        if args.scores:
                            with atomic_write(args.scores, "w") as handle:
                                json.dump(known, handle, indent=1)
                    scores[title, budget, seed] = known[key]
                bar.update(1)
    return titles, budgets, scores


def configs():
    """{title: BiLAFConfig}: both presets, and from each of them every field alone turned to the other's value."""
    found = {name: PRESETS[name] for name in ("paper", "released")}
    for name, other in (("paper", "released"), ("released", "paper")):
        for field in FIELDS:
            value = getattr(PRESETS[other], field)
            found[f"{name}, {field}={value}"] = dataclasses.replace(PRESETS[name], **{field: value})
    return found


def choose(title, variants, features, budget, count, seed, activeft):
    """The ids that a row of the table chooses; activeft: budget -> ids of this seed."""
    if title == "random":
        return select_random(features, budget, seed=seed)
    if title == "ActiveFT":
        return activeft(budget)
    return select_bilaf(features, budget, cores=activeft(count), config=variants[title])
