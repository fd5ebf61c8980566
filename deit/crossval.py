"""Does finetuning win? Asked of the labels themselves, by short runs on all but a part of them, before the run."""

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from data_selection.common.listed_names import quoted
from data_selection.images.pools import Pool
from data_selection.judging.calibration import temperature
from deit.engine import probabilities
from deit.epochs import fit_light_head, train_epoch
from deit.job import Job, Tally, Verdict, decode, needed, new_learner, part_of
from deit.learner.linear import fit_head
from deit.samples.draws import FOLDS, seed_of

STEPS = 200  # of a part's run at most


class Asked(NamedTuple):
    """What models said of labels that they had not seen. ids: (n,) pool indices; probe, finetuned: (n, C) float32."""

    ids: list[int]
    probe: torch.Tensor
    finetuned: torch.Tensor


def compare(job: Job, source: Path | str) -> tuple[Verdict, Asked]:
    """Train on all but one of --folds parts of the labels, in turn, and see who is right on the parts left out.

    source: the pretrained weights, as for building.build_learner. Where labels are held out by --val-fraction they are
    the one part. `kept` is `probe` where finetuning does not gain more labels than it loses.
    """
    parts = parts_of(job)
    before, after = [], []
    for number, (train, left) in enumerate(parts, 1):
        job.log.say(f"cross-validation {number}/{len(parts)}: {len(train)} labels to train, {len(left)} to ask")
        found = one_part(job, source, train, left, f"part {number}/{len(parts)}")
        before.append(found[0])
        after.append(found[1])
    asked = Asked([i for _, left in parts for i in left], torch.cat(before), torch.cat(after))
    labels = torch.tensor([job.train_pool.label(i) for i in asked.ids])
    probe, finetuned = (found.argmax(1) == labels for found in asked[1:])
    gained, lost = int((finetuned & ~probe).sum()), int((probe & ~finetuned).sum())
    verdict: Verdict = {
        "labels": len(probe),
        "probe_right": int(probe.sum()),
        "finetuned_right": int(finetuned.sum()),
        "only_probe": lost,
        "only_finetuned": gained,
        "kept": "finetuned" if gained > lost else "probe",
    }
    return verdict, asked


def ask(job: Job, source: Path | str) -> Asked:
    """compare, with what it finds in the job's settings, and told."""
    verdict, asked = compare(job, source)
    job.settings |= {"verdict": verdict, "temperature": temperature_of(verdict, asked, job.train_pool)}
    job.log.say(told(verdict))
    return asked


def temperature_of(verdict: Verdict, asked: Asked, pool: Pool) -> float:
    """What the kept model's logits are to be divided by so that confidence means what it says of held-out labels."""
    found = asked.finetuned if verdict["kept"] == "finetuned" else asked.probe
    return temperature(found, torch.tensor([pool.label(i) for i in asked.ids]))


def asked_table(asked: Asked, pool: Pool) -> str:
    """A CSV of what was Asked: file, label, then each model's answer and how sure it was, by image."""
    words = tuple(map(quoted, pool.class_names or map(str, range(asked.probe.shape[1]))))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "label", "probe", "probe_confidence", "finetuned", "finetuned_confidence"])
    answers = [(found.argmax(1).tolist(), found.max(1).values.tolist()) for found in asked[1:]]
    for place in sorted(range(len(asked.ids)), key=asked.ids.__getitem__):
        i = asked.ids[place]
        cells = [quoted(pool.names[i]) if pool.names else str(i), words[pool.label(i)]]
        for found, sure in answers:
            cells += [words[found[place]], f"{sure[place]:.4f}"]
        rows.writerow(cells)
    return text.getvalue()


def parts_of(job: Job) -> list[tuple[list[int], list[int]]]:
    """[(train, left)]: the labels held out by --val-fraction, else each of the --folds parts in turn."""
    return [(job.ids, job.held)] if job.held else split(job.ids, job.train_pool, job.args.folds, job.args.seed)


def told(verdict: Verdict) -> str:
    """A verdict in one line."""
    kept = "the head on the frozen backbone is kept" if verdict["kept"] == "probe" else "finetuning goes on"
    return (
        f"cross-validation on {verdict['labels']} labels: the probe has {verdict['probe_right']} right, the finetuned "
        f"model {verdict['finetuned_right']} ({verdict['only_finetuned']} that only it has, {verdict['only_probe']} "
        f"that only the probe has): {kept}"
    )


def split(ids: Sequence[int], pool: Pool, count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """[(train, left)]: the ids in `count` parts, each class spread evenly over them; every part is left out once."""
    draw = random.Random(seed_of(seed, FOLDS))
    order = list(ids)
    draw.shuffle(order)
    order.sort(key=pool.label)  # stable: at random within a class
    parts = [order[k::count] for k in range(count)]
    return [(sorted(set(order) - set(part)), sorted(part)) for part in parts]


def one_part(
    job: Job, source: Path | str, train: list[int], left: list[int], desc: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the probe and the finetuned model, trained on `train`, say of the ids `left`: (len(left), C) each."""
    part = part_of(job, train, STEPS, desc)
    data = decode(part, frozen=True, train=True, test=False)
    others = needed(decode(part_of(job, left, STEPS, desc), frozen=True, train=False, test=False).frozen)
    batch = 3 * part.args.batch_size
    learner = new_learner(part, source)
    fit_head(learner, needed(data.frozen), data.classes, batch=batch, smoothing=part.args.smoothing)
    probe = probabilities(learner.model, others, part.world, data.classes, batch=batch, amp=learner.amp)
    if part.args.mode == "full":
        learner = new_learner(part, source)
    part.log.start(1, part.args.epochs, part.args.epochs * part.updates, 0, part.settings)
    try:
        for epoch in range(1, part.args.epochs + 1):
            train_epoch(part, learner, data, epoch, Tally(None))
        if part.light:
            fit_light_head(part, learner, data, part.last)
    finally:
        part.log.close()
    return probe, probabilities(learner.model, others, part.world, data.classes, batch=batch, amp=learner.amp)
