"""The command choose_images.py: flags; run_choose.py does the work."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_selection.annotation.originals import HOW
from data_selection.commands.shared import add_device, add_seed, make_parser
from data_selection.methods.table import LABEL_FREE, METHODS


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "Choose which images of a folder to annotate, and make what it takes to label them: a page for the browser, a "
        "CSV, task files for Label Studio and CVAT."
    )
    add = parser.add_argument
    add("source", metavar="IMAGES", help="a folder of images, or a list of paths (text or CSV); never changed")
    add("--budget", required=True, help="images to choose: a number, or percent of the pool (2%%), rounded down")
    add("--check", type=int, default=0, metavar="N", help="images more, drawn at random from the rest: training judges "
        "itself by them, free of the choice's bias, and learns from them, too; later rounds keep them")  # fmt: skip
    add("--out", type=Path, required=True, help="folder of everything that is written; it can be moved and renamed")
    add(
        "--method",
        choices=[*sorted(LABEL_FREE), "auto"],
        default="activeft",
        help="how images are chosen without labels; auto: by what suits pool and budget, and why",
    )
    asking = ", ".join(name for name in METHODS if name not in LABEL_FREE)
    add("--strategy", default="auto", help="with --labelled: auto, label-free (as --method says), or a method that "
        f"asks a model of the labels: {asking}")  # fmt: skip
    add("--model", "--arch", help="what embeds the images: vit_small (DINO's), demo_vit, timm:NAME, ... as for "
        "extract_feature.py --arch; default: that of the round before (--labelled), else vit_small")  # fmt: skip
    add("--weights", "--pretrained_weights", default="",
        help="checkpoint of it (.pth, .pt, .safetensors) or https address; empty: the published ones")  # fmt: skip
    add("--allow-http", action="store_true", help="take weights from an address without https")
    add(
        "--labelled", metavar="RUN", nargs="+", action="extend", default=[],
        help="labels so far: folders of earlier rounds, or files of labels (CSV, exports of Label Studio and CVAT); "
        "their images are not chosen again",
    )  # fmt: skip
    add("--partial", action="store_true", help="go on without labelled images that are gone or have "
        "another content, and without rows of no image")  # fmt: skip
    add("--classes", default="", help="class names for the page and the tools: a,b,c (one with a comma in "
        "double quotes) or a file of one a line (text or CSV)")  # fmt: skip
    add("--images", choices=HOW, default="link", help="the chosen images in OUT/images: links, copies, or not at all")
    add("--embed", action="store_true", help="put the chosen images into the page itself, not only small ones")
    add("--dry-run", action="store_true", help="say what it would do, how long it takes and what it needs, and stop")
    add("--num_workers", type=int, default=16, help="processes that decode image files, at most one per core")
    add_seed(parser)
    add_device(parser)
    return parser


def main_choose(argv: Sequence[str] | None = None) -> None:
    """Entry of scripts/choose_images.py. Raises UserError for the user's mistakes, before any work."""
    args = build_parser().parse_args(argv)
    more = f" and {args.check} drawn at random" if args.check else ""
    print(f"{args.out}: {args.budget} images{more} of {args.source}", flush=True)  # what follows imports torch: seconds
    from data_selection.commands.run_choose import choose_images

    choose_images(
        args.source, args.budget, args.out, method=args.method, strategy=args.strategy, model=args.model,
        weights=args.weights, allow_http=args.allow_http, check=args.check, labelled=args.labelled,
        partial=args.partial, classes=args.classes, images=args.images, embed=args.embed, dry_run=args.dry_run,
        num_workers=args.num_workers, seed=args.seed, device=args.device,
    )  # fmt: skip
