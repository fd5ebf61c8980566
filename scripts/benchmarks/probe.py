"""The linear probe at several strengths of its penalty, on random subsets of the demo pool."""

from pathlib import Path

import torch

from data_selection.commands.shared import make_parser
from data_selection.common.feature_table import load_features
from data_selection.judging.evaluation import mean_sd, probe_accuracy
from data_selection.judging.report import markdown_table
from data_selection.methods.random_choice import select_random

STRENGTHS = (1, 10, 100, 1_000, 10_000, None)  # None: chosen on the labels


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder with DEMO_train.npy and DEMO_test.npy")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[50, 100, 500, 10_000], help="labels; all of them are fitted once"
    )
    args = parser.parse_args(argv)
    train, test = (load_features(args.features / f"DEMO_{split}.npy") for split in ("train", "test"))
    held_out = (test.tensor(), torch.from_numpy(test.labels))
    table = []
    for budget in args.budgets:
        seeds = range(1000, 1005) if budget < len(train) else [1000]  # whose subsets differ
        subsets = [select_random(train.features, budget, seed=seed) for seed in seeds]
        known = [(train.tensor()[ids], torch.from_numpy(train.labels)[ids]) for ids in subsets]
        table.append([budget, *(mean_sd(probe_accuracy(*some, *held_out, c=c) for some in known) for c in STRENGTHS)])
    print(markdown_table(["labels", *(f"C = {c}" if c else "C chosen on the labels" for c in STRENGTHS)], table))
