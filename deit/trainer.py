"""The finetuning run: what it is about, where it starts, whether to finetune at all; deit/epochs.py then trains."""

import argparse
from pathlib import Path
from typing import Any

from data_selection.common import distributed
from data_selection.embedding.backbones import load_weights, local_file
from deit.crossval import compare, told
from deit.datasets import close_workers, prepare
from deit.engine import Learner, evaluate
from deit.epochs import run_epochs
from deit.job import Job, decode, new_learner, open_job, where
from deit.learner.building import autocast_type, build, make_pipeline, resolve
from deit.runs import checkpoints
from deit.runs.classes import check_classes, say_of_classes
from deit.runs.kinds import Numbers, State
from deit.runs.meters import RunLog
from deit.runs.saving import NEWEST, Saver
from deit.runs.starting import finished, starting_point
from deit.runs.stopping import sigterm, workers_named
from deit.samples.sources import open_images, say_of_labels
from deit.selftrain import pool_epochs
from deit.timing import settle, take_over


def train(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run the trainer with the Namespace of options.parse. Returns result.json's values (None on ranks above 0)."""
    with distributed.start(args.device) as world:
        return evaluate_only(args, world) if args.eval else finetune(args, world)


def finetune(args: argparse.Namespace, world: distributed.World) -> dict[str, Any] | None:
    """Open the data, find the start, ask whether to finetune, build what learns, decode, train.

    Returns the result, or None where nothing is left to do.
    """
    job = open_job(args, world)
    job.pool_epochs = pool_epochs(job)
    source, state = starting_point(args, job.settings, job.defaults.pretrained, job.log)
    if state is not None:
        saved = checkpoints.saved_args(state)
        take_over(job, saved)
        check_classes(saved, job.settings["class_names"], source)
        job.settings |= {name: saved.get(name) for name in ("verdict", "soft_targets")}
    if state is not None and finished(args, source, state["epoch"], job.last, job.log):
        return None
    announce(job)
    if state is None:
        say_of_classes(source, job.settings["class_names"], job.log.say)
    if state is None and (args.amp == "measured" or args.minutes) and args.mode != "linear":
        settle(job)
    with distributed.watched(world), workers_named(close_workers):
        if state is None and args.folds and args.mode != "linear":
            verdict = compare(job, source)
            job.settings["verdict"] = verdict
            job.log.say(told(verdict))
        learner, done, best = bring_up(job, source, state)
        data = decode(
            job, frozen=state is None and (job.head_only or args.mode != "full"), train=job.labelled_epochs > 0
        )
        job.log.keep(done if state is not None else -1)  # epoch 0 is a new run's, too
        try:
            saver = Saver(job.log.folder, source if state else None)
            with sigterm() as asked, saver:
                return run_epochs(job, learner, data, saver, asked, done, best)
        finally:
            job.log.close()


def bring_up(job: Job, source: Path | str, state: State | None) -> tuple[Learner, int, Numbers | None]:
    """(learner, epochs done, the best epoch's numbers or None): from pretrained weights, or as a checkpoint left it."""
    args, log = job.args, job.log
    learner = new_learner(job, None if state is not None else source)
    if state is not None:
        return learner, *checkpoints.restore(learner, state, source, log.say)
    done = args.start_epoch - 1
    if learner.scheduler is not None and done:
        learner.scheduler.step(done)
    if args.output_dir and (Path(args.output_dir) / NEWEST).exists():
        log.say(f"{args.output_dir} holds an earlier run: its files are replaced (--auto-resume continues it)")
    return learner, done, None


def announce(job: Job) -> None:
    """Say what is trained on what, and what the labels lack."""
    world, pool = job.world, job.train_pool
    job.log.say(
        f"training on {len(job.ids)} of {len(pool)} images, {pool.classes} classes, {job.global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on "
        f"{len(job.test_pool)}"
    )
    say_of_labels(job.args.mode, pool, job.ids, job.log.say)


def evaluate_only(args: argparse.Namespace, world: distributed.World) -> Numbers | None:
    """Evaluate the weights of --resume or --finetune and print the accuracy."""
    name, defaults = resolve(args)
    log = RunLog("", world.is_main)
    train_pool, test_pool = distributed.on_main_first(world, lambda: open_images(name, *where(args)))
    source = local_file(args.resume or args.finetune, log.say)
    check_classes(checkpoints.saved_args(checkpoints.training_state(source) or {}), train_pool.class_names, source)
    model = build(args, train_pool.classes or 0, log)
    load_weights(model, source, log=log.say)
    model.to(world.device)
    data = prepare(
        test_pool, range(len(test_pool)), make_pipeline(args, defaults), world.device, train=False,
        cache=args.cache, workers=args.num_workers, pin_memory=args.pin_mem,
    )  # fmt: skip
    dtype = autocast_type(args.amp, world.device)
    with workers_named(close_workers):
        test = evaluate(model, data, world, batch=3 * args.batch_size, amp=dtype, sharded=args.dist_eval)
    log.say(f"* Acc@1 {test['acc1']:.3f} Acc@5 {test['acc5']:.3f} loss {test['loss']:.3f}")
    log.say(f"Accuracy of the network on the {len(test_pool)} test images: {test['acc1']:.1f}%")
    return test if world.is_main else None
