"""Types that several rooms of the trainer name."""

from typing import Any

Numbers = dict[str, float]  # what was measured, by name: a line of log.txt
Settings = dict[str, Any]  # the flags as resolved, and what a continued run must have the same
State = dict[str, Any]  # a checkpoint's content, see checkpoints.content
TIMED = (
    "epochs",
    "warmup_epochs",
    "decay_epochs",
    "restarts",
    "rounds",
    "folds",
)  # flags that the clock of --minutes settles
