"""The finetuning run: epochs, evaluations and checkpoints."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from data_selection.common import distributed
from data_selection.embedding.backbones import load_weights
from deit.datasets import prepare
from deit.engine import evaluate, train_one_epoch
from deit.learner.building import autocast_type, build, build_learner, make_pipeline, resolve
from deit.learner.linear import fit_head
from deit.runs import checkpoints
from deit.runs.meters import RunLog
from deit.runs.saving import BEST, NEWEST, Saver
from deit.runs.starting import finished, starting_point
from deit.runs.stopping import NotFinite, asked_to_stop, sigterm, with_batch, workers_named
from deit.samplers import epoch_order, plan_epoch
from deit.samples.label_files import check_labels
from deit.samples.mixing import Mixing
from deit.samples.sources import check_same_pool, choose_ids, hold_out, open_images, say_of_labels


def train(args):
    """Run the trainer with the Namespace of options.parse. Returns result.json's values (None on ranks above 0)."""
    with distributed.start(args.device) as world:
        return evaluate_only(args, world) if args.eval else finetune(args, world)


def finetune(args, world):
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
    source, state = starting_point(args, settings, defaults.pretrained, log)
    if state is not None and finished(args, source, state["epoch"], last_epoch(args), log):
        return None
    learner = build_learner(args, world, train_pool.classes, global_batch, log, None if state else source)
    done, best = args.start_epoch - 1, None
    if learner.scheduler is not None and done:
        learner.scheduler.step(done)
    if state is not None:
        done, best = checkpoints.restore(learner, state, source, log.say)
    elif args.output_dir and (Path(args.output_dir) / "checkpoint.pth").exists():
        log.say(f"{args.output_dir} holds an earlier run: its files are replaced (--auto-resume continues it)")
    pipeline = make_pipeline(args, defaults)
    common = {"cache": args.cache, "workers": args.num_workers, "pin_memory": args.pin_mem}

    def load(pool, ids, train=False):
        return prepare(pool, ids, pipeline, world.device, train=train, seed=args.seed, **common)

    data = Images(
        classes=train_pool.classes,
        ids=list(ids),
        train=load(train_pool, ids, train=True) if last_epoch(args) else None,
        frozen=load(train_pool, ids) if state is None and args.mode != "full" else None,
        test=load(test_pool, range(len(test_pool))),
        held=load(train_pool, held) if held else None,
    )
    log.say(
        f"training on {len(ids)} of {len(train_pool)} images, {train_pool.classes} classes, {global_batch} per step on "
        f"{world.size} process{'es' if world.size > 1 else ''} ({world.device.type}), evaluating on {len(test_pool)}"
    )
    say_of_labels(args.mode, train_pool, ids, log.say)
    log.keep(done if state is not None else 0)
    try:
        saver = Saver(log.folder, source if state else None)
        with sigterm() as asked, distributed.watched(world), workers_named(), saver:
            return run_epochs(learner, log, saver, asked, args, settings, data, done, best)
    finally:
        log.close()


