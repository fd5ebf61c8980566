"""What every label-free method takes on a pool: seconds and memory, each choice in a process of its own.

python scripts/benchmark.py methods --rows 50000 --budget 1000
python scripts/benchmark.py methods --rows 50000 1281167 --budget 1000 --device cuda
"""

import sys
import time

import numpy as np
import sklearn.cluster  # noqa: F401 - before any clock: half of the methods need it
import torch

from data_selection.commands.shared import make_parser
from data_selection.common.distributed import pick_device
from data_selection.common.errors import UserError
from data_selection.judging.report import markdown_table
from data_selection.methods.table import LABEL_FREE, METHODS
from data_selection.nearest.similarity import normalise
from scripts.benchmarks.activeft import anew, clustered, high_water
from scripts.benchmarks.rivals import COLUMNS, in_fresh_process


def build_parser():
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[50_000], help="pool images, synthetic features of 384 dimensions")
    add("--budget", type=int, default=1_000, help="images to choose")
    add("--methods", nargs="+", choices=[*LABEL_FREE], default=[*LABEL_FREE], help="to measure")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--device", default="cpu", help="cpu or cuda")
    return parser


def main(argv=None):
    """Print a Markdown table, a row per method, columns per pool."""
    args = build_parser().parse_args(argv)
    device, table = str(pick_device(args.device)), []
    for name in args.methods:
        found = [in_fresh_process(choose, (name, rows, args.budget, args.threads, device)) for rows in args.rows]
        table.append([name, *(cell for some in found for cell in told(*some))])
        print(*table[-1], file=sys.stderr, flush=True)
    head = ["method", *(word for rows in args.rows for word in (f"{rows:,} images, s", "MB"))]
    print(markdown_table(head, table))


def told(seconds: float | None, peak: float, error: str) -> tuple[str, str]:
    """Two cells: seconds and MB, or why there are none."""
    return (error, "-") if seconds is None else (f"{seconds:.1f}", f"{peak:.0f}")


def choose(request) -> tuple[float | None, float, str]:
    """(seconds, peak MB, "") of a choice; (None, 0, why) where the method refuses the pool.

    The MB are those beyond the features; on a GPU, to which the method brings them, with them.
    """
    name, rows, budget, threads, device = request
    torch.set_num_threads(threads)
    features = normalise(torch.from_numpy(next(clustered(np.random.default_rng(0), rows, COLUMNS, rows))))
    if device != "cpu":
        torch.ones(1, device=device)  # the driver starts before the clock does
    before, began = anew(device), time.perf_counter()
    try:
        METHODS[name].select(features, budget, config=METHODS[name].config(), seed=0, device=device)
    except UserError as error:
        return None, 0.0, str(error)
    seconds = time.perf_counter() - began
    return seconds, high_water(device) - before, ""
