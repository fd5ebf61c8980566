"""The finetuning run: what it is about, where it starts, whether to finetune at all; deit/epochs.py then trains."""

import argparse
import signal
from pathlib import Path
from typing import Any

import torch

from data_selection.common import distributed, watching
from data_selection.common.distributed import on_main
from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write
from data_selection.common.precision import fix_workspaces, full_float32
from data_selection.embedding.backbones import load_weights, local_file
from data_selection.embedding.checkpoint_files import read_checkpoint
from deit.choosing import decide
from deit.crossval import ask, asked_table, leave_out
from deit.datasets import close_workers, prepare_share
from deit.engine import Learner, evaluate
from deit.epochs import run_epochs
from deit.job import FROZEN, Job, Tally, decode, new_learner, open_job, part_of
from deit.learner.building import autocast_type, build, make_pipeline, resolve
from deit.learner.known_rows import known_rows
from deit.learner.linear import Rows
from deit.memory import match_classes, recall
from deit.runs import checkpoints
from deit.runs.agreement import check_start_agrees, check_weights_agree
from deit.runs.classes import check_classes, say_of_classes
from deit.runs.folders import ASKED, best_so_far, claimed, is_own, make_room
from deit.runs.kinds import Numbers, State
from deit.runs.meters import RunLog
from deit.runs.saving import Saver
from deit.runs.starting import finished, starting_point, weights_of
from deit.runs.stopping import Asked, Sofar, listening, torch_errors_named
from deit.samples.keeping import Room
from deit.samples.sources import open_evaluation, say_of_absent, say_of_labels, say_of_leaks, say_of_unread, where
from deit.selftrain import pool_epochs
from deit.smoothing import needed_features, pool_features, with_pool
from deit.timing import settle, take_over


