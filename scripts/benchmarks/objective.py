"""ActiveFT's two objectives on the demo pool: linear-probe accuracy of what they choose, random beside them."""

from pathlib import Path

import torch

from data_selection.commands.shared import bar_factory, make_parser, times
from data_selection.common.distributed import start
from data_selection.common.feature_table import load_features
from data_selection.common.progress import open_bar
from data_selection.judging.evaluation import judge_subset, mean_sd
from data_selection.judging.report import markdown_table
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.table import METHODS

ROWS = {
    "random": ("random", METHODS["random"].config()),
    "ActiveFT, released objective": ("activeft", ActiveFTConfig()),
    "ActiveFT, paper's objective": ("activeft", ActiveFTConfig(objective="paper")),
}


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--features", type=Path, required=True, help="folder with DEMO_train.npy and DEMO_test.npy")
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 500], help="images to choose")
    parser.add_argument("--seeds", type=times, default=5, help="selections per row and budget")
    args = parser.parse_args(argv)
    train, test = (load_features(args.features / f"DEMO_{split}.npy") for split in ("train", "test"))
    table = []
    with start("cpu") as world, open_bar(bar_factory(world), len(ROWS) * len(args.budgets), "objective") as bar:
        for title, (method, config) in ROWS.items():
            cells = []
            for budget in args.budgets:
                ids = [METHODS[method].select(train.features, budget, config=config, seed=s) for s in range(args.seeds)]
                cells.append(mean_sd(judge_subset(chosen, train, test)[1] for chosen in ids))
                bar.update(1)
            table.append([title, *cells])
    print(f"linear probe, %, mean ± sd over {args.seeds} seeds, torch {torch.__version__}\n")
    print(markdown_table(["chosen by", *(f"{budget} labels" for budget in args.budgets)], table))
