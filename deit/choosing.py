"""--mode auto: which mode, by cross-validation on the labels and by the time that is granted."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from deit.crossval import Asked, answerable, answers, asked_ids, parts_of, temperature_of, verdict_of
from deit.job import FROZEN, Job
from deit.learner.linear import logistic_regression
from deit.runs.meters import clock
from deit.selftrain import pool_epochs
from deit.smoothing import fit_graph_probe, neighbours_of
from deit.timing import estimate, settle

TRAINED = ("lp-ft", "three-phase", "full", "self-train")
ORDER = ("smoothed", "linear", *TRAINED)  # of modes within noise the first is taken: the cheaper, the better tried
# Labels a class up to which self-training comes before them: with 1 to 10 it was the best of all modes in most runs and
# within a point in the others, with 50 on easy images below the graph (configs/README.md).
FEW = 25


def decide(job: Job, source: Path | str, features: torch.Tensor | None) -> Asked | None:
    """Set the job's mode, and what cross-validation found: `verdict` and `auto` of its settings. Says why in a line.

    features: (N, D) of the whole pool, which the pool's graph needs; None where there is no such file. Every mode that
    fits into --minutes answers for the same labels, left out in turn; see `best_of`, and without --folds `unasked`.
    Returns what the chosen finetuned model, else the best one, said beside the probe; None where none was asked.
    """
    args = job.args
    said: dict[str, torch.Tensor] = {}
    ids, fair, asks = asked_ids(job), answerable(job), bool(args.folds)
    if features is not None and asks:
        said = {"smoothed": smoothed_said(job, features), "linear": linear_said(job, features)}
    args.mode, precision = "lp-ft", args.amp
    step = settle(job, alone=False)
    modes = modes_that_fit(job, step) if args.folds else []
    if modes:
        ahead = max(length(job, step, mode, modes) for mode in modes)
        job.log.say(
            f"--mode auto asks {', '.join([*said] or ['linear'])}, {', '.join(modes)}: about {clock(ahead)} with the "
            f"run itself{told_of_rest(job, modes)}"
        )
        said |= answers(job, source, modes)
    rows = [row for row, i in enumerate(ids) if i in fair]
    truth = torch.tensor([job.train_pool.label(ids[row]) for row in rows])
    right = {mode: said[mode][rows].argmax(1) == truth for mode in ORDER if mode in said}
    few = len(job.ids) <= FEW * len({job.train_pool.label(i) for i in job.ids})
    mode, reason = best_of(right, few=few) if right else ("linear", "the head alone takes seconds")
    if not asks:
        mode, reason = unasked(job, step, features)
    elif not modes:
        reason = f"there is no time to finetune in --minutes {args.minutes:g}; {reason}"
    trained = mode
    if mode == "self-train" or (mode == "lp-ft" and "self-train" not in modes and may_teach(job)):
        mode, more = lengthen(job, step, modes)
        reason += more
    args.mode = mode
    if mode in FROZEN:  # as without auto, where no step is timed
        args.amp = job.settings["amp"] = precision
    job.pool_epochs = pool_epochs(job)
    job.settings |= {"mode": mode, "verdict": None, "auto": reason, "rounds": args.rounds}
    asked = None
    if modes:
        trained = trained if trained in modes else max(modes, key=lambda each: int(right[each].sum()))
        asked = Asked(ids, said["linear"], said[trained])
        verdict = verdict_of(asked, job)
        verdict |= {"kept": "probe" if mode in FROZEN else "finetuned", "finetuned": trained}
        if mode == "self-train":  # as without auto: the pool teaches the finetuned model only where that wins
            verdict["taught"] = verdict_of(Asked(ids, said["linear"], said["lp-ft"]), job)["kept"]
        job.settings["verdict"] = verdict
        if mode != "smoothed":  # which has its own
            untold = mode == "self-train" != trained  # the pool will teach what nobody has asked
            job.settings["temperature"] = None if untold else temperature_of(verdict, asked, job)
    job.log.say(f"--mode auto takes {mode}: {reason}")
    return asked


def best_of(right: Mapping[str, torch.Tensor], *, few: bool = False) -> tuple[str, str]:
    """(mode, why): the first of ORDER that the best one leads by no more than a standard error.

    right: (n,) bool by mode, of the same labels; linear among them. few: labels, so that self-train comes before ORDER.
    If two modes are equally good, the difference of their counts has the standard error sqrt(labels that only one of
    them has right).
    """
    counts = {mode: int(right[mode].sum()) for mode in ORDER if mode in right}
    best = max(counts, key=lambda mode: counts[mode])  # of equals the first
    taken, words = best, ""
    for mode in sorted(counts, key=lambda mode: mode != "self-train") if few else counts:
        count = counts[mode]
        noise = int((right[best] ^ right[mode]).sum()) ** 0.5
        if counts[best] - count <= noise:
            taken = mode
            if count < counts[best]:
                words = f"; the lead of {best} is within a standard error ({noise:.1f})"
            break
    told = ", ".join(f"{mode} {count}" for mode, count in counts.items())
    return taken, f"right of {len(right[taken])} labels that were left out: {told}{words}"


def unasked(job: Job, step: float, features: torch.Tensor | None) -> tuple[str, str]:
    """(mode, why) where no label can be left out: the first of the order for few labels that there is time for."""
    mode = "linear" if features is None else "smoothed"
    if may_teach(job) and fits(job, step, "self-train", []):
        mode = "self-train"
    return mode, "no class has a label to learn from and another to ask of; of so few it is the best tried that fits"


def may_teach(job: Job) -> bool:
    """Whether self-training is possible: images without a label, and no other teacher."""
    unlabelled = len(job.train_pool) - len(job.ids) - len(job.held)
    return unlabelled > 0 and bool(job.args.distillation_type == "none")


def modes_that_fit(job: Job, step: float) -> list[str]:
    """Of TRAINED the modes of which each, and cross-validation of all of them before it, fits into --minutes."""
    modes: list[str] = []
    for mode in TRAINED:
        more = [*modes, mode]
        if (mode != "self-train" or may_teach(job)) and all(fits(job, step, each, more) for each in more):
            modes = more
    return modes


def told_of_rest(job: Job, modes: Sequence[str]) -> str:
    """Words for the modes that are not asked."""
    late = [mode for mode in TRAINED if mode not in modes and (mode != "self-train" or may_teach(job))]
    return f"; no time in --minutes {job.args.minutes:g} for {', '.join(late)}" if late else ""


def fits(job: Job, step: float, mode: str, asked: Sequence[str], rounds: int = 1) -> bool:
    """Whether a run in a mode is estimated to end within --minutes, cross-validation of the modes `asked` included."""
    return not job.args.minutes or length(job, step, mode, asked, rounds) <= 60 * job.args.minutes


def length(job: Job, step: float, mode: str, asked: Sequence[str], rounds: int = 1) -> float:
    """Seconds that a run in a mode is estimated to take, cross-validation of the modes `asked` included."""
    args = copy.copy(job.args)
    args.mode, args.rounds = mode, rounds
    trial = dataclasses.replace(job, args=args)
    trial.pool_epochs = pool_epochs(trial)
    return estimate(trial, step, asked)


def lengthen(job: Job, step: float, asked: Sequence[str]) -> tuple[str, str]:
    """(mode, why) of finetuning: self-train with as many rounds as there is time for, else lp-ft."""
    args = job.args
    for rounds in range(args.rounds, 0, -1):
        if fits(job, step, "self-train", asked, rounds):
            args.rounds = rounds
            how = "" if "self-train" in asked or not args.folds else ", which there was no time to ask"
            return "self-train", f"; {rounds} round{'s' * (rounds > 1)} of the pool fit{how}"
    return "lp-ft", f"; no round of the pool fits into --minutes {args.minutes:g}"


def linear_said(job: Job, features: torch.Tensor) -> torch.Tensor:
    """What a head on the frozen features says of the labels that are left out in turn, (n, C)."""
    found = []
    for train, left in parts_of(job):
        labels = torch.tensor([job.train_pool.label(i) for i in train])
        weight, bias = logistic_regression(features[train], labels, job.classes, job.args.smoothing)
        found.append((features[left].double() @ weight.T + bias).softmax(1).float())
    return torch.cat(found)


def smoothed_said(job: Job, features: torch.Tensor) -> torch.Tensor:
    """What the graph says of the labels that are left out in turn, by the others, (n, C)."""
    graph, found = neighbours_of(job, features), []
    for train, left in parts_of(job):
        labels = torch.tensor([job.train_pool.label(i) for i in train])
        found.append(fit_graph_probe(features, labels, train, job.classes, graph).pool_probabilities()[left].float())
    return torch.cat(found)
