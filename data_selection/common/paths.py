"""Where the project's own files are: defaults are anchored here, paths that a user types are not."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA_SELECTION = ROOT / "data_selection"
SUBSETS = ROOT / "subsets"
DATA = DATA_SELECTION / "data"  # where the released programs look, and where torchvision downloads to
DEMO = DATA_SELECTION / "demo"
