"""What is wrong with the flags by themselves or together, told before any work. Imports nothing slow."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.paths import ROOT
from data_selection.images.downloads import check_address

WHOLE = ("CIFAR10", "CIFAR100", "IMNET", "INAT", "INAT19", "CUB2011", "FASHIONMNIST", "FOLDER", "DEMO")
DATA_SETS = (*WHOLE, *(f"{name}SUBSET" for name in WHOLE))
DATA_SET = "CIFAR10"  # where none is named
NOT_YET = ("IMNETSUBSET_Generate",)
SCHEDULES = ("cosine", "tanh", "step", "constant", "multistep", "poly", "wsd", "rsqrt", "none")


# The least that a flag of a number may be
AT_LEAST = {
    "epochs": 1, "start_epoch": 1, "batch_size": 1, "global_batch_size": 1, "input_size": 1, "eval_interval": 1,
    "save_interval": 1, "num_workers": 0, "warmup_epochs": 0, "cooldown_epochs": 0, "warmup_steps": 0, "rounds": 1,
    "restarts": 1,
    "recount": 1, "seed": 0,
    "lr": 0, "weight_decay": 0, "warmup_lr": 0, "min_lr": 0, "color_jitter": 0, "mixup": 0, "cutmix": 0,
}  # fmt: skip
BELOW_ONE = ("drop", "drop_path", "smoothing")
UP_TO_ONE = (
    "reprob", "mixup_prob", "mixup_switch_prob", "distillation_alpha", "model_ema_decay", "layer_decay", "head_scale",
)  # fmt: skip
ABOVE_ZERO = ("clip_grad", "decay_epochs", "distillation_tau", "minutes", "head_rate")


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that are wrong by themselves or together. Reads no file."""
    known_data_set(args.data_set)
    check_data(args)
    check_numbers(args)
    check_schedule(args)
    check_augmentation(args)
    check_mode(args)
    check_files(args)


def check_data(args: argparse.Namespace) -> None:
    """Flags that only some data sets take."""
    if args.data_set.endswith("SUBSET") and not args.subset_ids:
        raise UserError(f"--data-set {args.data_set} needs --subset_ids FILE, a JSON list of training-set indices")
    if args.subset_ids and not args.data_set.endswith("SUBSET"):
        raise UserError(f"--subset_ids is for the SUBSET data sets: use --data-set {args.data_set}SUBSET")
    if args.inat_category != "name" and not args.data_set.startswith("INAT"):
        raise UserError(f"--inat-category is for INAT and INAT19, not --data-set {args.data_set}")
    own = [flag(name) for name in ("labels", "val_labels", "train_path", "val_path") if getattr(args, name)]
    if own and not args.data_set.startswith("FOLDER"):
        raise UserError(f"{own[0]} is for FOLDER and FOLDERSUBSET, not --data-set {args.data_set}")
    if args.val_path == "none" and (args.eval or args.val_labels):
        raise UserError("--val-path none leaves no image to evaluate: drop it, or --eval and --val-labels")


def meant_data_set(given: argparse.Namespace, complete: bool) -> str:
    """The data set of the flags as they are typed: --data-set, with --eval else the checkpoint's, else DATA_SET.

    complete: the last must be at hand, UserError is raised where it is not.
    """
    name: str | None = given.data_set
    source = given.resume or given.finetune
    if name is None and given.eval and source and Path(source).is_file():
        from deit.runs.checkpoints import saved_args, training_state  # slow: imports torch

        saved = saved_args(training_state(source) or {}).get("data_set")
        name = saved if saved in DATA_SETS else None
    if name is None and complete:
        check_at_hand(given.data_path)
    return name or DATA_SET


