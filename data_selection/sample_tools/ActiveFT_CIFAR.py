"""ActiveFT with the defaults of the ActiveFT release for CIFAR: features in, subset out."""

import functools
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_selection.commands.activeft import main_activeft
from data_selection.common.errors import run

if __name__ == "__main__":
    sys.exit(run(functools.partial(main_activeft, "activeft_cifar")))
