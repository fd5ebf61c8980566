"""Does finetuning win? Asked of the labels themselves, by short runs on all but a part of them, before the run."""

import math
import random

import torch

from deit.engine import correct
from deit.epochs import Tally, train_epoch
from deit.job import Job, decode, new_learner, part_of
from deit.learner.linear import fit_head
from deit.samples.draws import FOLDS, seed_of

STEPS = 200  # of a part's run at most


def compare(job: Job, source: str) -> dict:
    """Train on all but one of --folds parts of the labels, in turn, and see who is right on the parts left out.

    source: the pretrained weights, as for building.build_learner. Where labels are held out by --val-fraction they are
    the one part. Returns the verdict, plain data: labels asked, how many the probe and the finetuned model had right,
    how many only one of them had, and `kept`: `finetuned`, or `probe` where finetuning does not gain more than one
    standard error of that difference.
    """
    parts = [(job.ids, job.held)] if job.held else split(job.ids, job.train_pool, job.args.folds, job.args.seed)
    probe, finetuned = [], []
    for number, (train, left) in enumerate(parts, 1):
        job.log.say(f"cross-validation {number}/{len(parts)}: {len(train)} labels to train, {len(left)} to ask")
        before, after = one_part(job, source, train, left, f"part {number}/{len(parts)}")
        probe.append(before)
        finetuned.append(after)
    probe, finetuned = torch.cat(probe), torch.cat(finetuned)
    gained, lost = int((finetuned & ~probe).sum()), int((probe & ~finetuned).sum())
    return {
        "labels": len(probe),
        "probe_right": int(probe.sum()),
        "finetuned_right": int(finetuned.sum()),
        "only_probe": lost,
        "only_finetuned": gained,
        "kept": "finetuned" if gained - lost > math.sqrt(gained + lost) else "probe",
    }


def told(verdict: dict) -> str:
    """A verdict in one line."""
    kept = "the head on the frozen backbone is kept" if verdict["kept"] == "probe" else "finetuning goes on"
    return (
        f"cross-validation on {verdict['labels']} labels: the probe has {verdict['probe_right']} right, the finetuned "
        f"model {verdict['finetuned_right']} ({verdict['only_finetuned']} that only it has, {verdict['only_probe']} "
        f"that only the probe has): {kept}"
    )


def split(ids, pool, count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """[(train, left)]: the ids in `count` parts, each class spread evenly over them; every part is left out once."""
    draw = random.Random(seed_of(seed, FOLDS))
    order = list(ids)
    draw.shuffle(order)
    order.sort(key=pool.label)  # stable: at random within a class
    parts = [order[k::count] for k in range(count)]
    return [(sorted(set(order) - set(part)), sorted(part)) for part in parts]


def one_part(job: Job, source: str, train: list[int], left: list[int], desc: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the ids `left` the probe and the finetuned model get right, (len(left),) bool, trained on `train`."""
    part = part_of(job, train, STEPS, desc)
    data = decode(part, frozen=True, train=True, test=False)
    others = decode(part_of(job, left, STEPS, desc), frozen=True, train=False, test=False).frozen
    batch = 3 * part.args.batch_size
    learner = new_learner(part, source)
    fit_head(learner, data.frozen, data.classes, batch=batch, smoothing=part.args.smoothing)
    probe = correct(learner.model, others, part.world, batch=batch, amp=learner.amp)
    if part.args.mode == "full":
        learner = new_learner(part, source)
    part.log.start(1, part.args.epochs, part.args.epochs * part.updates, 0, part.settings)
    try:
        for epoch in range(1, part.args.epochs + 1):
            train_epoch(part, learner, data, epoch, Tally(None))
    finally:
        part.log.close()
    return probe, correct(learner.model, others, part.world, batch=batch, amp=learner.amp)
