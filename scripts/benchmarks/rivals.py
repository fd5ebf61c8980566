"""Methods that scikit-activeml has too, side by side: seconds, memory, and whether the lists are the same.

pip install scikit-activeml
python scripts/benchmark.py rivals --rows 5000 --budget 100
"""

import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import sklearn.cluster  # noqa: F401 - before any clock: half of the methods of either side need it
import torch

from data_selection.commands.shared import make_parser
from data_selection.common.errors import UserError
from data_selection.judging.report import markdown_table
from data_selection.methods.configs_clusters import ProbCoverConfig
from data_selection.methods.configs_design import MaxHerdingConfig
from data_selection.methods.design.kernels import sampled_distance
from data_selection.methods.table import METHODS
from data_selection.nearest.pool_reader import UnitPool, working_memory
from data_selection.nearest.similarity import normalise
from scripts.benchmarks.activeft import anew, clustered, high_water

COLUMNS = 384
DELTA = 0.9  # radius of ProbCover's balls, the same for both
FIRST = 0  # a row that is labelled already: both farthest-point choices begin there


def sigma_of(features: torch.Tensor) -> float:
    """The width of MaxHerding's kernel with seed 0."""
    every = torch.arange(len(features))
    pool = UnitPool(features, every, features.device, working_memory(None, features.device))
    return sampled_distance(pool, torch.Generator().manual_seed(0))


def theirs(name: str, features: torch.Tensor):
    """Their strategy of a name in METHODS, set as ours."""
    from skactiveml import pool

    settings = {
        "fps": (pool.CoreSet, {}),
        "maxherding": (pool.MaxHerding, {"metric_dict": {"gamma": 0.5 / sigma_of(features) ** 2}}),
        "probcover": (pool.ProbCover, {"deltas": [DELTA]}),
        "typiclust": (pool.TypiClust, {"k": 20}),
    }
    strategy, words = settings[name]
    return strategy(missing_label=-1, random_state=0, **words)


# name in METHODS: our config by the number of rows, and where both are free
OURS = {
    "fps": (lambda _: METHODS["fps"].config(), ""),
    "maxherding": (lambda rows: MaxHerdingConfig(clients=rows, candidates=rows), ""),
    "probcover": (lambda _: ProbCoverConfig(delta=DELTA), ", both draw among equals"),
    "typiclust": (lambda _: METHODS["typiclust"].config(), ", both draw clusters"),
}


def build_parser():
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=int, nargs="+", default=[5_000], help="pool images, synthetic features of 384 dimensions")
    add("--budget", type=int, default=100, help="images to choose; one row is labelled already")
    add("--methods", nargs="+", choices=[*OURS], default=[*OURS], help="to compare")
    add("--threads", type=int, default=2, help="CPU threads of ours")
    add("--most", type=float, default=8.0, help="GB that a choice may take beyond the features")
    return parser


def main(argv=None):
    """Print a Markdown table, a row per pool and method; each choice is made in a process of its own."""
    args = build_parser().parse_args(argv)
    try:
        import skactiveml  # noqa: F401
    except ImportError:
        raise UserError(
            "scikit-activeml is not installed, which is compared with: pip install scikit-activeml"
        ) from None
    table = []
    for rows in args.rows:
        for name in args.methods:
            (ids, seconds, peak), (others, their_seconds, their_peak) = (
                in_fresh_process(choose, (whose, name, rows, args.budget, args.threads, args.most))
                for whose in ("ours", "theirs")
            )
            shared = f"{len(set(ids) & set(others))} of {args.budget}"
            table.append([
                rows, name, *told(ids, seconds, peak), *told(others, their_seconds, their_peak),
                ("same list" if ids == others else shared) + OURS[name][1] if ids and others else "",
            ])  # fmt: skip
    head = ["images", "method", "ours, s", "MB", "scikit-activeml, s", "MB", "chosen by both"]
    print(markdown_table(head, table))


def told(ids: list[int], seconds: float, peak: float) -> tuple[str, str]:
    """Two cells: seconds and MB, where there was enough memory."""
    return (f"{seconds:.2f}", f"{peak:.0f}") if ids else ("-", "out of memory")


def in_fresh_process(function, request):
    """function(request), whose memory nothing has used before."""
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        return fresh.apply(function, (request,))


def choose(request) -> tuple[list[int], float, float]:
    """(ids, seconds, peak MB beyond the features) of a choice; no ids where there was not enough memory."""
    whose, name, rows, budget, threads, most = request
    torch.set_num_threads(threads)
    features = normalise(torch.from_numpy(next(clustered(np.random.default_rng(0), rows, COLUMNS, rows))))
    labels = np.full(rows, -1)
    labels[FIRST] = 0
    query = theirs(name, features) if whose == "theirs" else None
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + int(most * 1e9), resource.RLIM_INFINITY))
    before, began = anew(), time.perf_counter()
    try:
        if query is None:
            ids = METHODS[name].select(features, budget, config=OURS[name][0](rows), labelled=[FIRST], seed=0).tolist()
        else:
            ids = query.query(features.numpy(), labels, batch_size=budget).tolist()
    except (MemoryError, RuntimeError) as error:  # PyTorch's own allocator raises the second
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        ids = []
    return ids, time.perf_counter() - began, high_water() - before
