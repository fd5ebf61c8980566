"""The commands train_on_labels.py and predict.py: flags. Imports nothing slow."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_selection.common.parsing import Parser
from deit.options import MODES

if TYPE_CHECKING:
    from data_selection.common.progress import OpenBar


def main_train(argv: Sequence[str] | None = None) -> None:
    """Entry of scripts/train_on_labels.py. Raises UserError for the user's mistakes, before any work."""
    parser = Parser(
        description="Train on the labels of a folder of choose_images.py, and leave a model and a report in it.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder that choose_images.py made (its --out)")
    add("--labels", metavar="FILE", nargs="+", action="extend", default=[], help="labels as they came back, instead of "
        "RUN/annotate.csv: a table of any spreadsheet, Label Studio's JSON or CSV, CVAT's XML or zip, a folder of "
        "class folders")  # fmt: skip
    add(
        "--partial",
        action="store_true",
        help="go on with what is there, where labels are missing, labelled images gone, or rows of no image",
    )
    add("--test", metavar="DIR", help="test images, in class folders or with --test-labels; they are asked "
        "after training, also by a later command, and decide nothing")  # fmt: skip
    add("--test-labels", metavar="FILE", help="CSV `file,label` of the images in --test")
    add("--mode", choices=MODES, default="auto", help="how to train: the modes of deit/main.py; auto: the one that "
        "cross-validation on the labels says is best, within --minutes")  # fmt: skip
    add("--minutes", type=float, metavar="M", help="less training where it would take longer; --mode auto: 30 where "
        "nothing else is said")  # fmt: skip
    add(
        "--weights", default="", metavar="FILE", help="the backbone's weights, where they are not those of the features"
    )
    add("--source", metavar="DIR", help="where the pool's images are now, if they have moved")
    add("--seed", type=int, default=0, help="seed of every random draw")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--num_workers", type=int, help="processes that load images; default: by cores")
    args = parser.parse_args(argv)
    print(f"{args.run}: reading its labels", flush=True)  # noqa: T201 - what follows imports torch, which takes seconds
    from deit.labelled.training import train_on_labels

    train_on_labels(
        args.run, args.labels, partial=args.partial, test=args.test, test_labels=args.test_labels, mode=args.mode,
        minutes=args.minutes, weights=args.weights, source=args.source, seed=args.seed, device=args.device,
        num_workers=args.num_workers, progress=terminal_bars(),
    )  # fmt: skip


def main_predict(argv: Sequence[str] | None = None) -> None:
    """Entry of scripts/predict.py. Raises UserError for the user's mistakes, before any work."""
    parser = Parser(
        description="Ask a trained model for the classes of images: a CSV of file, label, confidence, second label.",
    )
    parser.add_argument("run", metavar="RUN", help="a folder of train_on_labels.py, or a checkpoint of deit/main.py")
    parser.add_argument("images", metavar="IMAGES", help="a folder of images, a list of paths, or one image")
    parser.add_argument("--out", metavar="FILE", help="the CSV to write; default: predictions.csv in RUN")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    print(f"{args.run}: predicting {args.images}", flush=True)  # noqa: T201 - torch takes seconds
    from deit.labelled.training import predict_images

    predict_images(args.run, args.images, args.out, device=args.device, progress=terminal_bars())


def terminal_bars() -> "OpenBar":
    """Progress bars where a terminal shows them."""
    from tqdm import tqdm

    return functools.partial(tqdm, disable=None, dynamic_ncols=True)
