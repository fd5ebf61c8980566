"""The epochs of a run: train, judge, keep, until the last one or until somebody asks to stop; then the result."""

import math
import time
from typing import Any, TypedDict

import torch
from torch.nn.functional import cross_entropy, one_hot

from deit.engine import Learner, answers, evaluate, train_one_epoch
from deit.job import Images, Job, Tally, needed
from deit.learner import restarts
from deit.learner.linear import augmented_features, classifiers, fit_head, frozen_features, set_head, soften
from deit.runs import checkpoints
from deit.runs.kinds import Numbers, State
from deit.runs.saving import BEST, NEWEST, Saver
from deit.runs.stopping import Asked, NotFinite, Stopped, asked_to_stop, with_batch
from deit.samplers import epoch_order, plan_epoch
from deit.samples.mixing import Mixing
from deit.selftrain import ends_round, last_words, pool_epoch, steps_before
from deit.smoothing import fit_with_pool

VIEWS = 8  # augmented ones of each image, for the last head of --mode three-phase


class Scoring(TypedDict):
    """Keywords of engine.evaluate."""

    batch: int
    amp: torch.dtype | None
    sharded: bool
    asked: Asked


def run_epochs(
    job: Job, learner: Learner, data: Images, saver: Saver, done: int, tally: Tally
) -> dict[str, Any] | None:
    """Epochs done+1 to the last, or until learner.asked is set; evaluations, checkpoints and the result.

    Epoch 0, where data has frozen images or rows, fits the head to the frozen backbone; --mode linear has no other.
    Returns result.json's values; None on ranks above 0, and where the run was asked to stop. tally: what it did before.
    """
    log, last = job.log, job.last
    fresh = data.frozen is not None or data.rows is not None or data.pool_rows is not None
    first = 0 if fresh else done + (tally.line is None)
    steps = steps_before(job, first) + (len(tally.sofar.losses) if tally.sofar else 0)
    log.start(first, last, steps_before(job, last + 1), steps, job.settings)
    epoch = first
    try:
        for epoch in range(first, last + 1):
            test = whole_epoch(job, learner, data, saver, epoch, tally)
        if first > last:  # the run was killed before it wrote its result
            test = judged(job, learner, data, last)
            if names := is_best(tally, test, last):  # its best checkpoint is lost
                saver.save(names, checkpoints.content(learner, last, tally.best, job.settings, tally.spent()))
        return conclude(job, learner, data, saver, tally, test)
    except Stopped as stopped:
        leave(job, learner, saver, epoch, tally, stopped)
        return None


def whole_epoch(job: Job, learner: Learner, data: Images, saver: Saver, epoch: int, tally: Tally) -> Numbers:
    """An epoch, its evaluation (returned; {}: none), line and checkpoint. Raises Stopped where asked to stop in it."""
    args = job.args
    tally.line = line = tally.line or one_epoch(job, learner, data, epoch, tally)
    names, test = [], {}
    if is_judged(job, epoch):
        test = judged(job, learner, data, epoch)
        line = line | {key if key.startswith("val_") else f"test_{key}": value for key, value in test.items()}
        names = is_best(tally, test, epoch)
    stop = asked_to_stop(learner.asked, job.world) and epoch < job.last
    if epoch % (args.save_interval or args.eval_interval) == 0 or epoch >= job.labelled_epochs or stop:
        names.append(NEWEST)
    if names and not answers(learner):
        raise unusable("the weights", epoch)
    job.log.record(line | {"epoch": epoch, "n_parameters": len(learner.gradients.buffer)}, tally.best)
    if names:
        saver.save(names, checkpoints.content(learner, epoch, tally.best, job.settings, tally.spent()))
    tally.line = None
    if stop:
        raise Stopped
    return test


def leave(job: Job, learner: Learner, saver: Saver, epoch: int, tally: Tally, stopped: Stopped) -> None:
    """Save what the last checkpoint lacks of a run that is stopped in or after an epoch, and say where it stopped."""
    sofar, place = stopped.sofar, f"at epoch {epoch}"
    more: State = {}
    if tally.line is not None:
        more, place = {"line": tally.line}, f"in the evaluation after epoch {epoch}"
    elif sofar is not None:
        more, place = {"sofar": vars(sofar)}, f"after step {len(sofar.losses)} of epoch {epoch}"
    if more:
        if not answers(learner):
            raise unusable("the weights", epoch)
        done = epoch - (sofar is not None)
        saver.save([NEWEST], checkpoints.content(learner, done, tally.best, job.settings, tally.spent(), more))
    saver.wait()
    job.log.stopped(learner.asked.told, place, resumes=job.args.auto_resume)


