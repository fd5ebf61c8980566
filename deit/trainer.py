"""The finetuning run: what it is about, where it starts, whether to finetune at all; deit/epochs.py then trains."""

import argparse
from pathlib import Path
from typing import Any

from data_selection.common import distributed
from data_selection.common.distributed import on_main
from data_selection.common.errors import UserError
from data_selection.embedding.backbones import load_weights, local_file
from data_selection.embedding.checkpoint_files import read_checkpoint
from deit.crossval import compare, told
from deit.datasets import close_workers, prepare
from deit.engine import Learner, evaluate
from deit.epochs import run_epochs
from deit.job import Job, Tally, decode, new_learner, open_job, where
from deit.learner.building import autocast_type, build, make_pipeline, resolve
from deit.memory import match_classes, recall
from deit.runs import checkpoints
from deit.runs.classes import check_classes, say_of_classes
from deit.runs.folders import best_so_far, claimed, make_room
from deit.runs.kinds import Numbers, State
from deit.runs.meters import RunLog
from deit.runs.saving import Saver
from deit.runs.starting import finished, starting_point
from deit.runs.stopping import sigterm, workers_named
from deit.samples.sources import open_images, say_of_labels
from deit.selftrain import pool_epochs
from deit.timing import settle, take_over


def train(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run the trainer with the Namespace of options.parse. Returns result.json's values (None on ranks above 0)."""
    with distributed.start(args.device) as world:
        if args.eval:
            return evaluate_only(args, world)
        with claimed(args.output_dir, world):
            return finetune(args, world)


def finetune(args: argparse.Namespace, world: distributed.World) -> dict[str, Any] | None:
    """Open the data, find the start, ask whether to finetune, build what learns, decode, train.

    Returns the result, or None where nothing is left to do.
    """
    recall(args, world.say)
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
        learner, done = bring_up(job, source, state)
        data = decode(
            job, frozen=state is None and (job.head_only or args.mode != "full"), train=done < job.labelled_epochs
        )
        tally = on_main(world, lambda: take_folder(job, source, state))
        job.log.keep(done if state is not None else -1)  # epoch 0 is a new run's, too
        try:
            saver = Saver(job.log.folder, source if state else None)
            with sigterm() as asked, saver:
                return run_epochs(job, learner, data, saver, asked, done, tally)
        finally:
            job.log.close()


def bring_up(job: Job, source: Path | str, state: State | None) -> tuple[Learner, int]:
    """(learner, epochs done): from pretrained weights, or as a checkpoint left it."""
    learner = new_learner(job, None if state is not None else source)
    if state is not None:
        checkpoints.restore(learner, state, source, job.log.say)
        return learner, state["epoch"]
    done = job.args.start_epoch - 1
    if learner.scheduler is not None and done:
        learner.scheduler.step(done)
    return learner, done


def take_folder(job: Job, source: Path | str, state: State | None) -> Tally:
    """Clear the output folder of what is not this run's. Returns what the run has done before, on rank 0."""
    folder, log = job.log.folder, job.log
    make_room(folder, source, state, log.say, auto_resume=job.args.auto_resume)
    if state is None:
        return Tally(None)
    return Tally(best_so_far(folder, source, state, log.say), **state.get("spent", {}))


def announce(job: Job) -> None:
    """Say what is trained on what, and what the labels and the moving average lack."""
    world, pool = job.world, job.train_pool
    job.log.say(
        f"training on {len(job.ids)} of {len(pool)} images, {pool.classes} classes, {job.global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on "
        f"{len(job.test_pool) or 'none'}"
    )
    say_of_labels(job.args.mode, pool, job.ids, job.log.say)
    args, steps = job.args, job.labelled_epochs * job.updates
    if args.model_ema and not args.model_ema_warmup and 0 < steps < (memory := 1 / (1.0000001 - args.model_ema_decay)):
        job.log.say(
            f"--model-ema-decay {args.model_ema_decay} averages the weights over about {memory:.0f} steps, and the run "
            f"has {steps}: the average stays where it began; --model-ema-warmup lets it follow"
        )


def evaluate_only(args: argparse.Namespace, world: distributed.World) -> Numbers | None:
    """Evaluate the weights of --resume or --finetune and print the accuracy."""
    log = RunLog("", world.is_main)
    saved = recall(args, log.say)
    name, defaults = resolve(args)
    train_pool, test_pool = distributed.on_main_first(world, lambda: open_images(name, *where(args)))
    source = local_file(args.resume or args.finetune, log.say)
    test_pool = match_classes(test_pool, train_pool.class_names, saved, source)
    model = build(args, test_pool.classes or 0, log)
    key = "model_ema" if args.eval_ema else args.checkpoint_key
    if args.eval_ema:
        content = read_checkpoint(source)
        if not (isinstance(content, dict) and content.get(key)):
            raise UserError(f"--eval-ema: {source} holds no moving average of the weights: leave the flag out")
    load_weights(model, source, checkpoint_key=key, log=log.say)
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
