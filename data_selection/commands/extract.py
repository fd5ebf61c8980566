"""The command extract_feature.py: flags of the released program, its defaults and file names."""

import argparse
import contextlib
import functools
import os
import sys
from pathlib import Path

import torch

from data_selection.backbones import (
    DINO_HEAD,
    WIDTHS,
    build_model,
    build_pretrained,
    default_weights,
    load_weights,
    state_digest,
)  # fmt: skip
from data_selection.cli import DATA_SELECTION, add_device, bar_factory, make_parser
from data_selection.distributed import on_main, on_main_first, start
from data_selection.embedding import class_tokens, pooled
from data_selection.errors import UserError
from data_selection.extraction import DEMO_PREPROCESS, DINO_PREPROCESS, extract
from data_selection.files import sha256
from data_selection.pools import POOLS, SPLITS, open_pool
from data_selection.subset_files import versions

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def on_off(word):
    """The released program's Boolean words."""
    words = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if word.lower() not in words:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(words)}")
    return words[word.lower()]


def at_least(low):
    def whole(text):
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        return value

    whole.__name__ = "whole number"  # argparse names the type in its message
    return whole


def build_parser():
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
    add("--arch", default="auto", help="demo_vit, vit_tiny, vit_small, vit_base timm:NAME; auto: demo_vit for "
        "DEMO, vit_small otherwise")  # fmt: skip
    add("--patch_size", type=int, default=16, help="patch side of vit_tiny, vit_small and vit_base, pixels")
    add(
        "--pretrained_weights",
        default="",
        help="checkpoint (.pth, .pt, .safetensors) or https address; empty: those of DINO (timm: of timm)",
    )
    add("--checkpoint_key", default="teacher", help="entry of the checkpoint that holds the weights, where it has one")
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
    add_device(parser)
    return parser


def main_extract(argv=None):
    args = build_parser().parse_args(argv)
    with start(args.device) as world, output_folder(args.output_dir):
        run_extract(args, world, say=print if world.is_main else _silent)


def _silent(*_):
    """Ranks other than 0 say nothing."""


