"""The epochs of a run: train, judge, keep, until the last one or until somebody asks to stop; then the result."""

import time
from dataclasses import dataclass, field

from deit.engine import evaluate, train_one_epoch
from deit.learner.linear import fit_head
from deit.runs import checkpoints
from deit.runs.saving import BEST, NEWEST
from deit.runs.stopping import NotFinite, asked_to_stop, with_batch
from deit.samplers import epoch_order, plan_epoch
from deit.samples.mixing import Mixing
from deit.selftrain import ends_round, last_words, pool_epoch, steps_before


@dataclass
class Tally:
    """What a run has done so far: the best epoch's numbers, and what it spent since it began or was continued."""

    best: dict | None
    skipped: int = 0  # steps left out, their loss not finite
    images: int = 0
    seconds: float = 0.0  # of training alone
    targets: dict = field(default_factory=dict)  # of self-training, by round
    began: float = field(default_factory=time.monotonic)


def run_epochs(job, learner, data, saver, asked, done, best):
    """Epochs done+1 to the last, or until `asked` is set; evaluations, checkpoints and the result.

    job: trainer.Job. data: Images. Epoch 0, where data.frozen is set, fits the head to the frozen backbone; --mode
    linear has no other. Returns result.json's values; None on ranks above 0, and where the run was asked to stop.
    """
    args, log, last, tally = job.args, job.log, job.last, Tally(best)
    first = done + 1 if data.frozen is None else 0
    log.start(first, last, steps_before(job, last + 1), steps_before(job, first), job.settings)
    for epoch in range(first, last + 1):
        line = one_epoch(job, learner, data, epoch, tally)
        names = []
        if is_judged(job, epoch):
            test = judged(job, learner, data)
            line |= {key if key.startswith("val_") else f"test_{key}": value for key, value in test.items()}
            if tally.best is None or merit(test) > merit(tally.best):
                tally.best, names = {"epoch": epoch} | test, [BEST]
        stop = asked_to_stop(asked, job.world) and epoch < last
        if epoch % (args.save_interval or args.eval_interval) == 0 or epoch >= job.labelled_epochs or stop:
            names.append(NEWEST)
        log.record(line | {"epoch": epoch, "n_parameters": trained_parameters(learner.model)}, tally.best)
        if names:
            saver.save(names, checkpoints.content(learner, epoch, tally.best, job.settings))
        if stop:
            saver.wait()
            return log.stopped(epoch)
    return conclude(job, learner, data, saver, tally, test, epochs=last - done)


def one_epoch(job, learner, data, epoch, tally):
    """Train one epoch, or fit the head as epoch 0; the first numbers of its line in log.txt."""
    started = time.monotonic()
    rate = 0.0 if epoch == 0 else current_rate(learner)
    if epoch == 0:
        count = len(data.frozen)
        loss = fit_head(
            learner, data.frozen, data.classes, batch=scoring(job, learner)["batch"], smoothing=job.args.smoothing
        )
    else:
        train = train_epoch if epoch <= job.labelled_epochs else pool_epoch
        loss, count = train(job, learner, data, epoch, tally)
        rate = current_rate(learner) if learner.by_step else rate  # of the last step
    tally.seconds, tally.images = tally.seconds + time.monotonic() - started, tally.images + count
    return {"train_lr": rate, "train_loss": loss} | ({"skipped_steps": tally.skipped} if tally.skipped else {})


def train_epoch(job, learner, data, epoch, tally):
    """One pass over the epoch's order. Returns (mean training loss per image, images seen)."""
    args, world = job.args, job.world
    order = epoch_order(len(data.train), epoch, seed=args.seed, repeated=args.repeated_aug)
    steps = plan_epoch(order, job.global_batch, args.batch_size, world.rank, world.size)
    mixing = Mixing(
        args.mixup, args.cutmix, args.cutmix_minmax, args.mixup_prob, args.mixup_switch_prob, args.mixup_mode
    )  # fmt: skip
    try:
        loss, left_out = train_one_epoch(
            learner, data.train, steps, epoch, classes=data.classes, seed=args.seed, mixing=mixing,
            clip_grad=args.clip_grad, skip_nonfinite=args.skip_nonfinite, on_step=job.log.step,
        )  # fmt: skip
    except NotFinite as error:
        rows = order[error.step * job.global_batch :][: job.global_batch].tolist()
        raise with_batch(error, epoch, [data.ids[row] for row in rows], job.log.folder) from None
    tally.skipped += left_out
    if learner.scheduler is not None:
        learner.scheduler.step(epoch)
    return loss, len(order)


def is_judged(job, epoch):
    """Whether the run is evaluated after an epoch: every --eval_interval, and where the labels or a round end."""
    if epoch >= job.labelled_epochs:
        return epoch in (job.labelled_epochs, job.last) or ends_round(job, epoch)
    return epoch % job.args.eval_interval == 0


def scoring(job, learner):
    """How every evaluation of the run is done, as keywords of engine.evaluate."""
    return {"batch": 3 * job.args.batch_size, "amp": learner.amp, "sharded": job.args.dist_eval}


def judged(job, learner, data):
    """Loss, top-1, top-5 on the evaluation set, and as val_loss, ... on the held-out images where there are any."""
    score = scoring(job, learner)
    result = evaluate(learner.model, data.test, job.world, **score)
    if data.held:
        held = evaluate(learner.model, data.held, job.world, **score)
        result |= {f"val_{key}": value for key, value in held.items()}
    return result


def conclude(job, learner, data, saver, tally, test, epochs):
    """Evaluate the averaged weights, write result.json when all checkpoints are on the disk, say the last line."""
    world, log, last, best = job.world, job.log, job.last, tally.best
    ema = None
    if learner.ema is not None and last:
        ema = evaluate(learner.ema.module.to(world.device), data.test, world, **scoring(job, learner))
    graph = last_words(job, learner, data) if job.pool_epochs else None
    how = f"chosen on {len(data.held)} held-out images" if data.held else "chosen on the evaluation set"
    result = {
        "mode": job.args.mode,
        "recipe": job.args.recipe,
        "last": {"epoch": last, **test},
        "best": {**best, "note": how},
        "ema": ema,
        "graph": graph,
        "verdict": job.verdict,
        "epochs_run": epochs, "train_seconds": tally.seconds, "seconds": time.monotonic() - tally.began,
        "images_per_second": tally.images / tally.seconds, "processes": world.size,
        "global_batch_size": job.global_batch,
    }  # fmt: skip
    saver.wait()
    log.close()
    log.result(result)
    where = (
        f"; wrote checkpoint.pth, best_checkpoint.pth, log.txt and result.json in {log.folder}" if log.folder else ""
    )
    if graph:
        log.say(
            f"top-1 of the graph on the model's features: {graph['acc1']:.2f} %; its word on every pool image is in "
            "pool_predictions.csv"
        )
    when = f"after the last epoch ({last})" if last else "of the head on the frozen backbone"
    log.say(f"top-1 {when}: {test['acc1']:.2f} %; best {best['acc1']:.2f} % at epoch {best['epoch']}, {how}{where}")
    return result if world.is_main else None


def merit(numbers):
    """What the best epoch is chosen by."""
    return numbers.get("val_acc1", numbers["acc1"])


def trained_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def current_rate(learner):
    """The largest learning rate of the parameter groups."""
    return max(group["lr"] for group in learner.optimizer.param_groups)
