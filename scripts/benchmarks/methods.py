"""What every label-free method takes on a pool: seconds and memory, each choice in a process of its own.

python scripts/benchmark.py methods --rows 50000 --budget 1000
"""

import time

import numpy as np
import sklearn.cluster  # noqa: F401 - before any clock: half of the methods need it
import torch

from data_selection.commands.shared import make_parser
from data_selection.common.errors import UserError
from data_selection.judging.report import markdown_table
from data_selection.methods.table import LABEL_FREE, METHODS
from data_selection.nearest.similarity import normalise
from scripts.benchmarks.activeft import clustered, high_water
from scripts.benchmarks.rivals import COLUMNS, in_fresh_process


def build_parser():
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[50_000], help="pool images, synthetic features of 384 dimensions")
    add("--budget", type=int, default=1_000, help="images to choose")
    add("--methods", nargs="+", choices=[*LABEL_FREE], default=[*LABEL_FREE], help="to measure")
    add("--threads", type=int, default=2, help="CPU threads")
    return parser


def main(argv=None):
    """Print a Markdown table, a row per method, columns per pool."""
    args = build_parser().parse_args(argv)
    table = []
    for name in args.methods:
        found = [in_fresh_process(choose, (name, rows, args.budget, args.threads)) for rows in args.rows]
        table.append([name, *(cell for some in found for cell in told(*some))])
    head = ["method", *(word for rows in args.rows for word in (f"{rows:,} images, s", "MB"))]
    print(markdown_table(head, table))


def told(seconds: float | None, peak: float, error: str) -> tuple[str, str]:
    """Two cells: seconds and MB, or why there are none."""
    return (error, "-") if seconds is None else (f"{seconds:.1f}", f"{peak:.0f}")


def choose(request) -> tuple[float | None, float, str]:
    """(seconds, peak MB beyond the features, "") of a choice; (None, 0, why) where the method refuses the pool."""
    name, rows, budget, threads = request
    torch.set_num_threads(threads)
    features = normalise(torch.from_numpy(next(clustered(np.random.default_rng(0), rows, COLUMNS, rows))))
    before, began = high_water(), time.perf_counter()
    try:
        METHODS[name].select(features, budget, config=METHODS[name].config(), seed=0)
    except UserError as error:
        return None, 0.0, str(error)
    return time.perf_counter() - began, high_water() - before, ""
