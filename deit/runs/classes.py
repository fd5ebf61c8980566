"""The names of a run's classes: a checkpoint's outputs mean the classes of its training, whatever their number."""

from collections.abc import Sequence
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.kinds import Log
from deit.runs import checkpoints
from deit.runs.kinds import Settings


def difference(saved: Settings, class_names: Sequence[str] | None) -> str:
    """What tells a checkpoint's classes from these, "" where nothing does or either does not know them."""
    before = saved.get("class_names")
    if not before or not class_names or list(before) == list(class_names):
        return ""
    sides = [
        f"{what} {', '.join(map(repr, names[:4]))}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for what, names in (
            ("only it has", [name for name in before if name not in class_names]),
            ("it lacks", [name for name in class_names if name not in before]),
        )
        if names
    ]
    return "; ".join(sides) or "they are in another order"


def check_classes(saved: Settings, class_names: Sequence[str] | None, source: Path | str) -> None:
    """Raise UserError where a checkpoint was trained for other classes than the data's."""
    differs = difference(saved, class_names)
    if differs:
        raise UserError(
            f"{source} was trained for other classes ({differs}): name the class folders and labels alike, or train on "
            f"from its weights with --finetune {source}"
        )


def say_of_classes(source: Path | str, class_names: Sequence[str] | None, log: Log) -> None:
    """One line where training starts from a checkpoint of other classes, whose classifier may fit in number alone."""
    state = checkpoints.training_state(source) if Path(source).is_file() else None
    differs = difference(checkpoints.saved_args(state), class_names) if state else ""
    if differs:
        log(f"warning: {source} was trained for other classes ({differs}): its classifier is but a start")
