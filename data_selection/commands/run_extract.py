"""The work of extract_feature.py: checks, backbone, preprocessing, extraction, file names."""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data_selection.commands.shared import bar_factory
from data_selection.common.distributed import World, on_main, on_main_first, start
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, load_words, sidecar, write_sidecar
from data_selection.common.files import read_json, sha256
from data_selection.common.kinds import Log
from data_selection.common.subset_files import versions
from data_selection.common.system import cores
from data_selection.embedding.backbones import (
    DINO_HEAD,
    WIDTHS,
    build_model,
    build_pretrained,
    default_weights,
    load_weights,
    state_digest,
)
from data_selection.embedding.extraction import Embed, Stats, extract
from data_selection.embedding.forward import class_tokens, cpu_has_bf16, pooled
from data_selection.embedding.preprocessing import Preprocess, preprocess_of
from data_selection.embedding.reuse import kept_labels
from data_selection.embedding.sizes import check_size
from data_selection.embedding.table_writer import end_publishing
from data_selection.images.downloads import check_address
from data_selection.images.folders import SPLIT_NAMES
from data_selection.images.inventory import inventory, save_duplicates
from data_selection.images.label_files import labelled_folder
from data_selection.images.pools import POOLS, Pool, open_pool
from data_selection.images.record import load_record, record_pool

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_extract(args: argparse.Namespace) -> None:
    """Extract what the Namespace of extract.build_parser asks for."""
    with start(args.device) as world, output_folder(args.output_dir):
        extract_pool(args, world, say=world.say)


class Ready(NamedTuple):
    """An extraction that has passed its checks and has not begun. path: of the feature file, provenance: its own."""

    pool: Pool
    model: nn.Module
    path: Path
    preprocess: Preprocess
    embed: Embed
    amp: torch.dtype | None
    workers: int
    world: World
    provenance: dict[str, Any]