def run_epochs(learner, log, saver, asked, args, settings, data, done, best):
    """Epochs done+1 to the last, or until `asked` is set; evaluations, checkpoints and the result. data: Images.

    Epoch 0, where data.frozen is set, fits the head to the frozen backbone; --mode linear has no other.
    """
    world, global_batch, last = learner.world, settings["global_batch_size"], last_epoch(args)
    mixing = Mixing(
        args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode
    )  # fmt: skip
    save_interval = args.save_interval or args.eval_interval
    parameters = sum(parameter.numel() for parameter in learner.model.parameters() if parameter.requires_grad)
    batch = 3 * args.batch_size
    score = {"batch": batch, "amp": learner.amp, "sharded": args.dist_eval}
    seconds, images, skipped, began = 0.0, 0, 0, time.monotonic()
    first = done + 1 if data.frozen is None else 0
    log.start(first, last, steps_per_epoch(args, data, global_batch), settings)
    for epoch in range(first, last + 1):
        started = time.monotonic()
        if epoch == 0:
            rate, count = 0.0, len(data.frozen)
            loss = fit_head(learner, data.frozen, data.classes, batch=batch, smoothing=args.smoothing)
        else:
            order = epoch_order(len(data.train), epoch, seed=args.seed, repeated=args.repeated_aug)
            steps = plan_epoch(order, global_batch, args.batch_size, world.rank, world.size)
            rate, count = max(group["lr"] for group in learner.optimizer.param_groups), len(order)
            try:
                loss, left_out = train_one_epoch(
                    learner, data.train, steps, epoch, classes=data.classes, seed=args.seed, mixing=mixing,
                    clip_grad=args.clip_grad, skip_nonfinite=args.skip_nonfinite, on_step=log.step,
                )  # fmt: skip
            except NotFinite as error:
                rows = order[error.step * global_batch :][:global_batch].tolist()
                raise with_batch(error, epoch, [data.ids[row] for row in rows], log.folder) from None
            skipped += left_out
            if learner.scheduler is not None:
                learner.scheduler.step(epoch)
        seconds, images = seconds + time.monotonic() - started, images + count
        line, names = {"train_lr": rate, "train_loss": loss}, []
        if skipped:
            line["skipped_steps"] = skipped
        if epoch % args.eval_interval == 0 or epoch == last:
            test = judged(learner.model, data, world, score)
            line |= {key if key.startswith("val_") else f"test_{key}": value for key, value in test.items()}
            if best is None or merit(test) > merit(best):
                best, names = {"epoch": epoch} | test, [BEST]
        stop = asked_to_stop(asked, world) and epoch < last
        if epoch % save_interval == 0 or epoch == last or stop:
            names.append(NEWEST)
        log.record(line | {"epoch": epoch, "n_parameters": parameters}, best)
        if names:
            saver.save(names, checkpoints.content(learner, epoch, best, settings))
        if stop:
            saver.wait()
            return log.stopped(epoch)
    ema = None
    if learner.ema is not None and last:
        ema = evaluate(learner.ema.module.to(world.device), data.test, world, **score)
    how = f"chosen on {len(data.held)} held-out images" if data.held else "chosen on the evaluation set"
    result = {
        "mode": args.mode,
        "last": {"epoch": last, **test},
        "best": {**best, "note": how},
        "ema": ema,
        "epochs_run": last - done, "train_seconds": seconds, "seconds": time.monotonic() - began,
        "images_per_second": images / seconds, "processes": world.size, "global_batch_size": global_batch,
    }  # fmt: skip
    saver.wait()
    log.close()
    log.result(result)
    where = (
        f"; wrote checkpoint.pth, best_checkpoint.pth, log.txt and result.json in {log.folder}" if log.folder else ""
    )
    when = f"after the last epoch ({last})" if last else "of the head on the frozen backbone"
    log.say(f"top-1 {when}: {test['acc1']:.2f} %; best {best['acc1']:.2f} % at epoch {best['epoch']}, {how}{where}")
    return result if world.is_main else None


class Images(NamedTuple):
    """What a run reads: batches as datasets.prepare makes them, or None where the run has no use for them."""

    classes: int
    ids: list  # of the training images: their indices in the pool
    train: Any  # augmented
    frozen: Any  # the same images as they are, to fit the head
    test: Any
    held: Any  # of the subset, to choose the best epoch by


def last_epoch(args):
    """The number of the last epoch; 0 is the one that fits the head alone."""
    return 0 if args.mode == "linear" else args.epochs + args.cooldown_epochs


def steps_per_epoch(args, data, global_batch):
    if data.train is None:
        return 0
    return -(-len(epoch_order(len(data.train), 1, repeated=args.repeated_aug)) // global_batch)


def judged(model, data, world, score):
    """Loss, top-1, top-5 on the evaluation set, and as val_loss, ... on the held-out images where there are any."""
    result = evaluate(model, data.test, world, **score)
    if data.held:
        result |= {f"val_{key}": value for key, value in evaluate(model, data.held, world, **score).items()}
    return result


def merit(numbers):
    """What the best epoch is chosen by."""
    return numbers.get("val_acc1", numbers["acc1"])


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
