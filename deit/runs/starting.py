"""Where a run starts: from pretrained weights, or from a checkpoint that it continues."""

import argparse
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.embedding.backbones import local_file
from deit.runs import checkpoints
from deit.runs.kinds import TIMED, Settings, State
from deit.runs.meters import RunLog
from deit.runs.saving import NEWEST, PREVIOUS


def starting_point(
    args: argparse.Namespace, settings: Settings, pretrained: Path | None, log: RunLog
) -> tuple[Path | str, State | None]:
    """(source, training state): what to start from, and its state where it is to continue.

    The source is a file, `none` for random weights, or `timm:NAME` for timm's own.
    --auto-resume's checkpoint comes before --resume and --finetune: it is a continuation of what they started.
    """
    source, state = own_checkpoint(args, log)
    if not source and not args.resume:
        return weights_of(args, pretrained), None
    if not source:
        source = str(local_file(args.resume, log.say, "--resume"))
        state = checkpoints.training_state(source)
    if state is None:
        log.say(f"{source} holds no training state: taken as pretrained weights, as with --finetune")
        return source, None
    if args.start_epoch != 1:
        raise UserError(
            f"--start_epoch {args.start_epoch}: {source} says itself where it continues; leave the flag out"
        )
    saved = checkpoints.saved_args(state)
    timed = TIMED if args.minutes and saved.get("minutes") else ()  # set by the clock of the run to continue
    asked = {name: value for name, value in settings.items() if name not in timed}
    checkpoints.check_same_recipe(saved, asked, source)
    began = saved.get("finetune")
    if began and args.finetune and Path(str(began)).name != Path(args.finetune).name:
        log.say(f"warning: this run began with --finetune {began}; from {args.finetune} another --output_dir begins")
    steps = checkpoints.steps_done(state)
    log.say(f"continuing {source} after epoch {state['epoch']}" + (f" and {steps} steps" if steps else ""))
    return source, state


def weights_of(args: argparse.Namespace, pretrained: Path | None) -> Path | str:
    """The pretrained weights of a new run: those of --finetune, else the data set's, else timm's own."""
    weights = args.finetune or pretrained or (args.model if args.model.startswith("timm:") else None)
    if weights is None:
        raise UserError(
            f"--model {args.model} on --data-set {args.data_set} has no pretrained weights of its own: give them "
            "with --finetune FILE or --resume FILE, write --model timm:NAME for timm's own, or say "
            "--finetune none to train from random ones"
        )
    return weights


def own_checkpoint(args: argparse.Namespace, log: RunLog) -> tuple[str, State | None]:
    """(file, training state) that --auto-resume continues, ("", None) where there is none.

    A checkpoint.pth that cannot be read, or is missing, gives way to the one before it. Raises UserError where files
    are there and none can be read.
    """
    files = [Path(args.output_dir) / name for name in (NEWEST, PREVIOUS)] if args.auto_resume else []
    files = [path for path in files if path.exists()]
    for path in files:
        try:
            return str(path), checkpoints.training_state(path)
        except UserError as error:
            log.say(f"not continued: {error}")
    if files:
        raise UserError(
            f"--auto-resume: no checkpoint in {args.output_dir} can be read: to start anew, remove "
            f"{' and '.join(path.name for path in files)}"
        )
    return "", None


def finished(args: argparse.Namespace, source: Path | str, done: int, last: int, log: RunLog) -> bool:
    """Whether --auto-resume finds its run finished, which is no mistake. Raises UserError where --resume does.

    A run that was killed before it wrote its result is not finished: what is left to do is to evaluate.
    """
    if done < last:
        return False
    told = f"the checkpoint has {done} epochs and {last} are asked for: the run is finished"
    if not args.auto_resume or Path(source).parent != Path(args.output_dir):
        raise UserError(f"{told} ({source})")
    result = Path(args.output_dir) / "result.json"
    there = result.exists()
    log.say(f"{source}: {told}" + (f"; its result is in {result}" if there else " but for its result, which follows"))
    return there
