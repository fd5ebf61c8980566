"""What a run is about, before anything learns: flags, pools, lists, how long, and the images as batches."""

import argparse
import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar

import torch

from data_selection.common import distributed
from data_selection.common.distributed import World
from data_selection.embedding.preprocessing import Preprocess
from data_selection.images.label_files import check_labels
from data_selection.images.pools import Pool
from deit.datasets import prepare, prepare_share
from deit.engine import Learner
from deit.learner.building import Defaults, build_learner, check_learner, make_pipeline, papers_view, resolve
from deit.learner.linear import Rows
from deit.learner.schedules import shortened
from deit.memory import names_of, say_of_pixels
from deit.option_checks import check_start
from deit.runs.kinds import Numbers, Settings
from deit.runs.meters import RunLog
from deit.runs.stopping import Sofar
from deit.samplers import epoch_order
from deit.samples.batches import Augmented, ImageBatches, Plain
from deit.samples.keeping import Room
from deit.samples.sources import choose_ids, hold_out, open_images, say_of_origin, say_of_unread, where
from deit.samples.tensor_images import PaddedImages, ViewedImages

FEWEST, MOST = 5, 60  # epochs of --epochs auto
FROZEN = ("linear", "smoothed")  # modes that leave the backbone as it is

T = TypeVar("T")


class Cached(TypedDict):
    """Keywords of datasets.prepare and prepare_share: how images are kept."""

    cache: str
    workers: int | None
    pin_memory: bool
    room: Room


class Images(NamedTuple):
    """What a run reads; None where it has no use for them."""

    classes: int
    ids: list[int]  # of the training images: their indices in the pool
    train: ImageBatches | None  # augmented
    frozen: Plain | None  # the same images as they are, to fit the head
    test: Plain | None
    held: Plain | None  # of the subset, to choose the best epoch by
    pool: Plain | None = None  # every pool image as evaluation sees it
    pool_train: Augmented | None = None  # the same, augmented
    rows: Rows | None = None  # in place of frozen, where the features of these images are known
    light: Plain | None = None  # as frozen, for the last epoch of --mode three-phase
    pool_rows: torch.Tensor | None = None  # features (N, D) of the whole pool, in --mode smoothed


def needed(images: T | None) -> T:
    """Some of a run's Images, at a place that it comes to only where they are decoded."""
    assert images is not None
    return images