@full_float32()
def train(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run the trainer with the Namespace of options.parse. Returns result.json's values.

    None on ranks above 0, and where SIGTERM has stopped the run; after Ctrl-C raises KeyboardInterrupt.
    """
    fix_workspaces()
    with distributed.start(args.device, watching.SILENCE) as world:
        if args.eval:
            return evaluate_only(args, world)
        with claimed(args.output_dir, world):
            result, asked = finetune(args, world)
    if asked is not None and asked.by == signal.SIGINT:
        raise KeyboardInterrupt
    return result


def finetune(args: argparse.Namespace, world: distributed.World) -> tuple[dict[str, Any] | None, Asked | None]:
    """Open the data, find the start, ask whether to finetune, build what learns, decode, train.

    Returns (the result, None where nothing is left to do or the run was stopped; who was listened to meanwhile).
    """
    saved = recall(args, world.say)
    if args.mode == "auto" and saved.get("auto"):
        args.mode = saved["mode"]  # the run to continue has decided
    job = open_job(args, world)
    job.pool_epochs = pool_epochs(job)
    leave_out(job, saved)
    source, state = starting_point(args, job.settings, job.defaults.pretrained, job.log)
    check_start_agrees(world, job.settings, state)
    if state is not None:
        saved = checkpoints.saved_args(state)
        take_over(job, saved)
        check_classes(saved, job.settings["class_names"], source)
        job.settings |= {name: saved.get(name) for name in ("verdict", "temperature", "soft_targets", "auto")}
    unjudged = state is not None and state.get("line")
    if state is not None and not unjudged and finished(args, source, state["epoch"], job.last, job.log):
        return None, None
    again, folder = state is not None and args.mode == "smoothed", job.log.folder
    own = again and folder is not None and is_own(source, folder)  # it takes seconds: what is lacking is made anew
    if again:
        source, state = weights_of(args, job.defaults.pretrained), None
    announce(job)
    if state is None:
        say_of_classes(source, job.settings["class_names"], job.log.say)
        try_weights(job, source)
    timed = state is None and args.mode not in (*FROZEN, "auto")
    with torch_errors_named(close_workers):
        if timed and (args.amp == "measured" or args.minutes):
            settle(job)
        pool_rows = take_pool(job, source) if state is None else None
        asked_labels = None
        if state is None and args.mode == "auto":
            asked_labels = decide(job, source, pool_rows)
        elif timed and args.folds:
            asked_labels = ask(job, source)
        learner, done = bring_up(job, source, state)
        check_weights_agree(world, learner.model)
        rows = take_rows(job, learner, source) if state is None and args.mode == "linear" else None
        pool_rows = pool_rows if args.mode == "smoothed" else None
        frozen = state is None and rows is None and pool_rows is None and (job.head_only or args.mode != "full")
        data = decode(job, frozen=frozen, train=done < job.labelled_epochs or job.light)
        data = data._replace(rows=rows, pool_rows=pool_rows)
        tally = Tally(None) if own else on_main(world, lambda: take_folder(job, source, state))
        if asked_labels is not None and job.log.folder:
            with atomic_write(job.log.folder / ASKED, "w") as handle:
                handle.write(asked_table(asked_labels, job.train_pool))
        job.log.keep(done if state is not None else -1)  # epoch 0 is a new run's, too
        try:
            saver = Saver(job.log.folder, source if state else None)
            with listening() as learner.asked, saver:
                return run_epochs(job, learner, data, saver, done, tally), learner.asked
        finally:
            job.log.close()


def try_weights(job: Job, source: Path | str | None) -> None:
    """Raise UserError for weights that do not fit, before cross-validation begins to work with them."""
    if source is not None and job.args.folds and job.args.mode not in FROZEN:
        new_learner(part_of(job, job.ids, 1, ""), source)


def bring_up(job: Job, source: Path | str, state: State | None) -> tuple[Learner, int]:
    """(learner, epochs done): from pretrained weights, or as a checkpoint left it."""
    learner = new_learner(job, None if state is not None else source)
    if state is not None:
        done = state["epoch"]
        own = done % job.training_epochs if job.args.restarts > 1 and done <= job.labelled_epochs else done
        checkpoints.restore(learner, state, source, job.log.say, own)
        return learner, done
    done = job.args.start_epoch - 1
    if learner.scheduler is not None and done:
        learner.scheduler.step(done)
    return learner, done


def take_pool(job: Job, source: Path | str) -> torch.Tensor | None:
    """The features of the whole pool from its file, for the modes whose graph needs them; auto can do without."""
    if job.args.mode not in ("smoothed", "auto"):
        return None
    model = new_learner(part_of(job, job.ids, 1, ""), source).model
    take = needed_features if job.args.mode == "smoothed" else pool_features
    return take(job, model, source)


def take_rows(job: Job, learner: Learner, source: Path | str) -> Rows | None:
    """The features of the training images where a feature file has them, else None; see known_rows."""
    found = on_main(
        job.world,
        lambda: known_rows(job.args, job.train_pool, job.ids, job.pixels, learner.model, source, job.log.say),
    )
    if found is None:
        return None
    labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
    return Rows(*(values.to(job.world.device) for values in (torch.from_numpy(found), labels)))


def take_folder(job: Job, source: Path | str, state: State | None) -> Tally:
    """Clear the output folder of what is not this run's. Returns what the run has done before, on rank 0."""
    folder, log = job.log.folder, job.log
    make_room(folder, source, state, log.say, auto_resume=job.args.auto_resume)
    if state is None:
        return Tally(None)
    sofar = Sofar(**state["sofar"]) if state.get("sofar") else None
    best = best_so_far(folder, source, state, log.say)
    return Tally(best, sofar=sofar, line=state.get("line"), **state.get("spent", {}))


def announce(job: Job) -> None:
    """Say what is trained on what, and what the labels and the moving average lack."""
    world, pool = job.world, job.train_pool
    job.log.say(
        f"training on {len(job.ids)} of {len(pool)} images, {pool.classes} classes, {job.global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on "
        f"{len(job.test_pool) or 'none'}"
    )
    say_of_labels(job.args.mode, pool, job.ids, job.log.say)
    if world.is_main and job.args.data_set.startswith("FOLDER"):  # others' parts are known, and may be a million files
        say_of_leaks(pool, job.ids, job.test_pool, job.log.say)
        say_of_absent(job.test_pool, job.log.say)
    args, steps = job.args, (job.training_epochs if job.labelled_epochs else 0) * job.updates
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
    test_pool, classes = distributed.on_main_first(
        world, lambda: open_evaluation(name, *where(args), saved.get("class_names"))
    )
    say_of_unread(log.say, evaluation=test_pool)
    source = local_file(args.resume or args.finetune, log.say)
    test_pool = match_classes(test_pool, classes, saved, source)
    model = build(args, test_pool.classes or 0, log)
    key = "model_ema" if args.eval_ema else args.checkpoint_key
    if args.eval_ema:
        content = read_checkpoint(source)
        if not (isinstance(content, dict) and content.get(key)):
            raise UserError(f"--eval-ema: {source} holds no moving average of the weights: leave the flag out")
    load_weights(model, source, checkpoint_key=key, log=log.say)
    model = with_pool(model, source, saved).to(world.device)
    data = prepare_share(
        world if args.dist_eval else distributed.World(0, 1, world.device), test_pool, range(len(test_pool)),
        make_pipeline(args, defaults), cache=args.cache, workers=args.num_workers, pin_memory=args.pin_mem,
        room=Room(world),
    )  # fmt: skip
    dtype = autocast_type(args.amp, world.device)
    with torch_errors_named(close_workers):
        test = evaluate(model, data, world, batch=3 * args.batch_size, amp=dtype, sharded=args.dist_eval)
    log.say(f"* Acc@1 {test['acc1']:.3f} Acc@5 {test['acc5']:.3f} loss {test['loss']:.3f}")
    log.say(f"Accuracy of the network on the {len(test_pool)} test images: {test['acc1']:.1f}%")
    return test if world.is_main else None
