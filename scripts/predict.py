"""Ask a trained model for the classes of any images.

python scripts/predict.py runs/pets /data/new
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.common.errors import run
from deit.labelled.commands import main_predict

if __name__ == "__main__":
    sys.exit(run(main_predict))
