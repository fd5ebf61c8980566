"""Does finetuning win? Asked of the labels themselves, by short runs on all but a part of them, before the run."""

import csv
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data_selection.common.listed_names import as_cell
from data_selection.embedding.backbones import build_model
from data_selection.images.pools import Pool
from data_selection.judging.calibration import temperature
from deit.engine import Learner, probabilities
from deit.epochs import fit_light_head, train_epoch
from deit.job import FROZEN, Images, Job, Tally, Verdict, decode, needed, new_learner, part_of
from deit.learner.linear import classifiers, fit_head, is_linear
from deit.runs.checkpoints import classifier_layers
from deit.runs.kinds import Settings
from deit.samples.draws import FOLDS, seed_of
from deit.selftrain import pool_epoch, pool_epochs, steps_before

STEPS = 200  # of a part's run at most
ROUNDS = 1  # of self-training in a part
FROM_PROBE = ("lp-ft", "three-phase", "self-train")  # modes that begin alike


class Asked(NamedTuple):
    """What models said of labels that they had not seen. ids: (n,) pool indices; probe, finetuned: (n, C) float32."""

    ids: list[int]
    probe: torch.Tensor
    finetuned: torch.Tensor


def answers(job: Job, source: Path | str, modes: Sequence[str]) -> dict[str, torch.Tensor]:
    """What `linear` and each of the modes says of labels left out, (n, C) in the order of asked_ids; trained on others.

    source: the pretrained weights, as for building.build_learner. Where labels are held out by --val-fraction they are
    the one part, else each of --folds parts in turn, the same ones for every mode.
    """
    parts, found = parts_of(job), []
    for number, (train, left) in enumerate(parts, 1):
        job.log.say(f"cross-validation {number}/{len(parts)}: {len(train)} labels to train, {len(left)} to ask")
        found.append(one_part(job, source, train, left, f"part {number}/{len(parts)}", modes))
    return {mode: torch.cat([said[mode] for said in found]) for mode in found[0]}


def compare(job: Job, source: Path | str) -> tuple[Verdict, Asked]:
    """answers of the job's mode beside the probe's. `kept` is `finetuned` unless that loses beyond a standard error.

    Of self-training it is the model that the pool has not taught yet.
    """
    mode = "lp-ft" if job.args.mode == "self-train" else job.args.mode
    said = answers(job, source, [mode])
    asked = Asked(asked_ids(job), said["linear"], said[mode])
    return verdict_of(asked, job), asked


def asked_ids(job: Job) -> list[int]:
    """(n,) pool indices of the labels that are left out, in the order of the parts."""
    return [i for _, left in parts_of(job) for i in left]


def answerable(job: Job) -> set[int]:
    """Pool indices of the labels left out whose class their part has another label of.

    No model could have learned the others: one that has them right was lucky.
    """
    label, found = job.train_pool.label, set[int]()
    for train, left in parts_of(job):
        learned = set(map(label, train))
        found.update(i for i in left if label(i) in learned)
    return found


def counted(asked: Asked, job: Job) -> Asked:
    """What was Asked of answerable labels; the others decide nothing."""
    fair = answerable(job)
    rows = [row for row, i in enumerate(asked.ids) if i in fair]
    return Asked([asked.ids[row] for row in rows], asked.probe[rows], asked.finetuned[rows])


def verdict_of(asked: Asked, job: Job) -> Verdict:
    """How many answerable labels each of the two had right, and which is kept.

    A part learns from fewer labels and in fewer steps than the run, which costs finetuning more than the probe: so it
    has to lose by more than the standard error that the difference has where both are equally good.
    """
    asked = counted(asked, job)
    labels = torch.tensor([job.train_pool.label(i) for i in asked.ids])
    probe, finetuned = (found.argmax(1) == labels for found in asked[1:])
    gained, lost = int((finetuned & ~probe).sum()), int((probe & ~finetuned).sum())
    return {
        "labels": len(probe),
        "probe_right": int(probe.sum()),
        "finetuned_right": int(finetuned.sum()),
        "only_probe": lost,
        "only_finetuned": gained,
        "kept": "probe" if lost - gained > (lost + gained) ** 0.5 else "finetuned",
    }


def ask(job: Job, source: Path | str) -> Asked:
    """compare, with what it finds in the job's settings, and told.

    A model that the pool is still to teach has no temperature yet: nobody asks that one about labels that it has not
    seen, and that of the model before is far off.
    """
    verdict, asked = compare(job, source)
    heat = None if job.args.mode == "self-train" else temperature_of(verdict, asked, job)
    job.settings |= {"verdict": verdict, "temperature": heat}
    job.log.say(told(verdict))
    return asked


def temperature_of(verdict: Verdict, asked: Asked, job: Job) -> float:
    """What the kept model's logits are to be divided by so that confidence means what it says of answerable labels."""
    asked = counted(asked, job)
    found = asked.finetuned if verdict["kept"] == "finetuned" else asked.probe
    return temperature(found, torch.tensor([job.train_pool.label(i) for i in asked.ids])) if asked.ids else 1.0


