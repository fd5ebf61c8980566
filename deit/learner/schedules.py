"""How the learning rate goes over a run: timm's schedules by the flags, for the whole of it and for shorter parts."""

import argparse
import math
from typing import Any

import timm
import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from data_selection.common.errors import UserError
from deit.runs.kinds import Settings


def shortened(args: argparse.Namespace, epochs: int) -> Settings:
    """The flags that count in epochs, for a run of that many in place of --epochs: the rate takes the same course.

    Without it a run of two epochs would spend both in a warm-up of five. A decay below 1 is a share already.
    """
    share, decay = epochs / args.epochs, args.decay_epochs
    warmup = args.warmup_epochs * share
    return {
        "epochs": epochs,
        "warmup_epochs": warmup if args.sched_unit == "step" else round(warmup),  # an epoch has one rate there
        "decay_epochs": max(1.0, decay * share) if decay and decay >= 1 else decay,
    }


def make_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates: int, epochs: int | None = None
) -> Scheduler | None:
    """timm's schedule of --sched, a function of the epochs or steps done alone; None where the rate stays.

    updates: steps in an epoch. epochs: by default those of the flags. Epoch or step e (from 1) uses the value at
    e - 1, as BiLAF's trainer does; ActiveFT's spends two epochs at the first value.
    """
    part = 1.0 if epochs is None else epochs / args.epochs
    epochs = args.epochs if epochs is None else epochs
    by_epoch, warmup = args.sched_unit == "epoch", args.warmup_epochs * part
    if args.warmup_steps is not None:
        warmup = min(args.warmup_steps / updates, epochs / 4)
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer, num_epochs=epochs, min_lr=args.min_lr, warmup_lr=args.warmup_lr,
            step_on_epochs=by_epoch, updates_per_epoch=0 if by_epoch else updates,
            noise=args.lr_noise or None,  # type: ignore[arg-type]  # None: no noise, timm's type forgot it
            noise_pct=args.lr_noise_pct, noise_std=args.lr_noise_std,
            **shape_of(args, epochs, part, warmup, 1 if by_epoch else updates),
        )  # fmt: skip
    except (AssertionError, ValueError) as error:
        raise UserError(f"--sched {args.sched} with {epochs} epochs: {error}") from None
    if scheduler is None:  # timm leaves the scaling of --layer-decay to its schedules
        for group in optimizer.param_groups:
            first = group.setdefault("initial_lr", group["lr"])  # a schedule is made for every part of a run
            group["lr"] = first * group.get("lr_scale", 1.0)
    return scheduler


def shape_of(args: argparse.Namespace, epochs: int, part: float, warmup: float, updates: int) -> dict[str, Any]:
    """The keywords of create_scheduler_v2 that say how the rate goes over `epochs`, that `part` of the flags' own.

    updates: how often in an epoch the rate is set.
    """
    long = args.sched in ("wsd", "rsqrt")  # warm-up, a long stretch, a fall
    if long and not hasattr(timm.scheduler, "WSDLRScheduler"):
        raise UserError(f"--sched {args.sched} needs timm 1.0.31 or newer, this is {timm.__version__}")
    decay = args.decay_epochs * part if args.decay_epochs else 30.0 if epochs > 30 else epochs / 3
    if long:  # parts of a run may be shorter than its warm-up and its fall; timm takes less than 1 for a share
        warmup = min(warmup, epochs / 2)
        if (epochs - warmup) * updates < 1:
            warmup = 0.0
        room, fall = epochs - warmup, args.decay_epochs or 0.2
        decay = fall if fall < 1 else min(fall * part, room) / room
        if args.sched_unit == "epoch":
            decay = max(1, math.floor(decay * room + 0.5))
        elif decay * room * updates < 1:  # the last step at least
            decay = 1 / (room * updates)
    shape: dict[str, Any] = {
        "sched": args.sched,
        "decay_epochs": decay,
        "decay_rate": args.decay_rate,
        "decay_milestones": [place * epochs for place in (0.3, 0.6, 0.9)],
        "warmup_epochs": warmup,
    }
    if args.sched == "constant":  # timm's older versions do not know the word
        return shape | {"sched": "step", "decay_epochs": 1, "decay_rate": 1.0}
    return shape | ({"stable_timescale": warmup or 1} if args.sched == "rsqrt" else {})