def check_at_hand(data_path: str | None) -> None:
    """Raise UserError where --data-set is left out and its default would have to be downloaded first."""
    folders = (
        [Path(data_path)] if data_path else [Path("data"), ROOT / "deit" / "data", ROOT / "data_selection" / "data"]
    )
    if not any(any(folder.glob("cifar-10-*")) for folder in folders):
        own = data_path and (Path(data_path) / "train").is_dir() and (Path(data_path) / "val").is_dir()
        hint = f" ({data_path} has train/ and val/: FOLDER or FOLDERSUBSET)" if own else ""
        raise UserError(f"--data-set is missing: name one of {', '.join(DATA_SETS)}{hint}")


def check_numbers(args: argparse.Namespace) -> None:
    """Numbers by themselves; None and auto are no numbers."""
    for name, low in AT_LEAST.items():
        value = getattr(args, name)
        if value not in (None, "auto") and not value >= low:
            raise UserError(f"{flag(name)} {value} is below {low}")
    for name in BELOW_ONE:
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"{flag(name)} {getattr(args, name)} is outside 0 <= rate < 1")
    for name in UP_TO_ONE:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{flag(name)} {value} is outside 0..1")
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise UserError(f"--val-fraction {args.val_fraction} is outside 0 < F < 1")
    for name in ABOVE_ZERO:
        value = getattr(args, name)
        if value not in (None, "auto") and not value > 0:
            raise UserError(f"{flag(name)} {value} must be above 0")


def check_schedule(args: argparse.Namespace) -> None:
    """How long, and how the rate goes."""
    if args.sched not in SCHEDULES:
        why = "plateau cannot be resumed exactly; " if args.sched == "plateau" else ""
        raise UserError(f"--sched {args.sched!r}: {why}use one of {', '.join(SCHEDULES)}")
    if args.epochs != "auto":
        check_start(args)
    if args.warmup_steps is not None and args.sched_unit != "step":
        raise UserError("--warmup-steps needs --sched-unit step")


def check_start(args: argparse.Namespace) -> None:
    """Raise UserError for a --start_epoch after the last one; --epochs is a number."""
    last = args.epochs + args.cooldown_epochs
    if args.start_epoch > last:
        raise UserError(f"--start_epoch {args.start_epoch} is after the last epoch, {last}")
    decay, room = args.decay_epochs, args.epochs
    if args.sched in ("wsd", "rsqrt"):
        room -= args.warmup_epochs if args.warmup_steps is None else 0
    if decay and args.sched in ("step", "wsd", "rsqrt") and decay >= room:
        raise UserError(
            f"--sched {args.sched} with --decay-epochs {decay:g} does not fall within {room} epochs: give fewer, or "
            "leave the flag out"
        )


def check_augmentation(args: argparse.Namespace) -> None:
    """Mixing, distillation and what `shift` leaves out: flags that need or exclude one another."""
    drawn = [flag(name) for name in ("aa", "color_jitter", "reprob") if getattr(args, name)]
    if drawn and args.augment == "shift":
        raise UserError(f"{', '.join(drawn)} does nothing with --augment shift: leave it out, or use --augment crop")
    mixes = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    if mixes != bool(args.mixup_prob):
        raise UserError("--mixup or --cutmix and --mixup-prob go together (1.0 mixes every batch): one is missing")
    if args.cutmix_minmax and not 0 <= args.cutmix_minmax[0] < args.cutmix_minmax[1] <= 1:
        raise UserError(f"--cutmix-minmax {args.cutmix_minmax} must be 0 <= LOW < HIGH <= 1")
    if args.distillation_type != "none" and not (args.teacher_path or args.eval):
        raise UserError("--distillation-type needs --teacher-path FILE, the teacher's weights")
    if args.teacher_path and args.distillation_type == "none":
        raise UserError("--teacher-path needs --distillation-type soft or hard")