def asked_table(asked: Asked, pool: Pool) -> str:
    """A CSV of what was Asked: file, label, then each model's answer and how sure it was, by image."""
    words = tuple(map(as_cell, pool.class_names or map(str, range(asked.probe.shape[1]))))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "label", "probe", "probe_confidence", "finetuned", "finetuned_confidence"])
    answers = [(found.argmax(1).tolist(), found.max(1).values.tolist()) for found in asked[1:]]
    for place in sorted(range(len(asked.ids)), key=asked.ids.__getitem__):
        i = asked.ids[place]
        cells = [as_cell(pool.names[i]) if pool.names else str(i), words[pool.label(i)]]
        for found, sure in answers:
            cells += [words[found[place]], f"{sure[place]:.4f}"]
        rows.writerow(cells)
    return text.getvalue()


def parts_of(job: Job) -> list[tuple[list[int], list[int]]]:
    """[(train, left)]: the labels held out by --val-fraction, else each of the --folds parts in turn."""
    return [(job.ids, job.held)] if job.held else split(job.ids, job.train_pool, job.args.folds, job.args.seed)


def leave_out(job: Job, saved: Settings) -> None:
    """Ask nothing where nothing could be found out: --folds is then 0, with a line that says why.

    saved: settings of the run to continue, which keeps its --folds. A single label leaves --mode auto the head alone.
    Raises UserError for a mode that needs a linear classifier where the model has another.
    """
    args = job.args
    if args.mode == "full" and not args.folds:
        return
    with torch.device("meta"):  # without weights: this is to be told before any are loaded or images decoded
        model = build_model(args.model, job.classes or 1, img_size=args.input_size)
    if args.mode != "full":
        classifiers(model)
    why, rest = nothing_to_ask(job, model), ""
    if not why or not args.folds:
        return
    args.folds = job.settings["folds"] = saved.get("folds", 0)
    if args.mode in FROZEN:  # as --mode auto has decided, or no mode that asks
        return
    if args.mode == "auto" and len(job.ids) < 2:
        args.mode = job.settings["mode"] = "linear"
        rest = "; --mode auto takes linear"
    job.log.say(f"cross-validation is left out: {why}{rest}")


def nothing_to_ask(job: Job, model: nn.Module) -> str:
    """Why labels that are left out could tell nothing of finetuning, in words; "" where they can."""
    if other := [head for head in classifier_layers(model) if not is_linear(head)]:
        return f"its probe needs a linear classifier, and this model has {other[0]}"
    if len(job.ids) < 2 and not job.held:
        return "one label is none to learn from and one to ask of"
    return "" if answerable(job) else "no class has a label to learn from and another to ask of"


def told(verdict: Verdict) -> str:
    """A verdict in one line."""
    kept = "the head on the frozen backbone is kept" if verdict["kept"] == "probe" else "finetuning goes on"
    if verdict["kept"] == "finetuned" and verdict["only_probe"] > verdict["only_finetuned"]:
        kept += ", as the lead of the probe is within a standard error"
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
    count = min(count, len(order))
    parts = [order[k::count] for k in range(count)]
    return [(sorted(set(order) - set(part)), sorted(part)) for part in parts]


def one_part(
    job: Job, source: Path | str, train: list[int], left: list[int], desc: str, modes: Sequence[str]
) -> dict[str, torch.Tensor]:
    """What `linear` and each of the modes, trained on the ids `train`, says of the ids `left`: (len(left), C) each.

    lp-ft, three-phase and self-train (ROUNDS of it) share their epochs on the labels. The ids `left` are images of the
    pool like others to self-training: their labels teach nothing.
    """
    part = part_of(job, train, STEPS, desc)
    part.args.mode, part.args.rounds = ("self-train" if "self-train" in modes else "lp-ft"), ROUNDS
    part.pool_epochs = pool_epochs(part)
    data = decode(part, frozen=True, train=True, test=False)
    data = data._replace(light=data.frozen)
    others = needed(decode(part_of(job, left, STEPS, desc), frozen=True, train=False, test=False).frozen)
    batch, said = 3 * part.args.batch_size, {}
    learner = new_learner(part, source)

    def ask_for(mode: str) -> None:
        said[mode] = probabilities(learner.model, others, part.world, data.classes, batch=batch, amp=learner.amp)

    def run(kind: Callable[[Job, Learner, Images, int, Tally], object], first: int, last: int) -> None:
        before = steps_before(part, first)
        part.log.start(first, last, steps_before(part, last + 1) - before, 0, part.settings)
        tally = Tally(None)
        try:
            for epoch in range(first, last + 1):
                kind(part, learner, data, epoch, tally)
        finally:
            part.log.close()

    fit_head(learner, needed(data.frozen), data.classes, batch=batch, smoothing=part.args.smoothing)
    ask_for("linear")
    if set(modes) & set(FROM_PROBE):
        run(train_epoch, 1, part.args.epochs)
        ask_for("lp-ft")
    if "three-phase" in modes:
        kept = {name: value.clone() for name, value in learner.model.state_dict().items()}
        fit_light_head(part, learner, data, part.labelled_epochs + 1)
        ask_for("three-phase")
        learner.model.load_state_dict(kept)
    if "self-train" in modes:
        run(pool_epoch, part.labelled_epochs + 1, part.last)
        ask_for("self-train")
    if "full" in modes:
        learner = new_learner(part, source)
        run(train_epoch, 1, part.args.epochs)
        ask_for("full")
    return {mode: said[mode] for mode in ("linear", *modes)}
