"""Processes that begin with the slow imports done: one server, which serves all test files, forks them."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "deit.trainer", "data_selection.commands.extract", "data_selection.methods.bilaf.selection",
     "sklearn.cluster", "timm", "tests.support.trainer_runs"]
)  # fmt: skip
