"""The folder of a choice once its labels are back: what embedded the pool, which labels there are, where to train."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_selection.annotation.originals import made_places
from data_selection.annotation.round_labels import given_labels, sources_of
from data_selection.annotation.run_folder import ANSWERS, UNDERSTOOD, chosen_names, contents, read_run
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, load_features
from data_selection.common.files import sha256
from data_selection.common.kinds import Log
from data_selection.common.subset_files import pool_provenance
from data_selection.embedding.backbones import DEMO_WEIGHTS, DINO_WEIGHTS, local_file
from data_selection.images.answers import Answers, alone, one_class, read_answers, some
from data_selection.images.claims import Source, copies_apart
from data_selection.images.following import follow, told
from data_selection.images.pools import Pool, open_pool
from data_selection.images.record import load_record, record_pool
from deit.recipes import FEW_SHOT, recipe_values

MODEL, LABELS, TRAINING = "model.pth", UNDERSTOOD, "training"
RESULT = "result.json"  # of a training that has ended


@dataclass(frozen=True)
class Labelled:
    """A run folder with its labels. source: where the pool's images are; table: their features.

    pool: names of the source's images that the features hold; whole: whether they are all of both. given: as
    round_labels.given_labels gives them.
    """

    folder: Path
    source: Path
    table: FeatureTable
    answers: Answers
    record: dict[str, Any]
    pool: tuple[str, ...]
    whole: bool
    given: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        assert self.table.names is not None  # open_run has looked
        return self.table.names


def open_run(
    folder: Path | str, labels: Sequence[Path | str], source: Path | str | None, *, partial: bool, log: Log
) -> Labelled:
    """The Labelled of a run folder. labels: files in place of the folder's own annotate.csv; source: images that moved.

    Says what was understood of each file. Raises UserError with everything that is wrong with the labels at once;
    partial: images without a label are no fault, nor are labelled ones that are gone, nor rows of no image.
    """
    folder = Path(folder)
    record = read_run(folder)
    where = Path(os.path.abspath(source or record["source"]))  # noqa: PTH100 - so that no data set is called like it
    if not where.exists() and source:
        raise UserError(
            f"--source {source} does not exist: name the folder or list of the pool's images, which were in "
            f"{record['source']} when they were chosen"
        )
    if not where.exists():
        raise UserError(f"the images are not in {where} any longer: say with --source where they are")
    features = folder / record["features"]
    table = load_features(features)
    if table.names is None:
        raise UserError(f"{features} has no names of images beside it: choose again with scripts/choose_images.py")
    asked = chosen_names(folder)
    made = made_places(asked)  # the folder's own tables have the names themselves
    mine = [Source(Path(file), places=made) for file in labels] or None  # in place of its own; earlier rounds' stay
    sources = sources_of(folder, table.names, asked, mine)
    answers = read_answers(sources, table.names, asked, record.get("classes") or (), partial=partial)
    for line in answers.understood:
        log(line)
    faults = [*answers.faults, *copies_apart(answers, contents(folder)), *one_class(answers)]
    if not answers.labels:
        faults = [
            *faults,
            f"no image has a label: fill in {folder / ANSWERS}, or name the files that hold them (--labels)",
        ]
    elif answers.unlabelled and not partial:
        bare = f"{len(answers.unlabelled)} of {len(asked)} images have no label: {some(answers.unlabelled)}"
        faults = [*faults, f"{bare}; --partial goes on with what is labelled"]
    if faults:
        raise UserError(f"the labels are not ready: {'; '.join(faults)}")
    if single := alone(answers):
        log(f"warning: {len(single)} classes with one labelled image, which nothing can be judged by: {some(single)}")
    counts = len(answers.labels), len(set(answers.labels.values()))
    log(f"{counts[0]} labelled images of {counts[1]} classes" + (
        f", {len(answers.unlabelled)} handed out without a label" if answers.unlabelled else ""))  # fmt: skip
    given = given_labels(folder, answers, table.names, asked)
    today = open_pool(str(where))
    lost = leave_out(answers, folder, where, today, partial=partial, log=log)
    here = set(today.names or ())
    strange = changed(features, len(table), today)
    if other := [name for name in table.names if name in strange and name not in answers.labels]:
        log(
            f"{len(other)} images of {where} have another content than when they were embedded, or cannot be read, and "
            f"are left out: {some(other)}"
        )
    pool = tuple(name for name in table.names if name in here.difference(lost, other))
    whole = len(pool) == len(here) == len(table.names)
    return Labelled(folder, where, table, answers, record, pool, whole, given)


def changed(features: Path, count: int, today: Pool) -> set[str]:
    """The names of images whose content is another than the feature file's record says; those not noted are none."""
    record = load_record(features, count)
    if record is None or record.names is None:
        return set()
    now = record_pool(today, record)
    hashes = dict(zip(now.names or (), now.hashes, strict=True))
    pairs = zip(record.names, record.hashes, strict=True)
    return {name for name, value in pairs if value and hashes.get(name, value) != value}