@dataclasses.dataclass
class Tally:
    """What a run has done so far, before it was continued, too: the best epoch's numbers, and what it spent."""

    best: Numbers | None
    skipped: int = 0  # steps left out, their loss not finite
    images: int = 0
    seconds: float = 0.0  # of training alone
    epochs: int = 0
    before: float = 0.0  # seconds in all until it was continued
    targets: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)  # of self-training, by round
    sofar: Sofar | None = None  # the steps of the next epoch that are done
    line: Numbers | None = None  # of an epoch that is trained and not judged
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds in all."""
        return self.before + time.monotonic() - self.began

    def take_sofar(self) -> Sofar | None:
        """sofar, once: the epoch that it belongs to goes on now."""
        sofar, self.sofar = self.sofar, None
        return sofar

    def spent(self) -> Numbers:
        """What a checkpoint keeps for the run that continues it: keywords of Tally."""
        kept: Numbers = {name: getattr(self, name) for name in ("skipped", "images", "seconds", "epochs")}
        return kept | {"before": self.elapsed}


class Named(TypedDict, total=False):
    """What --mode auto adds: the mode of its finetuned model, and which of the two the pool teaches, as `kept`."""

    finetuned: str
    taught: str


class Verdict(Named):
    """What cross-validation found: labels asked, how many of them each model had right, how many only that one had."""

    labels: int
    probe_right: int
    finetuned_right: int
    only_probe: int
    only_finetuned: int
    kept: str  # finetuned or probe


@dataclasses.dataclass
class Job:
    """What a run is about, before anything learns."""

    args: argparse.Namespace
    world: distributed.World
    defaults: Defaults
    log: RunLog
    train_pool: Pool
    test_pool: Pool
    ids: list[int]  # of the training images: indices into train_pool
    held: list[int]  # of the subset, to choose the best epoch by; maybe none
    global_batch: int
    settings: Settings
    pixels: Preprocess  # what evaluation sees
    pool_epochs: int = 0  # chunks of the pool after the labelled epochs, in --mode self-train

    @property
    def classes(self) -> int:
        """Classes of the training pool; 0 where it has no labels, which building a model refuses."""
        return self.train_pool.classes or 0

    @property
    def updates(self) -> int:
        """Steps in an epoch."""
        return updates_for(self, len(self.ids))

    @property
    def verdict(self) -> Verdict | None:
        """What cross-validation said of finetuning, None where it was not asked."""
        return self.settings.get("verdict")

    @property
    def head_only(self) -> bool:
        """Whether the labels train the head on the frozen backbone alone: asked for, or the better model."""
        verdict = self.verdict
        return self.args.mode in FROZEN or bool(verdict and verdict.get("taught", verdict["kept"]) == "probe")

    @property
    def light(self) -> bool:
        """Whether a last epoch fits the head again, to the finetuned features."""
        return self.args.mode == "three-phase" and not self.head_only

    @property
    def last(self) -> int:
        """The number of the last epoch; 0 is the one that fits the head alone."""
        return self.labelled_epochs + self.pool_epochs + self.light

    @property
    def labelled_epochs(self) -> int:
        """Epochs on the labelled images, of all trainings on them."""
        return 0 if self.head_only else self.args.restarts * self.training_epochs

    @property
    def training_epochs(self) -> int:
        """Epochs of one training on the labelled images."""
        return int(self.args.epochs + self.args.cooldown_epochs)

    def within_training(self, epoch: int) -> tuple[int, int]:
        """(training, epoch in it), both from 1, of an epoch on the labelled images, from 1."""
        training, own = divmod(epoch - 1, self.training_epochs)
        return training + 1, own + 1

    def begins_anew(self, epoch: int) -> bool:
        """Whether one of several trainings on the labels begins with an epoch."""
        several = self.args.restarts > 1 and 0 < epoch <= self.labelled_epochs
        return several and self.within_training(epoch)[1] == 1


def updates_for(job: Job, count: int) -> int:
    """Steps in an epoch of `count` images."""
    return -(-len(epoch_order(count, 1, repeated=job.args.repeated_aug)) // job.global_batch)


def auto_epochs(labels: int) -> int:
    """The epochs of --epochs auto: 30 for 100 labels, 15 for 1,000, so that steps grow slower than labels."""
    return min(MOST, max(FEWEST, round(30 * (labels / 100) ** -0.3)))


def open_job(args: argparse.Namespace, world: distributed.World) -> Job:
    """The Job of the flags: the lists are checked before a model is touched."""
    name, defaults = resolve(args)
    check_learner(args)
    log = RunLog(args.output_dir, world.is_main, verbose=args.verbose, tensorboard=args.tensorboard)
    train_pool, test_pool, chosen = distributed.on_main_first(world, lambda: open_data(args, name, log))
    ids, held = hold_out(chosen, train_pool, args.val_fraction, args.seed)
    if args.epochs == "auto":
        args.epochs = auto_epochs(len(ids))
        check_start(args)
    global_batch = args.global_batch_size or args.batch_size * world.size
    pixels = defaults.view or papers_view(args, defaults)
    say_of_pixels(args.subset_ids or (), pixels, log.say)
    settings = vars(args) | {
        "global_batch_size": global_batch,
        "train_ids": fingerprint(train_pool, ids),
        "processes": world.size,
        "train_names": names_of(train_pool, list(ids)),
        "preprocess": pixels.record(),
        "class_names": list(train_pool.class_names) if train_pool.class_names else None,
    }
    return Job(args, world, defaults, log, train_pool, test_pool, list(ids), held, global_batch, settings, pixels)


def part_epochs(job: Job, updates: int, steps: int) -> int:
    """Epochs of at most about `steps` steps, where an epoch has `updates` of them.

    No more than the job's own, or their share where it trains several times on the labels: what is asked trains once.
    """
    return max(1, min(job.args.epochs // job.args.restarts, steps // updates))


def part_of(job: Job, ids: list[int], steps: int, desc: str) -> Job:
    """The same job on some of its images, for at most about `steps` steps, with a bar called desc and no words."""
    args = copy.copy(job.args)
    vars(args).update(shortened(args, part_epochs(job, updates_for(job, len(ids)), steps)), restarts=1)
    log = RunLog("", job.world.is_main, desc=desc, quiet=True)
    return dataclasses.replace(job, args=args, ids=ids, held=[], log=log, settings=dict(job.settings), pool_epochs=0)


def new_learner(job: Job, source: Path | str | None) -> Learner:
    """The learner of a job from pretrained weights, or from fresh ones where source is None."""
    return build_learner(job.args, job.world, job.classes, job.global_batch, job.updates, job.log, source)


def decode(job: Job, *, frozen: bool, train: bool, test: bool = True) -> Images:
    """The Images of a job, those that are asked for."""
    args, pipeline, everything = job.args, make_pipeline(job.args, job.defaults), range(len(job.train_pool))
    cached: Cached = {
        "cache": args.cache, "workers": args.num_workers, "pin_memory": args.pin_mem, "room": Room(job.world)
    }  # fmt: skip

    def augmented(ids: Sequence[int]) -> ImageBatches:
        return prepare(job.train_pool, ids, pipeline, job.world.device, train=True, seed=args.seed, **cached)

    def plain(pool: Pool, ids: Sequence[int], ours: ImageBatches | None = None, sharded: bool = True) -> Plain:
        """Without augmentation; ours: the same images with it, which may hold the same pixels."""
        if isinstance(ours, PaddedImages if pipeline.view is None else ViewedImages):
            return ours
        world = job.world if sharded else World(0, 1, job.world.device)
        return prepare_share(world, pool, ids, pipeline, **cached)

    labelled = augmented(job.ids) if train else None
    whole = augmented(everything) if job.pool_epochs else None
    as_they_are = plain(job.train_pool, job.ids, labelled) if frozen or job.light else None
    return Images(
        classes=job.classes,
        ids=job.ids,
        train=labelled,
        frozen=as_they_are if frozen else None,
        test=plain(job.test_pool, range(len(job.test_pool)), sharded=args.dist_eval)
        if test and len(job.test_pool)
        else None,
        held=plain(job.train_pool, job.held, sharded=args.dist_eval) if job.held else None,
        light=as_they_are if job.light else None,
        pool=plain(job.train_pool, everything, whole) if job.pool_epochs else None,
        pool_train=whole,
    )


def open_data(args: argparse.Namespace, name: str, log: RunLog) -> tuple[Pool, Pool, list[int]]:
    """(training pool, evaluation pool, pool indices to train on)."""
    train_pool, test_pool = open_images(name, *where(args))
    say_of_unread(log.say, training=train_pool, evaluation=test_pool)
    for subset in args.subset_ids or ():
        say_of_origin(subset, name, log.say)
    ids = choose_ids(train_pool, args.subset_ids, args.missing, log.say)
    check_labels(train_pool, ids, args.labels)
    return train_pool, test_pool, ids


def fingerprint(pool: Pool, ids: Sequence[int]) -> str:
    """Hex digest of the training ids in order and their labels: a continued run must have the same."""
    return hashlib.sha256(json.dumps([[i, pool.label(i)] for i in ids]).encode()).hexdigest()
