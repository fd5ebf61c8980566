"""Draw the demo pool from the original Fashion-MNIST files.

    python scripts/demo/make_demo_data.py --source /usr/share/datasets/fashion-mnist

`--source` holds the four idx files of https://github.com/zalandoresearch/fashion-mnist, compressed or not (Debian
ships them in the package dataset-fashion-mnist). 10,000 of the 60,000 training and 2,000 of the 10,000 test images
are drawn uniformly with a seed, so classes are balanced by chance only, as in a real unlabelled pool. The file keeps
the index of each image in the original set.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from data_selection.common.errors import run
from data_selection.common.files import atomic_write
from data_selection.images.dataset_files import find_idx, read_idx
from data_selection.images.pools import DEMO_FILE

SIZES = {"train": 10_000, "test": 2_000}
PREFIX = {"train": "train", "test": "t10k"}


def draw(source, seed):
    """The arrays of the demo file.

    {split}_images (n, 28, 28) uint8, {split}_labels (n,) uint8 0-9, {split}_index (n,) int32, ascending: the position
    in the original set.
    """
    arrays = {}
    for split, size in SIZES.items():
        images = read_idx(find_idx(source, f"{PREFIX[split]}-images-idx3-ubyte"))
        labels = read_idx(find_idx(source, f"{PREFIX[split]}-labels-idx1-ubyte"))
        index = np.array(sorted(random.Random(seed).sample(range(len(images)), size)), dtype=np.int32)
        arrays |= {f"{split}_images": images[index], f"{split}_labels": labels[index], f"{split}_index": index}
    return arrays


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with the four original idx files")
    parser.add_argument("--output", type=Path, default=DEMO_FILE, help="file to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    args = parser.parse_args(argv)
    arrays = draw(args.source, args.seed)
    with atomic_write(args.output) as handle:
        np.savez_compressed(handle, **arrays)
    counts = np.bincount(arrays["train_labels"], minlength=10).tolist()
    print(f"wrote {args.output}: {SIZES['train']} + {SIZES['test']} images, training images per class {counts}")


if __name__ == "__main__":
    sys.exit(run(main))
