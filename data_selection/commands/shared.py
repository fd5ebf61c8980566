"""What the command lines share: parser, common flags, progress bars. Imports nothing slow."""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_selection.common.parsing import BACKGROUND, Parser, colour
from data_selection.common.paths import DATA_SELECTION

if TYPE_CHECKING:
    from data_selection.common.distributed import World
    from data_selection.common.progress import OpenBar

__all__ = [
    "DATA_SELECTION",
    "add_background",
    "add_device",
    "add_keep_duplicates",
    "add_label_column",
    "add_seed",
    "add_taken",
    "add_where",
    "bar_factory",
    "make_parser",
    "times",
]


def make_parser(description: str) -> argparse.ArgumentParser:
    """The Parser of a command."""
    return Parser(description=description)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    # torch.distributed.launch may pass it; its environment says the same
    parser.add_argument("--local-rank", "--local_rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_background(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--background", type=colour, default="white", metavar="COLOUR", help=BACKGROUND)


def add_seed(parser: argparse.ArgumentParser, text: str = "seed of every random draw, 0 or above") -> None:
    parser.add_argument("--seed", type=seed, default=0, help=text)


def seed(text: str) -> int:
    """A seed as scikit-learn and torch both take it; random.Random would take -1 for 1."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is outside 0..{2**32 - 1}")
    return value


def times(text: str) -> int:
    """How often something is done: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def add_taken(parser: argparse.ArgumentParser, labelled: str = "images that already have labels") -> None:
    lists = "subset files, files of names (.txt, .csv), exports of Label Studio or CVAT, or folders"
    several: dict[str, Any] = {"metavar": "LIST", "nargs": "+", "action": "extend"}
    parser.add_argument("--labelled", help=f"{labelled}: {lists}", **several)
    parser.add_argument("--excluded", help=f"images that must not be chosen: {lists}", **several)
    parser.add_argument(
        "--missing", choices=("stop", "skip"), default="stop", help="images of these lists that the pool has no longer"
    )
    add_keep_duplicates(parser)


def add_keep_duplicates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-duplicates", "--keep_duplicates", action="store_true",
        help="choose among all images; without it, at most one of several with the same content, and none where one of "
        "them is labelled or excluded",
    )  # fmt: skip


def add_where(parser: argparse.ArgumentParser, folder: str = "subsets/<POOL>") -> None:
    """Where the subset file goes, and whether it may replace another; folder: the default one, in words."""
    parser.add_argument("--output_dir", type=Path, help=f"folder of the subset file (default: {folder})")
    parser.add_argument(
        "--filename",
        type=subset_name,
        help="name of the subset file, ending in .json (default: tells every setting that changes the list)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a list of that name which was chosen otherwise"
    )


def subset_name(text: str) -> str:
    """The name of a subset file. `round.1` and `round.2` would share a record, and X.txt is the list of names."""
    if not text.endswith(".json") or text == ".json":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .json, for example {Path(text).stem or 'mine'}.json")
    return text


def add_label_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no_label_column",
        action="store_true",
        help="the feature file has no label in its last column (ADE20K layout)",
    )


def bar_factory(world: "World") -> "OpenBar":
    """A progress factory for this process: bars on rank 0 at a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return functools.partial(tqdm, disable=None if world.is_main else True, dynamic_ncols=True)
