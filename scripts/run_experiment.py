"""Compare methods: pools x methods x budgets x seeds x evaluations of a config, into tables, curves and a page."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.common.errors import run
from scripts.experiments.command import main

if __name__ == "__main__":
    sys.exit(run(main))
