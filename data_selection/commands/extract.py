"""The command extract_feature.py: flags of the released program and its defaults; run_extract.py does the work."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from data_selection.commands.shared import DATA_SELECTION, add_background, add_device, make_parser
from data_selection.images.folders import SPLITS
from data_selection.images.pools import POOLS

AMP = ("off", "bf16", "fp16")


def on_off(word: str) -> bool:
    """The released program's Boolean words."""
    words = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if word.lower() not in words:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(words)}")
    return words[word.lower()]


def at_least(low: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        return value

    whole.__name__ = "whole number"  # argparse names the type in its message
    return whole


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("Embed every image of a pool with a pretrained backbone.")
    add = parser.add_argument
    add(
        "--dataset", default="CIFAR10", help=f"{', '.join(POOLS)}, a folder of images, or a list of paths (text or CSV)"
    )
    add("--data_path", type=Path, help="folder with the data set's files (list: where relative paths start; default: "
        "data_selection/data, or the list's folder)")  # fmt: skip
    add(
        "--split",
        default="train",
        help=f"{', '.join(SPLITS)} (test and val: the held-out part); part of the file name "
        "(a folder called like a split says it itself, and this flag then does nothing)",
    )
    add("--labels", metavar="folders|FILE", help="labels of your own images, to judge choices by (no choice looks at "
        "them): `folders` where each image lies in a folder called like its class, or a CSV `file,label`")  # fmt: skip
    add("--arch", "--model", default="auto", help="demo_vit, vit_tiny, vit_small, vit_base, timm:NAME; auto: demo_vit "
        "for DEMO, vit_small otherwise")  # fmt: skip
    add("--input_size", type=at_least(1), help="side of the images in pixels that the backbone sees (default: its own)")
    add("--patch_size", type=int, default=16, help="patch side of vit_tiny, vit_small and vit_base, pixels")
    add(
        "--pretrained_weights",
        "--weights",
        default="",
        help="checkpoint (.pth, .pt, .safetensors) or https address; empty: those of DINO (timm: of timm)",
    )
    add("--allow-http", "--allow_http", action="store_true",
        help="take weights from an address without https, whose file anybody on the way can change")  # fmt: skip
    add("--checkpoint_key", help="entry of the checkpoint that holds the weights (default: teacher, model, state_dict "
        "or student, where it has one)")  # fmt: skip
    add("--n_last_blocks", type=at_least(1), default=1, help="class tokens of this many last blocks, concatenated")
    add("--avgpool_patchtokens", type=on_off, default=False, metavar="on|off",
        help="interleave the class token with the mean patch token")  # fmt: skip
    add("--batch_size_per_gpu", type=at_least(1), default=128, help="images per forward pass and process")
    add("--num_workers", type=at_least(0), default=16, help="processes that decode image files, at most one per core")
    add(
        "--output_dir",
        type=Path,
        default=DATA_SELECTION / "features",
        help="folder of the feature file, made if needed",
    )
    add("--extra_name", default="_", help="between data set and split in the file name")
    add(
        "--amp",
        default="auto",
        choices=["auto", *AMP],
        help="mixed precision; auto: bf16 where the GPU or the CPU computes in it, else off",
    )
    add("--compile", action="store_true", help="torch.compile: minutes at the start, then faster on most GPUs")
    add("--dtype", default="float32", choices=["float32", "float16", "float64"], help="float type of the file")
    add("--on_error", default="stop", choices=["stop", "skip"],
        help="an image that cannot be read: stop, or leave it out and list it in X.skipped.txt")  # fmt: skip
    add_background(parser)
    add_device(parser)
    return parser


def main_extract(argv: Sequence[str] | None = None) -> None:
    """Entry of extract_feature.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser().parse_args(argv)
    from data_selection.commands.run_extract import run_extract  # slow: imports torch

    run_extract(args)
