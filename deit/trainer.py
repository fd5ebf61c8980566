"""The finetuning run: what is trained, from where, on which images; deit/epochs.py then goes through the epochs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_selection.common import distributed
from data_selection.embedding.backbones import load_weights
from deit.datasets import prepare
from deit.engine import evaluate
from deit.epochs import Images, last_epoch, run_epochs
from deit.learner.building import autocast_type, build, build_learner, make_pipeline, resolve
from deit.runs import checkpoints
from deit.runs.meters import RunLog
from deit.runs.saving import NEWEST, Saver
from deit.runs.starting import finished, starting_point
from deit.runs.stopping import sigterm, workers_named
from deit.samples.label_files import check_labels
from deit.samples.sources import check_same_pool, choose_ids, hold_out, open_images, say_of_labels


def train(args):
    """Run the trainer with the Namespace of options.parse. Returns result.json's values (None on ranks above 0)."""
    with distributed.start(args.device) as world:
        return evaluate_only(args, world) if args.eval else finetune(args, world)


def finetune(args, world):
    """Open the data, find the start, build what learns, decode, train; the result, or None where nothing is left."""
    job = open_job(args, world)
    source, state = starting_point(args, job.settings, job.defaults.pretrained, job.log)
    if state is not None and finished(args, source, state["epoch"], last_epoch(args), job.log):
        return None
    learner, done, best = bring_up(job, source, state)
    data = decode(job, fresh=state is None)
    announce(job)
    job.log.keep(done if state is not None else 0)
    try:
        saver = Saver(job.log.folder, source if state else None)
        with sigterm() as asked, distributed.watched(world), workers_named(), saver:
            return run_epochs(job, learner, data, saver, asked, done, best)
    finally:
        job.log.close()


@dataclass
class Job:
    """What a run is about, before anything learns."""

    args: Any
    world: distributed.World
    defaults: Any  # of the data set: building.Defaults
    log: RunLog
    train_pool: Any
    test_pool: Any
    ids: list  # of the training images: indices into train_pool
    held: list  # of the subset, to choose the best epoch by; maybe none
    global_batch: int
    settings: dict  # the flags as resolved, and what a continued run must have the same


def open_job(args, world):
    """The Job of the flags: the output folder and the lists are checked before a model is touched."""
    name, defaults = resolve(args)
    if args.output_dir:
        checkpoints.check_folder(args.output_dir)
    log = RunLog(args.output_dir, world.is_main, verbose=args.verbose, tensorboard=args.tensorboard)
    train_pool, test_pool, ids = distributed.on_main_first(world, lambda: open_data(args, name, log))
    ids, held = hold_out(ids, train_pool, args.val_fraction, args.seed)
    global_batch = args.global_batch_size or args.batch_size * world.size
    settings = vars(args) | {
        "global_batch_size": global_batch,
        "train_ids": fingerprint(train_pool, ids),
        "processes": world.size,
    }
    return Job(args, world, defaults, log, train_pool, test_pool, list(ids), held, global_batch, settings)


def bring_up(job, source, state):
    """(learner, epochs done, the best epoch's numbers or None): from pretrained weights, or as a checkpoint left it."""
    args, log = job.args, job.log
    learner = build_learner(
        args, job.world, job.train_pool.classes, job.global_batch, log, None if state is not None else source
    )
    if state is not None:
        return learner, *checkpoints.restore(learner, state, source, log.say)
    done = args.start_epoch - 1
    if learner.scheduler is not None and done:
        learner.scheduler.step(done)
    if args.output_dir and (Path(args.output_dir) / NEWEST).exists():
        log.say(f"{args.output_dir} holds an earlier run: its files are replaced (--auto-resume continues it)")
    return learner, done, None


def decode(job, fresh):
    """The Images of a run; fresh: it starts at the beginning, so that a mode that fits the head does so."""
    args, pipeline = job.args, make_pipeline(job.args, job.defaults)

    def load(pool, ids, train=False):
        return prepare(
            pool, ids, pipeline, job.world.device, train=train, seed=args.seed,
            cache=args.cache, workers=args.num_workers, pin_memory=args.pin_mem,
        )  # fmt: skip

    return Images(
        classes=job.train_pool.classes,
        ids=job.ids,
        train=load(job.train_pool, job.ids, train=True) if last_epoch(args) else None,
        frozen=load(job.train_pool, job.ids) if fresh and args.mode != "full" else None,
        test=load(job.test_pool, range(len(job.test_pool))),
        held=load(job.train_pool, job.held) if job.held else None,
    )


def announce(job):
    """Say what is trained on what, and what the labels lack."""
    world, pool = job.world, job.train_pool
    job.log.say(
        f"training on {len(job.ids)} of {len(pool)} images, {pool.classes} classes, {job.global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on "
        f"{len(job.test_pool)}"
    )
    say_of_labels(job.args.mode, pool, job.ids, job.log.say)


def evaluate_only(args, world):
    """Evaluate the weights of --resume or --finetune and print the accuracy."""
    name, defaults = resolve(args)
    log = RunLog("", world.is_main)
    train_pool, test_pool = distributed.on_main_first(world, lambda: open_images(name, *where(args)))
    model = build(args, train_pool.classes, log)
    load_weights(model, args.resume or args.finetune, checkpoint_key="model", log=log.say)
    model.to(world.device)
    data = prepare(
        test_pool, range(len(test_pool)), make_pipeline(args, defaults), world.device, train=False,
        cache=args.cache, workers=args.num_workers, pin_memory=args.pin_mem,
    )  # fmt: skip
    dtype = autocast_type(args.amp, world.device)
    test = evaluate(model, data, world, batch=3 * args.batch_size, amp=dtype, sharded=args.dist_eval)
    log.say(f"* Acc@1 {test['acc1']:.3f} Acc@5 {test['acc5']:.3f} loss {test['loss']:.3f}")
    log.say(f"Accuracy of the network on the {len(test_pool)} test images: {test['acc1']:.1f}%")
    return test if world.is_main else None


def where(args):
    """What open_images takes of the flags."""
    return args.data_path, args.labels, args.val_labels, args.inat_category


def open_data(args, name, log):
    """(training pool, evaluation pool, pool indices to train on), the subset file checked against its pool."""
    train_pool, test_pool = open_images(name, *where(args))
    if args.subset_ids:
        check_same_pool(args.subset_ids, train_pool, name, log.say)
    ids = choose_ids(train_pool, args.subset_ids)
    check_labels(train_pool, ids, args.labels)
    return train_pool, test_pool, ids


def fingerprint(pool, ids):
    """Hex digest of the training ids in order and their labels: a continued run must have the same."""
    return hashlib.sha256(json.dumps([[i, pool.label(i)] for i in ids]).encode()).hexdigest()