def is_best(tally: Tally, test: Numbers, epoch: int) -> list[str]:
    """The file to keep an epoch with these numbers in, where it is the best so far, which the tally notes.

    Without numbers, as without evaluation images, the last one is the best.
    """
    if test and tally.best is not None and merit(test) <= merit(tally.best):
        return []
    tally.best = {"epoch": epoch, **test}
    return [BEST]


def one_epoch(job: Job, learner: Learner, data: Images, epoch: int, tally: Tally) -> Numbers:
    """Train one epoch, or fit the head as epoch 0; the first numbers of its line in log.txt."""
    started, count = time.monotonic(), 0
    if job.begins_anew(epoch) and tally.sofar is None:
        restarts.begin(learner)
    rate = 0.0 if epoch == 0 else learner.rate
    try:
        if data.pool_rows is not None:
            loss, count = fit_with_pool(job, learner, data.pool_rows)
        elif epoch > job.labelled_epochs and job.light:
            loss, count = fit_light_head(job, learner, data, epoch), (1 + VIEWS) * len(job.ids)
        elif epoch == 0:
            known, batch = data.rows or needed(data.frozen), scoring(job, learner)["batch"]
            loss = fit_head(learner, known, data.classes, batch=batch, smoothing=job.args.smoothing)
            count = len(job.ids)
        else:
            train = train_epoch if epoch <= job.labelled_epochs else pool_epoch
            loss, count = train(job, learner, data, epoch, tally)
            rate = learner.rate if learner.by_step else rate  # of the last step
    finally:  # a stopped epoch has taken its time, too
        tally.seconds, tally.images = tally.seconds + time.monotonic() - started, tally.images + count
    tally.epochs += epoch > 0
    return {"train_lr": rate, "train_loss": loss} | ({"skipped_steps": tally.skipped} if tally.skipped else {})


def train_epoch(job: Job, learner: Learner, data: Images, epoch: int, tally: Tally) -> tuple[float, int]:
    """One pass over the epoch's order. Returns (mean training loss per image, images seen)."""
    args, world, train = job.args, job.world, needed(data.train)
    training, own = job.within_training(epoch)
    if own == 1 and tally.sofar is None:
        soften(learner, args.head_scale)
    order = epoch_order(len(train), epoch, seed=args.seed, repeated=args.repeated_aug)
    steps = plan_epoch(order, job.global_batch, args.batch_size, world.rank, world.size)
    mixing = Mixing(
        args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode
    )  # fmt: skip
    try:
        loss, left_out = train_one_epoch(
            learner, train, steps, epoch, classes=data.classes, seed=args.seed, mixing=mixing,
            clip_grad=args.clip_grad, skip_nonfinite=args.skip_nonfinite, on_step=job.log.step,
            done=(own - 1) * len(steps), sofar=tally.take_sofar(),
        )  # fmt: skip
    except NotFinite as error:
        ids = [data.ids[row] for row in order.tolist()]
        raise with_batch(error, epoch, ids, job.global_batch, job.log.folder, job.log.trial) from None
    tally.skipped += left_out
    if learner.scheduler is not None:
        learner.scheduler.step(own)
    if args.restarts > 1 and own == job.training_epochs:
        restarts.end(learner, training, args.restarts)
    return loss, len(order)


def fit_light_head(job: Job, learner: Learner, data: Images, epoch: int) -> float:
    """Fit the head to the finetuned features of the training images as they are and in VIEWS augmented views.

    The third phase of FACT (arXiv 2606.02079), by logistic regression; backbone and average stay. Returns the loss.
    """
    args, world, classes = job.args, job.world, data.classes
    features, labels = frozen_features(learner, needed(data.light), scoring(job, learner)["batch"])
    tables = [features]
    for view in range(VIEWS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(view))
        steps = plan_epoch(order, job.global_batch, args.batch_size, world.rank, world.size)
        parts = [part for step in steps for part in step.parts]
        tables.append(augmented_features(learner, needed(data.train), parts, epoch + view, len(labels)))
    targets = one_hot(labels, classes) * (1 - args.smoothing) + args.smoothing / classes
    set_head(learner, torch.cat(tables), targets.repeat(len(tables), 1) / len(tables))
    with torch.no_grad():
        logits = classifiers(learner.model)[0](features)
    return cross_entropy(logits, labels, label_smoothing=args.smoothing).item()


def is_judged(job: Job, epoch: int) -> bool:
    """Whether the run is evaluated after an epoch: every --eval_interval, and where the labels or a round end.

    Where there is nothing to evaluate on, only the last epoch counts.
    """
    if not len(job.test_pool) and not job.held:
        return epoch == job.last
    if epoch >= job.labelled_epochs:
        return epoch in (job.labelled_epochs, job.last) or ends_round(job, epoch)
    return epoch % job.args.eval_interval == 0


