"""Print an experiment's accuracies beside those that a paper published."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.commands.shared import make_parser
from data_selection.common.errors import run
from data_selection.judging.experiments.plan import read_plan


def main(argv=None):
    """Print the comparison. Raises UserError for the user's mistakes."""
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="the folder that run_experiment.py wrote, or a file in it")
    parser.add_argument("config", type=Path, help="the config with the published numbers, such as configs/papers/...")
    args = parser.parse_args(argv)
    plan = read_plan(args.config)
    from data_selection.judging.experiments.published import compare, read_published, read_results

    theirs = read_published(plan)
    print(compare(plan, read_results(args.results), theirs))


if __name__ == "__main__":
    sys.exit(run(main))
