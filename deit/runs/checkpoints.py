"""Pretrained weights, checkpoints and exact continuation."""

from pathlib import Path
from typing import Any, Protocol

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from data_selection.common.errors import UserError
from data_selection.common.kinds import Log
from data_selection.embedding.backbones import DINO_HEAD, load_published, load_weights
from data_selection.embedding.checkpoint_files import read_checkpoint
from deit.runs.kinds import Numbers, Settings, State

STATE = ("model", "optimizer", "epoch")  # the entries that make a checkpoint one to continue from
# The recipe: a continued run must have the same, or its result would be that of neither command
RECIPE = (
    "data_set", "model", "input_size", "epochs", "cooldown_epochs", "global_batch_size", "seed", "opt", "lr",
    "weight_decay", "momentum", "opt_eps", "opt_betas", "clip_grad", "layer_decay", "sched", "warmup_epochs",
    "warmup_lr", "min_lr", "decay_epochs", "decay_rate", "lr_noise", "lr_noise_pct", "lr_noise_std", "drop",
    "drop_path", "model_ema_decay", "color_jitter", "aa", "train_interpolation", "repeated_aug", "reprob", "remode",
    "recount", "smoothing", "mixup", "cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode",
    "pixels", "background", "augment", "batch_norm", "sched_unit", "warmup_steps", "model_ema_warmup", "folds",
    "rounds", "restarts", "head_scale", "head_rate", "distillation_type", "distillation_alpha", "distillation_tau",
    "teacher_model", "mode", "distil", "train_ids",
)  # fmt: skip

EARLIER = {"head_scale": 1.0, "head_rate": 1.0}  # what runs did whose checkpoints do not know these flags


class Learning(Protocol):
    """What of engine.Learner a checkpoint keeps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    kept: dict[str, State]


def classifier_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """A timm model's classifier, or the two of a distilled model."""
    heads: Any = model.get_classifier()  # type: ignore[operator]  # timm's models have one, for torch it is a module
    return tuple(heads) if isinstance(heads, (tuple, list)) else (heads,)


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Patterns of the tensors of the model's classifier, and of a distilled model's second one."""
    heads = classifier_layers(model)
    names = [name for name, layer in model.named_modules() if any(layer is head for head in heads)]
    return tuple(f"{name}.*" for name in names)


def load_pretrained(
    model: nn.Module, source: Path | str, log: Log, key: str | None = None, size: int | None = None
) -> None:
    """Load a backbone's weights: strictly but for the classifier, position embedding resized. See load_weights.

    source: as for load_weights, or `timm:NAME`, timm's own for images of size x size pixels. key: the file's entry that
    holds them, None: the one that is there.
    """
    heads = classifier_names(model)
    if str(source).startswith("timm:"):
        return load_published(model, str(source), size, heads)
    extra = ("head.*", "head_dist.*", "fc.*", "classifier.*", *DINO_HEAD)
    named = {"checkpoint_key": key} if key else {}
    load_weights(
        model, source, allow_missing=heads, allow_unexpected=(*heads, *extra), resize_pos_embed=True, log=log, **named
    )


def training_state(path: Path | str) -> State | None:
    """The content of a checkpoint with training state, or None where a file has none."""
    content = read_checkpoint(path)
    return content if all(isinstance(content, dict) and key in content for key in STATE) else None


def steps_done(state: State) -> int:
    """Steps of the epoch after state["epoch"] that are done, where the run was stopped within it."""
    return len(state["sofar"]["losses"]) if state.get("sofar") else 0


def saved_args(state: State) -> Settings:
    """The arguments that a checkpoint holds, a dict; the released trainer's are a Namespace, and some hold none."""
    args = state.get("args") or {}
    return args if isinstance(args, dict) else dict(vars(args))


def check_same_recipe(saved: Settings, args: Settings, source: Path | str) -> None:
    """Raise UserError where a checkpoint's arguments differ from the command's in what decides the result."""
    saved = EARLIER | saved
    differing = [
        f"--{name.replace('_', '-')} {args[name]} (was {saved[name]})"
        for name in RECIPE
        if name in saved and name in args and plain(name, saved[name]) != plain(name, args[name])
    ]
    if differing:
        raise UserError(
            f"{source} was made with another recipe: {', '.join(differing)}. Give the same flags to continue it, or "
            f"start a new run from its weights with --finetune {source}"
        )


def plain(name: str, value: object) -> object:
    """A flag's value, the same for lists and tuples, and for a default that used to be a number."""
    if name == "decay_epochs" and value is None:
        return 30
    return list(value) if isinstance(value, (tuple, list)) else value


def restore(learner: Learning, state: State, source: Path | str, log: Log, epoch: int) -> None:
    """Put a checkpoint's training state into the learner. epoch: how many of its training are done."""
    try:
        learner.model.load_state_dict(state["model"], strict=True)
        learner.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{source} does not fit this model or optimiser ({str(error).splitlines()[0]})") from None
    if state.get("scaler"):
        learner.scaler.load_state_dict(state["scaler"])
    if learner.ema is not None:
        if state.get("model_ema"):
            learner.ema.module.load_state_dict(state["model_ema"], strict=True)
        else:
            log(f"{source} holds no EMA: it starts from the checkpoint's weights")
            learner.ema.set(learner.model)
    learner.kept |= state.get("restarts") or {}
    if learner.scheduler is not None and epoch:  # a function of the epoch alone; before the first: as built
        learner.scheduler.step(epoch)


def content(
    learner: Learning, epoch: int, best: Numbers | None, args: Settings, spent: Numbers, more: State | None = None
) -> State:
    """A checkpoint's content: the training state after `epoch`.

    Entries and names as in the released trainer: model, optimizer, lr_scheduler, epoch, model_ema, scaler, args; and
    best: the best epoch and its numbers; spent: what the run has taken so far, as keywords of job.Tally; restarts, in a
    run of several trainings on the labels: where they begin, and the sum of what they ended with; more: of a run
    stopped within an epoch, as job.Tally keeps it: the steps after `epoch` that are done (sofar), or the line of
    `epoch`, which is to be judged (line). args is a plain dictionary, so that weights_only=True reads the file.
    """
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "lr_scheduler": learner.scheduler.state_dict() if learner.scheduler is not None else {},
        "epoch": epoch,
        "model_ema": learner.ema.module.state_dict() if learner.ema is not None else None,
        "scaler": learner.scaler.state_dict(),
        "args": args,
        "best": best,
        "spent": spent,
        **({"restarts": learner.kept} if learner.kept else {}),
        **(more or {}),
    }
