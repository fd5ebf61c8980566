"""--mode auto: which mode, by cross-validation on the labels and by the time that is granted."""

from pathlib import Path

import torch

from deit.crossval import Asked, compare, parts_of, temperature_of
from deit.job import Job, Verdict
from deit.selftrain import pool_epochs
from deit.smoothing import fit_graph_probe, neighbours_of
from deit.timing import estimate, settle


def decide(job: Job, source: Path | str, features: torch.Tensor | None) -> Asked | None:
    """Set the job's mode, and what cross-validation found: `verdict` and `auto` of its settings. Says why in a line.

    features: (N, D) of the whole pool, which the pool's graph needs; None where there is no such file. The probe of the
    frozen backbone, the graph and the finetuned model each answer for the labels that are left out in turn. Of equals
    the graph is taken, then the probe. Where finetuning wins, the pool teaches it further if there is time.
    """
    args = job.args
    args.mode = "lp-ft"
    step = settle(job)
    counts: dict[str, int] = {}
    verdict: Verdict | None = None
    asked: Asked | None = None
    if features is not None:
        counts["smoothed"] = smoothed_right(job, features)
    if args.folds and fits(job, step):
        verdict, asked = compare(job, source)
        counts |= {"linear": verdict["probe_right"], "lp-ft": verdict["finetuned_right"]}
    if not counts:
        mode, reason = "linear", f"there is no time to ask more in --minutes {args.minutes:g}"
    elif verdict is None:
        mode = "smoothed"
        reason = f"there is no time to finetune in --minutes {args.minutes:g}, and the pool's features are at hand"
    else:
        mode = max(counts, key=lambda name: counts[name])  # of equals the first
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        reason = f"right of {verdict['labels']} labels that were left out: {told}"
    if mode == "lp-ft":
        mode, more = lengthen(job, step)
        reason += more
    args.mode = mode
    job.pool_epochs = pool_epochs(job)
    job.settings |= {"mode": mode, "verdict": verdict, "auto": reason, "rounds": args.rounds}
    if verdict and asked and mode != "smoothed":  # which has its own
        kept: Verdict = verdict | {"kept": "probe" if mode == "linear" else "finetuned"}
        job.settings["temperature"] = temperature_of(kept, asked, job.train_pool)
    job.log.say(f"--mode auto takes {mode}: {reason}")
    return asked


def fits(job: Job, step: float) -> bool:
    """Whether a run is estimated to end within --minutes."""
    return not job.args.minutes or estimate(job, step) <= 60 * job.args.minutes


def lengthen(job: Job, step: float) -> tuple[str, str]:
    """(mode, why): self-train with as many rounds as there is time for, else lp-ft."""
    args, asked = job.args, job.args.rounds
    args.mode = "self-train"
    for rounds in range(asked, 0, -1):
        args.rounds = rounds
        job.pool_epochs = pool_epochs(job)
        if fits(job, step):
            return "self-train", f"; finetuning wins, and {rounds} rounds of the pool fit"
    args.rounds, job.pool_epochs = asked, 0
    return "lp-ft", f"; finetuning wins, and no round of the pool fits into --minutes {args.minutes:g}"


def smoothed_right(job: Job, features: torch.Tensor) -> int:
    """How many of the labels that are left out in turn the graph has right, by the others."""
    graph, right = neighbours_of(job, features), 0
    for train, left in parts_of(job):
        labels = torch.tensor([job.train_pool.label(i) for i in train])
        said = fit_graph_probe(features, labels, train, job.classes, graph).pool_probabilities()[left].argmax(1)
        right += int((said == torch.tensor([job.train_pool.label(i) for i in left])).sum())
    return right
