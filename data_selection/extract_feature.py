"""Embed every image of a pool with a pretrained backbone; writes features/{dataset}{extra_name}{split}.npy."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_selection.commands.extract import main_extract
from data_selection.common.errors import run

if __name__ == "__main__":
    sys.exit(run(main_extract))
