"""Accuracy of the trainer's modes and of a plain textbook loop with the same recipe, on the demo pool.

python scripts/benchmark.py loops --features outputs/quickstart
"""

import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

from data_selection.commands.shared import make_parser, times
from data_selection.common.feature_table import load_features
from data_selection.common.subset_files import ROOT, save_subset
from data_selection.embedding.backbones import DEMO_WEIGHTS
from data_selection.images.pools import FASHION_MEAN, FASHION_STD, open_pool
from data_selection.judging.evaluation import mean_sd
from data_selection.judging.report import markdown_table
from data_selection.methods.table import LABEL_FREE, METHODS
from deit.main import main as trainer
from tests.support.oracles_finetune import finetune

LOOPS = ("textbook", "full", "linear", "lp-ft")
EVERY = 5  # epochs between evaluations, of which the best is taken


def main(argv=None):
    """Print a Markdown table: mean and sd over the seeds of the last and the best epoch's accuracy, and the time."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True, help="folder with DEMO_train.npy")
    parser.add_argument("--budget", type=int, default=100, help="labels of a run")
    parser.add_argument("--seeds", type=times, default=5, help="of the selection and of the training")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of a run")
    parser.add_argument("--lp_lr", type=float, default=0.1, help="--lr of lp-ft, which starts from a fitted head")
    parser.add_argument(
        "--methods", nargs="+", default=["random", "activeft"], choices=sorted(LABEL_FREE), help="how images are chosen"
    )
    parser.add_argument("--loops", nargs="+", default=LOOPS, choices=LOOPS, help="modes of the trainer")
    args = parser.parse_args(argv)
    table = load_features(args.features / "DEMO_train.npy")
    columns = ["chosen by", "trained by", "last epoch, %", "best epoch, %", "seconds a run"]
    rows = []
    for method in args.methods:
        subsets = [select(table, method, args.budget, seed) for seed in range(args.seeds)]
        for loop in args.loops:
            began = time.perf_counter()
            runs = [score(loop, ids, seed, args.epochs, args.lp_lr) for seed, ids in enumerate(subsets)]
            seconds = (time.perf_counter() - began) / len(runs)
            rows.append([method, loop, *(mean_sd(values) for values in zip(*runs, strict=True)), f"{seconds:.1f}"])
    print(markdown_table(columns, rows))


def select(table, method, budget, seed):
    return METHODS[method].select(table.features, budget, config=METHODS[method].config(), seed=seed).tolist()


def score(loop, ids, seed, epochs, lp_lr=None, every=EVERY):
    """(accuracy of the last epoch, of the best on the evaluation set) of one run on the demo pool, percent."""
    if loop == "textbook":
        reached = finetune(
            open_pool("DEMO"), ids, open_pool("DEMO", "test"), weights=DEMO_WEIGHTS, mean=FASHION_MEAN, std=FASHION_STD,
            epochs=epochs, seed=seed, every=every,
        )  # fmt: skip
        return reached[epochs], max(reached.values())
    with tempfile.TemporaryDirectory() as folder:
        subset = save_subset(Path(folder) / "subset.json", ids)
        words = ["--config", ROOT / "configs" / "demo_finetune.yaml", "--subset_ids", subset, "--output_dir", folder]
        words += ["--mode", loop, "--eval_interval", every, "--seed", seed, "--amp", "bf16", "--device", "cpu"]
        if loop != "linear":
            words += ["--epochs", epochs, "--no-model-ema"]
        if loop == "lp-ft":
            words += ["--lr", lp_lr]
        with contextlib.redirect_stdout(io.StringIO()):
            trainer([str(word) for word in words])
        result = json.loads((Path(folder) / "result.json").read_text())
    return result["last"]["acc1"], result["best"]["acc1"]
