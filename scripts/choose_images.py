"""Choose which images of a folder to annotate, and make what it takes to label them: a page, a CSV, task files.

python scripts/choose_images.py /data/pets/train --budget 200 --out runs/pets
"""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.commands.choose_images import main_choose
from data_selection.common.errors import run

if __name__ == "__main__":
    sys.exit(run(main_choose))