def check_mode(args: argparse.Namespace) -> None:
    """What a mode needs or excludes."""
    if args.mode != "full" and args.start_epoch != 1:
        raise UserError(
            f"--start_epoch {args.start_epoch} is for --mode full: {args.mode} starts with fitting the head"
        )
    if args.start_epoch != 1 and args.minutes:
        raise UserError(
            f"--minutes may leave fewer epochs than --start_epoch {args.start_epoch}: give --epochs without --minutes"
        )
    if args.start_epoch != 1 and args.restarts > 1:
        raise UserError(
            f"--start_epoch {args.start_epoch} is within one training, --restarts {args.restarts} are several: leave "
            "the first out, or say --restarts 1"
        )
    if args.mode in ("self-train", "auto") and args.sched_unit != "step":
        raise UserError(f"--mode {args.mode} needs --sched-unit step, as in --recipe few-shot")
    if args.mode == "self-train" and args.distillation_type != "none":
        raise UserError("--mode self-train has the pool's graph for a teacher: leave out --distillation-type")
    if args.mode == "auto" and not args.folds:
        raise UserError("--mode auto decides by cross-validation: give --folds 2, as in --recipe few-shot")
    if args.features and args.mode not in ("linear", "smoothed", "auto"):
        raise UserError(f"--features is for --mode linear, smoothed and auto: {args.mode} needs the images themselves")
    if args.distil and args.mode not in ("smoothed", "auto"):
        raise UserError(f"--distil is for --mode smoothed and auto, not {args.mode}")
    if args.folds < 0 or args.folds == 1:
        raise UserError(f"--folds {args.folds}: 2 or more parts can be left out in turn; 0 does not ask")


def check_files(args: argparse.Namespace) -> None:
    """Where weights come from, and where the run leaves what it writes."""
    if args.tensorboard and not args.output_dir:
        raise UserError("--tensorboard needs --output_dir, where its events go")
    if args.auto_resume and not args.output_dir:
        raise UserError("--auto-resume needs --output_dir, where it looks for checkpoint.pth")
    if args.resume and args.finetune:
        raise UserError(
            "--resume and --finetune name two starts: give one (--resume continues, --finetune starts anew)"
        )
    for name in ("resume", "finetune", "teacher_path"):
        check_address(getattr(args, name), flag(name), args.allow_http)
    if args.eval_ema and not (args.model_ema or args.eval):
        raise UserError("--eval-ema evaluates the moving average that --no-model-ema leaves out: drop one of them")
    if args.eval_ema and args.eval and args.checkpoint_key:
        raise UserError("--eval-ema and --checkpoint_key name two entries of the checkpoint: give one")
    if args.eval and not (args.resume or args.finetune):
        raise UserError("--eval needs the weights to evaluate: --resume Outputs/checkpoint.pth")


def known_data_set(name: str) -> None:
    """Raise UserError for a data set that is not read here."""
    if name in NOT_YET:
        raise UserError(f"--data-set {name} is not read here: put the images into class folders and use FOLDER")
    if name not in DATA_SETS:
        close = difflib.get_close_matches(name.upper(), DATA_SETS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"unknown --data-set {name!r}: use one of {', '.join(DATA_SETS)}.{hint}")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_no_idle_flag(parser: argparse.ArgumentParser, given: Sequence[str], mode: str) -> None:
    """Raise UserError for flags that do nothing in a mode; given: those typed (a --config serves all)."""
    idle, why = set() if mode in ("self-train", "auto") else {"rounds"}, "which does not train on the pool"
    if mode in ("linear", "smoothed"):
        used = {"mode", "batch_size", "smoothing" if mode == "linear" else "distil"}
        groups = [group for group in parser._action_groups if group.title in ("optimisation", "augmentation and loss")]
        idle |= {action.dest for group in groups for action in group._group_actions} - used
        idle |= {
            "drop", "drop_path", "model_ema", "model_ema_decay", "model_ema_warmup", "model_ema_force_cpu", "eval_ema"
        }  # fmt: skip
        why = "which fits the head in one go"
    typed = [flag(name) for name in given if name in idle]
    if typed:
        other = "self-train to train on the pool" if typed == ["--rounds"] else "lp-ft to train on from that head"
        raise UserError(f"{', '.join(typed)} does nothing in --mode {mode}, {why}: leave it out, or use --mode {other}")
