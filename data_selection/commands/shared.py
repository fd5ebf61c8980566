"""What the command lines share: parser, common flags, anchored default paths, progress bars."""

import argparse
import functools
from pathlib import Path

from tqdm import tqdm

from data_selection.feature_table import load_features
from data_selection.subset_files import save_names, save_subset

DATA_SELECTION = Path(__file__).resolve().parent  # default paths start here; paths that the user types do not


def make_parser(description):
    """An ArgumentParser that shows each default and refuses abbreviated flags (a typo must not pass for a flag)."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def add_device(parser):
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def add_seed(parser):
    parser.add_argument("--seed", type=seed, default=0, help="seed of every random draw, 0 or above")


def seed(text):
    """A seed as scikit-learn and torch both take it; random.Random would take -1 for 1."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is outside 0..{2**32 - 1}")
    return value


def add_label_column(parser):
    parser.add_argument(
        "--no_label_column",
        action="store_true",
        help="the feature file has no label in its last column (ADE20K layout)",
    )


def open_table(path, args):
    """The FeatureTable of a path under the flags of add_label_column."""
    return load_features(path, label_column=not args.no_label_column)


def write_subset(path, ids, table, record, *, order="given"):
    """Write a subset and, where the pool has names, its list of names. Returns the end of the command's last line."""
    save_subset(path, ids, record, order=order)
    lists = " and ".join(str(file) for file in save_names(path, table))
    return f"; their names, one a line, in {lists}" if lists else ""


def bar_factory(world):
    """A progress factory for this process: bars on rank 0 at a terminal, nothing elsewhere."""
    return functools.partial(tqdm, disable=None if world.is_main else True, dynamic_ncols=True)