def scoring(job: Job, learner: Learner) -> Scoring:
    """How every evaluation of the run is done."""
    sharded = job.args.dist_eval
    return {"batch": 3 * job.args.batch_size, "amp": learner.amp, "sharded": sharded, "asked": learner.asked}


def judged(job: Job, learner: Learner, data: Images, epoch: int) -> Numbers:
    """Loss, top-1, top-5 on the evaluation set, and as val_loss, ... on the held-out images where there are any.

    With --eval-ema as ema_loss, ... those of the averaged weights, too; {} where there are no images to evaluate on.
    Raises NotFinite where a loss is not finite.
    """
    score = scoring(job, learner)
    model = learner.answering or learner.model
    result = evaluate(model, data.test, job.world, **score) if data.test else {}
    if job.args.eval_ema and data.test:
        result |= {f"ema_{key}": value for key, value in averaged(job, learner, data).items()}
    if data.held:
        held = evaluate(model, data.held, job.world, **score)
        result |= {f"val_{key}": value for key, value in held.items()}
    if not all(map(math.isfinite, result.values())):
        raise unusable("the answers to the images that it is judged on", epoch)
    return result


def averaged(job: Job, learner: Learner, data: Images) -> Numbers:
    """Loss, top-1, top-5 of the moving average of the weights on the evaluation set."""
    assert learner.ema is not None
    module = learner.ema.module.to(job.world.device)
    try:
        return evaluate(module, needed(data.test), job.world, **scoring(job, learner))
    finally:
        if job.args.model_ema_force_cpu:
            module.cpu()


def unusable(what: str, epoch: int) -> NotFinite:
    """The error of a model that gives no numbers after the last step of an epoch."""
    return NotFinite(
        f"{what} are not finite after the last step of epoch {epoch}: nothing of this epoch is saved; try a smaller "
        "--lr, --clip-grad 2.0, or --amp off",
        None,
    )


def conclude(
    job: Job, learner: Learner, data: Images, saver: Saver, tally: Tally, test: Numbers
) -> dict[str, Any] | None:
    """Evaluate the averaged weights, write result.json when all checkpoints are on the disk, say the last line."""
    world, log, last, best = job.world, job.log, job.last, tally.best
    assert best is not None  # the last epoch is always judged
    ema = None
    if learner.ema is not None and last and data.test:
        ema = averaged(job, learner, data)
        if not all(map(math.isfinite, ema.values())):
            log.say("the moving average of the weights gives no finite loss: it has no accuracy")
            ema = None
    graph = last_words(job, learner, data) if job.pool_epochs else None
    how = f"chosen on {len(data.held)} held-out images" if data.held else "chosen on the evaluation set"
    if not test:
        how = "the last one, without evaluation images"
    result = {
        "mode": job.args.mode,
        "recipe": job.args.recipe,
        "last": {"epoch": last, **test},
        "best": {**best, "note": how},
        "ema": ema,
        "graph": graph,
        "smoothed": job.settings.get("smoothed"),
        "auto": job.settings.get("auto"),
        "verdict": job.verdict,
        "temperature": job.settings.get("temperature"),
        "class_names": job.settings["class_names"],
        "evaluation_images": len(job.test_pool),
        "epochs_run": tally.epochs, "train_seconds": tally.seconds, "seconds": tally.elapsed,
        "skipped_steps": tally.skipped,
        "images_per_second": tally.images / tally.seconds if tally.seconds else None, "processes": world.size,
        "global_batch_size": job.global_batch,
    }  # fmt: skip
    saver.wait()
    log.close()
    log.result(result)
    files = "checkpoint.pth, best_checkpoint.pth, log.txt and result.json"
    where = f"; wrote {files} in {log.folder}" if log.folder else ""
    if graph is not None:
        found = f"top-1 of the graph on the model's features: {graph['acc1']:.2f} %; its" if graph else "the graph's"
        log.say(f"{found} word on every pool image is in pool_predictions.csv")
    when = f"after the last epoch ({last})" if last else "of the head on the frozen backbone"
    when = "of the pool's graph" if learner.answering is not None else when
    mean = f" (moving average of the weights {ema['acc1']:.2f} %)" if ema else ""
    key, of = ("acc1", "") if "acc1" in test else ("val_acc1", " on held-out images")
    if key not in test:
        log.say(f"trained {when}, not evaluated: there are no evaluation images{where}")
    else:
        top = f"; best {best[key]:.2f} % at epoch {best['epoch']}, {how}" if key in best else ""
        log.say(f"top-1{of} {when}: {test[key]:.2f} %{mean}{top}{where}")
    return result if world.is_main else None


def merit(numbers: Numbers) -> float:
    """What the best epoch is chosen by."""
    return numbers.get("val_acc1", numbers.get("acc1", 0.0))