def run_extract(args, world, say):
    """Check everything that can be checked, then extract."""
    kind = POOLS.get(args.dataset)
    arch = args.arch if args.arch != "auto" else kind.backbone if kind else "vit_small"
    if arch not in WIDTHS and args.patch_size != 16:
        raise UserError(f"--patch_size is for {', '.join(WIDTHS)}; {arch} has its own: leave the flag out")
    for flag in ("extra_name", "split"):
        if os.sep in getattr(args, flag):
            raise UserError(f"--{flag} {getattr(args, flag)!r} is part of a file name and cannot hold {os.sep}")
    name, split = name_parts(args.dataset, args.split)
    path = args.output_dir / f"{name}{args.extra_name}{split}.npy"
    pool = on_main_first(world, lambda: open_pool(args.dataset, args.split, args.data_path))
    model, weights = on_main_first(world, lambda: open_backbone(args, arch, say))
    preprocess, transform = preprocessing(arch, model)
    if path.exists():
        say(f"{path} exists and will be replaced when the new file is whole")
    amp = on_main(world, lambda: pick_amp(args.amp, world.device))  # machines may differ
    backbone = {
        "arch": arch, "patch_size": args.patch_size if arch in WIDTHS else None, "n_last_blocks": args.n_last_blocks,
        "avgpool_patchtokens": args.avgpool_patchtokens, **weights,
    }  # fmt: skip
    data = {"name": name, "split": split, "images": len(pool), "classes": pool.classes}
    provenance = {
        "pool": data, "backbone": backbone, "preprocess": vars(preprocess) if transform is None else str(transform),
        "amp": str(amp), "dtype": args.dtype, "device": world.device.type, "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }  # fmt: skip
    stats = extract(
        pool, model, path, world=world, preprocess=preprocess, transform=transform, embed=embedding(args, arch, model),
        batch_size=args.batch_size_per_gpu, num_workers=min(args.num_workers, cores()), amp_dtype=amp,
        compiled=args.compile, dtype=args.dtype, on_error=args.on_error, request={"pool": data, "backbone": backbone},
        provenance=provenance, progress=bar_factory(world), log=say,
    )  # fmt: skip
    say(summary(stats, path))


def open_backbone(args, arch, say):
    """(model with its weights, what the provenance says about them)."""
    if arch.startswith("timm:") and not args.pretrained_weights:
        model = build_pretrained(arch)
        return model, {"weights": arch, "tensors_sha256": state_digest(model)}
    source = args.pretrained_weights or default_weights(arch, args.patch_size)
    model = build_model(arch, patch_size=args.patch_size)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    heads = [f"{name}.{part}" for name in ("head", classifier) for part in ("weight", "bias")]
    loaded = load_weights(
        model, source, checkpoint_key=args.checkpoint_key, allow_unexpected=(*DINO_HEAD, *heads), log=say
    )
    return model, {"weights": loaded.path.name, "weights_sha256": sha256(loaded.path)}


def preprocessing(arch, model):
    """(Preprocess, None) for the ViTs of this project, (Preprocess, timm's own transform) for other timm models."""
    if arch in WIDTHS or arch == "demo_vit":
        return DEMO_PREPROCESS if arch == "demo_vit" else DINO_PREPROCESS, None
    from timm.data import create_transform, resolve_data_config

    return DINO_PREPROCESS, create_transform(**resolve_data_config({}, model=model), is_training=False)


def embedding(args, arch, model):
    """The function (model, images) -> features that the flags ask for."""
    plain = args.n_last_blocks == 1 and not args.avgpool_patchtokens
    if plain and arch not in WIDTHS and arch != "demo_vit":
        return pooled
    if not hasattr(model, "get_intermediate_layers"):
        raise UserError(f"--n_last_blocks and --avgpool_patchtokens are for ViTs; {arch} has no class tokens")
    return functools.partial(
        class_tokens, n_last_blocks=args.n_last_blocks, avgpool_patchtokens=args.avgpool_patchtokens
    )


def name_parts(dataset, split):
    """(pool, split) as the file name has them: a data set's name, a folder's, or a list's without its ending.

    A folder called like a split belongs to what is above it: /data/pets/val is the pool `pets`, split `val`.
    """
    path = Path(dataset)
    if dataset in POOLS:
        return dataset, split
    if path.is_file():
        return path.stem, split
    folder = path.resolve()
    return (folder.parent.name, folder.name) if folder.name in SPLITS and folder.parent.name else (folder.name, split)


def cores():
    """CPU cores for each process of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def output_folder(folder):
    """Make the folder before the work, and remove it where the work ends in an error that left nothing in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the output folder {folder} ({error.strerror}): choose another") from None
    try:
        if not os.access(folder, os.W_OK):
            raise UserError(f"cannot write into the output folder {folder}: choose another --output_dir")
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: rows are kept in it
            for path in made:
                path.rmdir()
        raise


def pick_amp(word, device):
    """The torch type of --amp, or None for float32."""
    if word != "auto":
        return AMP[word]
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    return torch.bfloat16 if fast else None


def cpu_has_bf16():
    """Whether this CPU multiplies in bf16 (x86: AVX512_BF16 or AMX; ARM: bf16); elsewhere float32 is faster."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: not known
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(text.split())


def summary(stats, path):
    share = 100 * stats.loading / stats.seconds if stats.seconds else 0.0
    bound = "loading" if share > 50 else "model"
    return (
        f"{stats.rows} rows in {path}: {stats.images} images in {stats.seconds:.1f} s, "
        f"{stats.images / max(stats.seconds, 1e-9):.0f} images/s, bound by the {bound} (loading: {share:.0f} %)"
    )
