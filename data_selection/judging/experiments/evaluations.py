"""The evaluations on frozen features: k-NN, a linear probe, the smoothed probe."""

from collections.abc import Callable
from typing import Any

import torch

from data_selection.common.errors import UserError
from data_selection.judging.evaluation import PROBE_C, knn_accuracy
from data_selection.judging.experiments.cells import Kind, Task
from data_selection.judging.experiments.plan import PoolSpec, known
from data_selection.judging.probe import SMOOTH_C, choose_c, fit_probe
from data_selection.nearest.similarity import normalise

AUTO = "auto"  # c by cross-validation on the chosen labels


def knn(task: Task) -> dict[str, Any]:
    """Accuracy of k-NN as in DINO's evaluation; k as set."""
    features, labels, test, test_labels = task.pool.tensors
    return {"accuracy": knn_accuracy(features[task.ids], labels[task.ids], test, test_labels, k=task.settings["k"])}


def probe(task: Task) -> dict[str, Any]:
    """Accuracy of logistic regression on unit features, its c as set or by cross-validation."""
    features, labels, test, test_labels = task.pool.tensors
    rows, targets, c = normalise(features[task.ids]), labels[task.ids], task.settings["c"]
    strength = choose_c(rows, targets) if c == AUTO else c
    predicted = fit_probe(rows, targets, task.pool.classes, strength).predict(normalise(test))
    return {"accuracy": accuracy(predicted, test_labels), "c": strength}


def smoothed(task: Task) -> dict[str, Any]:
    """Accuracy of the smoothed probe: lrZ, and csZ with the labels spread over the neighbours."""
    from data_selection.judging.smoothed import fit_smoothed

    _, labels, _, test_labels = task.pool.tensors
    c = None if task.settings["c"] == AUTO else task.settings["c"]
    pool, test = task.pool.smoothed(task.settings["k"], task.settings["steps"])
    found = fit_smoothed(pool, labels[task.ids], task.ids, classes=task.pool.classes, c=c, calibrate=False)
    return {
        "csZ": accuracy(found.predict(test, corrected=True), test_labels),
        "lrZ": accuracy(found.predict(test), test_labels),
        "c": found.c,
    }


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of rows whose most probable class (Q, C) is their label (Q,)."""
    return 100 * (predicted.argmax(1) == labels).double().mean().item()


def checker(**defaults: Any) -> Callable[[dict[str, Any], PoolSpec, str], dict[str, Any]]:
    """A Kind's check by defaults: numbers above 0 (`steps`: or 0), c also `auto`; anything else is a UserError."""

    def check(settings: dict[str, Any], _pool: PoolSpec, where: str) -> dict[str, Any]:
        known(settings, [*defaults, "kind", "pools", "score"], where)
        for name, value in settings.items():
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= (name != "steps")
            strength = name == "c" and (value == AUTO or (isinstance(value, float) and value > 0))
            if not whole and not strength:
                allowed = "a number above 0, or auto" if name == "c" else "a whole number"
                raise UserError(f"{where}: {name} {value!r} must be {allowed}")
        found = defaults | settings
        return {name: float(value) if name == "c" and value != AUTO else value for name, value in found.items()}

    return check


FROZEN = {
    "knn": Kind(("accuracy",), True, checker(k=20), knn),
    "probe": Kind(("accuracy",), True, checker(c=PROBE_C), probe),
    "smoothed": Kind(("csZ", "lrZ"), True, checker(c=SMOOTH_C, k=10, steps=2), smoothed),
}
