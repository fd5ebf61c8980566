"""How good the trained model is, by the labels themselves: answers that it gave without having seen the label."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from data_selection.common.listed_names import unquoted
from data_selection.judging.calibration import at_temperature
from data_selection.judging.probe import FOLDS, folds
from data_selection.judging.smoothed import SmoothedProbe
from deit.learner.linear import logistic_regression
from deit.runs.folders import ASKED

HEAD = "a head on the frozen backbone"


class Judged(NamedTuple):
    """What was said of n labelled images. answers, sure: (n,) class and its probability. by: which model, and how."""

    answers: torch.Tensor
    sure: torch.Tensor
    by: str


def judge(
    training: Path, result: dict[str, Any], files: Sequence[str], classes: Sequence[str], rows: torch.Tensor,
    labels: torch.Tensor, probe: SmoothedProbe, *, ours: bool = True,
) -> Judged:  # fmt: skip
    """Answers for labelled images by the kind of model that was trained, none of which had learned from their labels.

    training: the trainer's folder; result: of its result.json. rows: (n, D) raw features of the images `files`; labels:
    (n,) int64; probe: of all labels, on the pool. ours: whether the rows are of the backbone that was trained, before
    that. A finetuned model's answers are those of the trainer's cross-validation.
    """
    mode, verdict = result["mode"], result.get("verdict")
    settings = yaml.safe_load((training / "args.yaml").read_text(encoding="utf-8"))
    if mode == "smoothed" and probe.held is not None:
        held = probe.held.corrected if probe.choice.corrected else probe.held.plain
        heat = probe.corrected_temperature if probe.choice.corrected else probe.temperature
        best = at_temperature(held, heat).max(1)
        return Judged(best.indices, best.values, f"by the pool's graph, {told(FOLDS)}")
    untaught = " before the pool taught it" if mode == "self-train" else ""
    finetunes = mode not in ("linear", "smoothed")
    if finetunes and verdict and verdict["kept"] == "finetuned":
        before = "" if mode == verdict.get("finetuned") else untaught
        return asked(training, files, classes, "finetuned", f"the finetuned model{before}, {told(settings['folds'])}")
    if finetunes and verdict and not ours:
        return asked(training, files, classes, "probe", f"{HEAD}{untaught}, {told(settings['folds'])}")
    parts = min(FOLDS, len(labels))
    best = held_out_head(rows, labels, len(classes), parts, settings["smoothing"]).max(1)
    head = HEAD if ours else f"{HEAD} of the features, which is not the one trained"
    rest = untaught if verdict else " (the finetuned model was not asked)" if finetunes else ""
    return Judged(best.indices, best.values, f"by {head}{rest}, {told(parts)}")


def asked(training: Path, files: Sequence[str], classes: Sequence[str], model: str, how: str) -> Judged:
    """What the trainer's cross-validation found of the images `files`. model: finetuned or probe; how: it is called."""
    with (training / ASKED).open(encoding="utf-8", newline="") as handle:
        found = {unquoted(line["file"]): line for line in csv.DictReader(handle)}
    answers = torch.tensor([classes.index(unquoted(found[file][model])) for file in files])
    sure = torch.tensor([float(found[file][f"{model}_confidence"]) for file in files])
    return Judged(answers, sure, f"by {how}")


def told(parts: int) -> str:
    """How labels were held out in a number of parts, in words."""
    return f"each label judged by a training on {100 - 100 / parts:.0f} % of the labels, without it"


def held_out_head(rows: torch.Tensor, labels: torch.Tensor, classes: int, parts: int, smoothing: float) -> torch.Tensor:
    """Probabilities (n, classes) by the trainer's own head, fitted to the other parts of features (n, D) and labels."""
    fold, found = folds(labels, parts), torch.zeros(len(labels), classes, dtype=torch.float64)
    for part in range(parts):
        left = fold == part
        weight, bias = logistic_regression(rows[~left], labels[~left], classes, smoothing)
        found[left] = (rows[left].double() @ weight.T + bias).softmax(1)
    return found