def extract_pool(
    args: argparse.Namespace, world: World, say: Log, go_on: Callable[[Ready], bool] = lambda _: True
) -> None:
    """Check everything that can be checked, then extract, where go_on says so."""
    kind = POOLS.get(args.dataset)
    arch = args.arch if args.arch != "auto" else kind.backbone if kind else "vit_small"
    check_flags(args, arch)
    check_address(args.pretrained_weights, "--pretrained_weights", args.allow_http)
    name, split = name_parts(args.dataset, args.split)
    path = args.output_dir / f"{name}{args.extra_name}{split}.npy"
    pool = on_main_first(world, lambda: open_images(args))
    if pool.guessed:
        say(pool.guessed)
    model, weights = on_main_first(world, lambda: open_backbone(args, arch, say))
    preprocess = replace(preprocess_of(arch, args.input_size), background=args.background)
    if args.input_size is not None:
        check_size(model, args.input_size, f"--arch {arch}", "--input_size")
    source = source_of(args.dataset, args.data_path)
    on_main(world, lambda: end_publishing(path))
    if on_main(world, lambda: check_own(path, source, pool)):
        say(f"{path} exists: its rows are kept where images, backbone and pixels are the same")
        keep_labels(path, pool, world)
    amp = on_main(world, lambda: pick_amp(args.amp, world.device))  # machines may differ
    backbone = {
        "arch": arch, "patch_size": args.patch_size if arch in WIDTHS else None, "n_last_blocks": args.n_last_blocks,
        "avgpool_patchtokens": args.avgpool_patchtokens, **weights,
    }  # fmt: skip
    data = {"name": name, "split": split, "images": len(pool), "classes": pool.classes}
    provenance = {
        "pool": data, "source": source, "backbone": backbone, "preprocess": preprocess.record(),
        "amp": str(amp), "dtype": args.dtype, "device": world.device.type, "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }  # fmt: skip
    embed, workers = embedding(args, arch, model), min(args.num_workers, cores())
    if not go_on(Ready(pool, model, path, preprocess, embed, amp, workers, world, provenance)):
        return
    stats = extract(
        pool, model, path, world=world, preprocess=preprocess, embed=embed,
        batch_size=args.batch_size_per_gpu, num_workers=workers, amp_dtype=amp,
        compiled=args.compile, dtype=args.dtype, on_error=args.on_error,
        request={"pool": data, "source": source, "backbone": backbone},
        provenance=provenance, progress=bar_factory(world), log=say,
    )  # fmt: skip
    if world.is_main:
        note_place(path, source)
        say(take_stock(path, pool, stats))
    say(summary(stats, path))


def check_flags(args: argparse.Namespace, arch: str) -> None:
    """Raise UserError where a flag would do nothing, or is no part of a file name."""
    if arch not in WIDTHS and args.patch_size != 16:
        raise UserError(f"--patch_size is for {', '.join(WIDTHS)}; {arch} has its own: leave the flag out")
    if args.dataset not in POOLS and args.data_path is not None and Path(args.dataset).is_dir():
        raise UserError(f"--data_path is for data sets and lists: {args.dataset} is a folder, leave the flag out")
    if arch.startswith("timm:") and args.checkpoint_key and not args.pretrained_weights:
        raise UserError(
            "--checkpoint_key is for an entry of --pretrained_weights: give the file, or leave the flag out"
        )
    for flag in ("extra_name", "split"):
        if os.sep in getattr(args, flag):
            raise UserError(f"--{flag} {getattr(args, flag)!r} is part of a file name and cannot hold {os.sep}")


def open_images(args: argparse.Namespace) -> Pool:
    """The pool of --dataset, with the labels of --labels."""
    if args.labels and args.dataset in POOLS:
        raise UserError(f"--labels is for a folder of images or a list: {args.dataset} has its own, leave the flag out")
    pool = open_pool(args.dataset, args.split, args.data_path)  # checks what a pool has to be
    if not args.labels:
        return pool
    labels = None if args.labels == "folders" else args.labels
    return labelled_folder(Path(args.dataset), labels, "--labels", "--dataset", args.data_path)


def keep_labels(path: Path, pool: Pool, world: World) -> None:
    """Give a pool without labels those that its feature file has: an extraction without --labels loses none."""
    found = on_main(world, lambda: kept_labels(path, pool, world.say)) if pool.labels is None else None
    if found is not None:
        pool.labels, pool.class_names = found
        pool.classes = len(pool.class_names or ()) or None


def take_stock(path: Path, pool: Pool, stats: Stats) -> str:
    """Write X.duplicates.txt, and give the inventory as a line."""
    record = load_record(path, stats.rows)
    groups = [] if record is None else save_duplicates(path, record, load_words(path, "names"))
    return inventory(pool, stats.rows, stats.reused, groups, record)


def open_backbone(args: argparse.Namespace, arch: str, say: Log) -> tuple[nn.Module, dict[str, str]]:
    """(model with its weights, what the provenance says about them)."""
    if arch.startswith("timm:") and not args.pretrained_weights:
        model = build_pretrained(arch, args.input_size)
        return model, {"weights": arch, "tensors_sha256": state_digest(model)}
    source = args.pretrained_weights or default_weights(arch, args.patch_size)
    model = build_model(arch, patch_size=args.patch_size, img_size=args.input_size)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()  # of a distilled model two
    classifiers = ("head", *([classifier] if isinstance(classifier, str) else classifier))
    heads = [f"{name}.{part}" for name in classifiers for part in ("weight", "bias")]
    loaded = load_weights(
        model, source, checkpoint_key=args.checkpoint_key, allow_unexpected=(*DINO_HEAD, *heads),
        resize_pos_embed=args.input_size is not None, log=say,
        hint="name the entry that holds them with --checkpoint_key",
    )  # fmt: skip
    key = {"checkpoint_key": args.checkpoint_key} if args.checkpoint_key else {}  # another entry is other weights
    return model, {"weights": loaded.path.name, "weights_sha256": sha256(loaded.path), **key}


def embedding(args: argparse.Namespace, arch: str, model: nn.Module) -> Embed:
    """What makes the features that the flags ask for."""
    plain = args.n_last_blocks == 1 and not args.avgpool_patchtokens
    if plain and arch not in WIDTHS and arch != "demo_vit":
        return pooled
    if not hasattr(model, "get_intermediate_layers"):
        raise UserError(f"--n_last_blocks and --avgpool_patchtokens are for ViTs; {arch} has no class tokens")
    return functools.partial(
        class_tokens, n_last_blocks=args.n_last_blocks, avgpool_patchtokens=args.avgpool_patchtokens
    )


def name_parts(dataset: str, split: str) -> tuple[str, str]:
    """(pool, split) as the file name has them: a data set's name, a folder's, or a list's without its ending.

    A folder called like a split belongs to what is above it: /data/pets/val is the pool `pets`, split `val`.
    """
    path = Path(dataset)
    if dataset in POOLS:
        return dataset, split
    if path.is_file():
        return path.stem, split
    folder = path.resolve()
    if folder.name.lower() in SPLIT_NAMES and folder.parent.name:
        return folder.parent.name, folder.name
    return folder.name, split


def source_of(dataset: str, data_path: Path | None) -> str:
    """Where a pool's images come from: a data set's name, or the place of a folder or list."""
    if dataset in POOLS:
        return dataset
    source = os.path.realpath(dataset)
    return source if data_path is None or Path(dataset).is_dir() else f"{source} in {os.path.realpath(data_path)}"


def check_own(path: Path, source: str, pool: Pool) -> bool:
    """Whether the feature file is there already, from the same source. Raises UserError where it holds another pool.

    A pool whose folder has moved is the same by its record (see moved). A file whose provenance names no source
    has to have the same names. One without provenance is somebody else's, as of the released program.
    """
    if not path.exists():
        return False
    beside = sidecar(path, "provenance")
    before = read_json(beside).get("source") if beside.exists() else None
    other = (before != source and not moved(path, pool)) if before else load_words(path, "names") != pool.names
    if other or not beside.exists():
        held = f"holds the features of {before or 'other images'}, not of {source}"
        raise UserError(
            f"{path} {held if beside.exists() else f'was not written by this command (no {beside.name} is there)'}, "
            "and is not replaced: choose another --extra_name or --output_dir, or move it away"
        )
    return True


def note_place(path: Path, source: str) -> None:
    """Note where the images lie now in the provenance of a file whose rows were all there."""
    told = read_json(sidecar(path, "provenance"))
    if told.get("source") != source:
        write_sidecar(path, "provenance", told | {"source": source})


def moved(path: Path, pool: Pool) -> bool:
    """Whether a pool is the one whose images a feature file's record tells, wherever they lie now.

    Every image of one of the two is in the other by name and content: images may have come or gone since, not both.
    """
    try:
        record = load_record(path, len(load_features(path)))
    except UserError:  # damaged: it cannot say
        return False
    if record is None or record.names is None or pool.names is None:
        return False
    before, now = set(record.names), set(pool.names)
    if not (before <= now or now <= before):
        return False
    today = record_pool(pool, record)
    known, found = (set(zip(some.names or (), some.hashes, strict=False)) for some in (record, today))
    return known <= found or found <= known


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
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


def pick_amp(word: str, device: torch.device) -> torch.dtype | None:
    """The torch type of --amp, or None for float32."""
    if word != "auto":
        return AMP[word]
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
    return torch.bfloat16 if fast else None


def summary(stats: Stats, path: Path) -> str:
    if stats.reused == stats.rows and not stats.images:
        return f"{path} is already there: {stats.rows} rows of the same images"
    share = 100 * stats.loading / stats.seconds if stats.seconds else 0.0
    bound = "loading" if share > 50 else "model"
    return (
        f"{stats.rows} rows in {path}: {f'{stats.reused} known, ' if stats.reused else ''}{stats.images} images in "
        f"{stats.seconds:.1f} s, "
        f"{stats.images / max(stats.seconds, 1e-9):.0f} images/s, bound by the {bound} (loading: {share:.0f} %)"
    )
