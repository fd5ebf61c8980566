"""What a checkpoint remembers of its making, for a later run that is given no flags but it and data."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.feature_table import sidecar
from data_selection.common.files import read_json
from data_selection.common.kinds import Log
from data_selection.embedding.preprocessing import Preprocess
from data_selection.images.label_files import renumber
from data_selection.images.pools import Pool
from deit.runs import checkpoints
from deit.runs.classes import difference
from deit.runs.kinds import Settings
from deit.runs.saving import NEWEST, PREVIOUS

# What a model is, the pixels that it sees, and what its classes are
REMEMBERED = ("model", "input_size", "pixels", "augment", "background", "inat_category")
MOST_NAMES = 100_000  # of training images: beyond, a checkpoint would be mostly names


def recall(args: argparse.Namespace, log: Log) -> Settings:
    """Fill in what the flags leave open by what the run's checkpoint was made with. Returns the checkpoint's settings.

    Of --resume, or of --auto-resume's folder, with --eval of what is evaluated; {} where there is none, or weights
    alone. Flags that were given win. Raises UserError where it is damaged, but for --auto-resume's own, whose place the
    checkpoint before takes.
    """
    continues = args.auto_resume and args.output_dir and not args.eval
    own = [Path(args.output_dir) / name for name in (NEWEST, PREVIOUS)] if continues else []
    start = args.resume or (args.finetune if args.eval else "")
    file, state = None, None
    for file in filter(Path.is_file, [*own, *([Path(start)] if start else [])]):
        try:
            state = checkpoints.training_state(file)
            break
        except UserError:
            if file not in own:
                raise
    saved = checkpoints.saved_args(state) if state else {}
    same = str(saved.get("data_set")).removesuffix("SUBSET") == args.data_set.removesuffix("SUBSET")
    told = [f"--data-set {args.data_set}"] if args.eval and same and "data_set" not in args.given else []
    for name in REMEMBERED:
        if saved.get(name) is not None and name not in args.given and getattr(args, name) != saved[name]:
            setattr(args, name, saved[name])
            told.append(f"--{name.replace('_', '-')} {saved[name]}")
    if told:
        log(f"as {file} was made: {' '.join(told)}")
    return saved


def match_classes(pool: Pool, class_names: tuple[str, ...] | None, saved: Settings, source: Path | str) -> Pool:
    """Evaluation images with their classes numbered as a checkpoint numbers them; class_names: of the data.

    Raises UserError, naming them, for classes that the checkpoint lacks.
    """
    before = saved.get("class_names")
    if not difference(saved, class_names):
        return pool
    assert before
    lacking = [name for name in pool.class_names or () if name not in before]
    if lacking:
        raise UserError(
            f"{source} was trained for other classes ({difference(saved, class_names)}): name the class folders and "
            "labels alike"
        )
    renumber(pool, tuple(before), "the evaluation set", source)
    return pool


def say_of_pixels(subset_files: Sequence[Path | str], pixels: Preprocess, log: Log) -> None:
    """A line where images were chosen by features of other pixels than those that the model is to see."""
    for file in subset_files:
        beside = sidecar(file, "provenance")
        features = (read_json(beside).get("features") if beside.exists() else None) or {}
        chosen_by = (features.get("provenance") or {}).get("preprocess") or {}
        ours = pixels.record()
        differing = [
            f"{name} {chosen_by[name]} there, {ours[name]} here"
            for name in ours
            if name in chosen_by and chosen_by[name] != ours[name]
        ]
        if differing:
            log(
                f"warning: {file} was chosen by features of other pixels ({'; '.join(differing)}): --pixels and "
                "--input-size set those of training"
            )


def names_of(pool: Pool, ids: list[int]) -> list[str] | None:
    """The names of a run's training images, for its checkpoints; None where they have none, or are very many."""
    return None if pool.names is None or len(ids) > MOST_NAMES else [pool.names[i] for i in ids]