def leave_out(answers: Answers, folder: Path, where: Path, today: Pool, *, partial: bool, log: Log) -> list[str]:
    """The names of labelled images that are gone, or have another content; they and the renamed ones lose their labels.

    Raises UserError unless partial, and where no label is left.
    """
    noted, count = contents(folder), len(answers.labels)
    moved, lost = follow({name: noted.get(name, "") for name in answers.labels}, today)
    if not moved and not lost:
        return []
    gone = f"{len(moved) + len(lost)} of the {count} labelled images are not in {where} as they were: "
    gone += told(moved, lost)
    if not partial or len(moved) + len(lost) == count:
        raise UserError(
            f"{gone}; give them back, or say with --source where they are (a further round of "
            f"scripts/choose_images.py with --labelled {folder} finds renamed ones); --partial goes on without them"
        )
    for name in (*moved, *lost):
        del answers.labels[name]
    log(f"warning: left out, {gone}")
    return lost


def backbone_flags(run: Labelled, weights: str) -> list[str]:
    """The trainer's flags for the backbone and the pixels of the run's features.

    weights: a file or address in place of that which embedded the pool. Raises UserError where the trainer cannot
    build it.
    """
    made = pool_provenance(run.table)
    backbone, pixels = made.get("backbone") or {}, made.get("preprocess") or {}
    arch = backbone.get("arch")
    if not arch or not pixels:
        raise UserError(f"{run.table.path} does not say what embedded it: choose again with scripts/choose_images.py")
    patch = backbone.get("patch_size")
    if arch.startswith("vit_") and patch not in (None, 16):
        raise UserError(
            f"the features are of {arch} with patches of {patch} pixels, and the trainer has 16: choose again"
        )
    start = weights or run.record.get("weights") or ""
    if not start and arch == "demo_vit":
        start = str(DEMO_WEIGHTS)
    if not start and not arch.startswith("timm:"):
        start = DINO_WEIGHTS.get((arch, 16), "")
    if start:
        try:
            local_file(start)
        except UserError as error:
            hint = "" if weights else "; --weights says where the backbone's weights are now"
            raise UserError(f"{error}{hint}") from None
    flags = ["--model", arch, "--pixels", "model", "--input-size", str(pixels["size"])]
    if start.startswith("http://"):  # choosing has taken them from there, asked to
        flags.append("--allow-http")
    return [*flags, "--finetune", start] if start else flags


def training_folder(run: Labelled, settings: Sequence[str], device: str = "auto", test: Sequence[str] = ()) -> Path:
    """Where labels with these settings are trained: the same ones again find what they left, by the same recipe.

    settings: flags of deit/main.py; of weights in a file their content counts, not where it is. Neither the device nor
    test images make another training. All three did once: where one of that time, from weights in the same place, made
    on this device or beside these images (flags `test`), is there, it is taken, first one that has ended.
    """
    start = settings[settings.index("--finetune") + 1] if "--finetune" in settings else ""
    files = [sha256(start)] if Path(start).is_file() else []
    anywhere, without = ["" if files and word == start else word for word in settings], ["--val-path", "none"]
    once = [("auto", without), (device, without), *([(device, test)] if test else [])]
    folders = [folder_of(run, anywhere, files, "auto", without)]
    folders += [folder_of(run, settings, files, *one) for one in once]
    return max(folders, key=lambda folder: ((folder / RESULT).exists(), folder.exists()))  # of equals the first


def folder_of(run: Labelled, settings: Sequence[str], files: Sequence[str], device: str, test: Sequence[str]) -> Path:
    """The folder that labels and flags name, in the form that it always had; files: hashes of the weights' file."""
    minutes = list(settings).index("--minutes") if "--minutes" in settings else len(settings)
    words = [*settings[:minutes], "--device", device, *settings[minutes:], *test]
    content = json.dumps(
        [
            sorted(run.answers.labels.items()), words, files, recipe_values(FEW_SHOT),
            *([] if run.whole else [run.pool]),
        ],
        default=str,
    )  # fmt: skip
    return run.folder / TRAINING / hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:12]
