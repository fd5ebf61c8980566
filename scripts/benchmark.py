"""Measure the selection methods against their textbook versions and print Markdown tables."""

import importlib
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.common.errors import UserError, run

SUBJECTS = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))


def main(argv=None):
    """Hand the rest of the command line to the subject's module."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] not in SUBJECTS:
        usage = f"usage: benchmark.py {{{','.join(SUBJECTS)}}} [options]"
        if words[:1] not in (["--help"], ["-h"]):
            raise UserError(f"{usage}: no such subject {' '.join(words[:1]) or '(none given)'}")
        return print(f"{usage}\n\n{__doc__}\nSee also SUBJECT --help.")
    return importlib.import_module(f"scripts.benchmarks.{words[0]}").main(words[1:])


if __name__ == "__main__":
    sys.exit(run(main))
