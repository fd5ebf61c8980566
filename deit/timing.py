"""How long a run takes, told before it starts: a step timed in each precision, fewer epochs where time is short."""

import copy
import time
from collections.abc import Sequence

import torch

from data_selection.common.distributed import on_main
from data_selection.embedding.forward import cpu_has_bf16, memory_layout, write_out_attention
from deit.crossval import FROM_PROBE, ROUNDS, STEPS
from deit.engine import autocast
from deit.epochs import VIEWS
from deit.job import Job, part_epochs, updates_for
from deit.learner.building import autocast_type, batch_norms, build
from deit.learner.schedules import shortened
from deit.runs.kinds import TIMED, Settings
from deit.runs.meters import RunLog, clock
from deit.selftrain import pool_epochs, steps_of_round

LAPS = 3  # steps timed, of which the fastest counts; the first one prepares
FEWEST = 3  # epochs that --minutes leaves at least
WORTH = 1.1  # bf16 must be so many times faster


def settle(job: Job, *, alone: bool = True) -> float:
    """Decide what needs a clock, on rank 0: the precision of --amp measured, and how much fits into --minutes.

    Changes job.args and job.settings, and says what it found and, where the run is all there is (alone), how long it
    takes. Returns a step's seconds.
    """
    args = job.args
    seconds = on_main(job.world, lambda: measured(job))
    if args.amp == "measured":
        args.amp = "bf16" if "bf16" in seconds and seconds["bf16"] * WORTH < seconds["off"] else "off"
        if job.world.device.type == "cuda":
            args.amp = "auto"
    step = seconds.get(args.amp, min(seconds.values()))
    left_out = fit(job, step) if args.minutes else ""
    job.settings |= {name: getattr(args, name) for name in ("amp", *TIMED)}
    told = " or ".join(f"{1000 * took:.0f} ms in {name.replace('off', 'float32')}" for name, took in seconds.items())
    length = f": about {clock(estimate(job, step))}" if alone else ""
    often = f"{args.restarts} times " if args.restarts > 1 and not job.head_only else ""
    job.log.say(f"{often}{args.epochs} epochs of {job.updates} steps (a step takes {told}){length}{left_out}")
    return step


def take_over(job: Job, saved: Settings) -> None:
    """What the clock of an interrupted run had settled, for the one that continues it and would ask the clock."""
    timed = ("amp",) * (job.args.amp == "measured") + TIMED * bool(job.args.minutes)
    if "restarts" not in saved:  # a run of before there were any
        job.args.restarts = job.settings["restarts"] = 1
    for name in timed:
        if name in saved:
            setattr(job.args, name, saved[name])
            job.settings[name] = saved[name]
    job.pool_epochs = pool_epochs(job)


def measured(job: Job) -> dict[str, float]:
    """Seconds of a step's forward and backward passes on this process's images, by precision."""
    args, device = job.args, job.world.device
    names = [args.amp]
    if args.amp == "measured":
        names = ["auto"] if device.type == "cuda" else ["off", "bf16"] if cpu_has_bf16() else ["off"]
    count = min(args.batch_size, max(1, job.global_batch // job.world.size))
    seconds = {}
    for name in names:
        model = build(args, job.classes, RunLog("", False))
        model.to(device).to(memory_format=memory_layout(model))
        dtype = autocast_type(name, device)
        if dtype is not None and device.type == "cpu":
            write_out_attention(model)
        images = torch.zeros(count, 3, args.input_size, args.input_size, device=device)
        model.train()
        for layer in batch_norms(model) if args.batch_norm == "fixed" else ():
            layer.eval()
        seconds[name] = min(lap(model, images, dtype) for _ in range(LAPS)) * max(
            1, job.global_batch / (count * job.world.size)
        )
    return seconds


def lap(model: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Seconds of one forward and backward pass."""
    began = time.perf_counter()
    with autocast(images.device, dtype):
        outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor] = model(images)  # two: a distilled model's
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0] + outputs[1]
    logits.float().square().mean().backward()
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began


def estimate(job: Job, step: float, asked: Sequence[str] = ("lp-ft",)) -> float:
    """Seconds of the run: steps of the labels, of the parts left out in turn, of the pool, and forward passes.

    asked: the modes that cross-validation trains.
    """
    args = job.args
    forward = step / 3 / job.global_batch  # of one image, all processes at work; the backward pass takes twice as long
    labels = job.labelled_epochs * job.updates
    pool = args.rounds * steps_of_round(job) if job.pool_epochs else 0
    looks = 2 + job.labelled_epochs // args.eval_interval
    judged = len(job.test_pool) * (1 + args.eval_ema) + len(job.held)
    judged *= 1 if args.dist_eval else job.world.size  # each process looks at all of them
    images = looks * judged + ((args.rounds + 1) * len(job.train_pool) if job.pool_epochs else 0)
    images += job.light * (1 + VIEWS) * len(job.ids) + images_of_parts(job, asked)
    return (labels + steps_of_parts(job, asked) + pool) * step + images * forward


def sizes_of_parts(job: Job) -> list[int]:
    """How many labels each short run of cross-validation learns from."""
    count = len(job.ids)
    folds = min(job.args.folds, count)
    left_out = [0] if job.held else [len(range(k, count, folds)) for k in range(folds)]
    return [max(1, count - size) for size in left_out] if folds else []


def steps_of_parts(job: Job, asked: Sequence[str] = ("lp-ft",)) -> int:
    """Steps of cross-validation: short runs on all labels but a part of them, and rounds of the pool."""
    updates = [updates_for(job, size) for size in sizes_of_parts(job)]
    runs = bool(set(asked) & set(FROM_PROBE)) + ("full" in asked)
    rounds = ROUNDS * steps_of_round(job) * len(updates) if "self-train" in asked else 0
    return runs * sum(part_epochs(job, each, STEPS) * each for each in updates) + rounds


def images_of_parts(job: Job, asked: Sequence[str]) -> int:
    """Forward passes of cross-validation, those of the labels left aside: views of a last head, the pool embedded."""
    sizes = sizes_of_parts(job)
    views = (1 + VIEWS) * sum(sizes) if "three-phase" in asked else 0
    return views + (ROUNDS * len(job.train_pool) * len(sizes) if "self-train" in asked else 0)


def fit(job: Job, step: float) -> str:
    """Leave out what does not fit into --minutes: rounds, restarts, epochs, then cross-validation. Says so in words."""
    args, whole, limit, fits = job.args, copy.copy(job.args), 60 * job.args.minutes, True
    asked = {name: getattr(args, name) for name in ("restarts", "epochs", "rounds", "folds")}
    while fits and estimate(job, step) > limit:
        if job.pool_epochs and args.rounds > 1:
            args.rounds -= 1
            job.pool_epochs = pool_epochs(job)
        elif args.restarts > 1:
            args.restarts -= 1
        elif args.epochs > FEWEST:
            vars(args).update(shortened(whole, args.epochs - max(1, args.epochs // 8)))
        elif args.folds:
            args.folds = 0
        else:
            fits = False
    less = {name: getattr(args, name) for name in asked if getattr(args, name) != asked[name]}
    words = [
        f"{less[name]} {name} instead of {asked[name]}" for name in ("restarts", "epochs", "rounds") if name in less
    ]
    told = " and ".join(words + (["no cross-validation"] if "folds" in less else []))
    if not fits:
        even = f" even with {told}" if told else ""
        return f", more than --minutes {args.minutes:g}{even}: nothing is left to leave out"
    return f", for --minutes {args.minutes:g} with {told}" if told else ""
