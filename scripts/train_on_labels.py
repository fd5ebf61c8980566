"""Train on the labels of a folder of choose_images.py, and leave a model and a report in it.

python scripts/train_on_labels.py runs/pets
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.common.errors import run
from deit.labelled.commands import main_train

if __name__ == "__main__":
    sys.exit(run(main_train))
