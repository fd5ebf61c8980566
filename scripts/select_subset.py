"""Choose which images to annotate, by any method of the table.

python scripts/select_subset.py --features data_selection/features/DEMO_train.npy --method activeft --budget 100
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.commands.any_method import main_select
from data_selection.common.errors import run

if __name__ == "__main__":
    sys.exit(run(main_select))
