"""The head alone: features of the frozen backbone once, then a logistic regression on them, in seconds."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from data_selection.common.distributed import on_main
from data_selection.common.errors import UserError
from deit.engine import Learner
from deit.runs.checkpoints import classifier_layers
from deit.runs.stopping import until_asked
from deit.samples.batches import Augmented, Part, Plain

# Inverse L2 strength, as scikit-learn's C, for features of mean distance 1 from their mean. Set on random subsets of
# the demo pool that take part in no comparison (50, 100 and 500 labels; seeds 1000-1004): 10 to 100 are within 1 %.
STRENGTH = 30.0


class Rows(NamedTuple):
    """What the classifier sees of each image: features (N, D) float32 and labels (N,) on the device."""

    features: torch.Tensor
    labels: torch.Tensor


def classifiers(model: nn.Module) -> list[nn.Linear]:
    """The model's classifier layers: one, or the two of a distilled model. Raises UserError where one is not linear."""
    heads = []
    for head in classifier_layers(model):
        if not is_linear(head):
            raise UserError(
                f"every --mode but full needs a linear classifier, and this model has {head}: use --mode full"
            )
        heads.append(head)
    return heads


def is_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a classifier can be fitted to what it sees by logistic regression."""
    return isinstance(head, nn.Linear) and head.bias is not None


@contextlib.contextmanager
def seen_by_classifiers(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the block, a list of what each classifier saw (B, D) since it was cleared.

    A distilled model has two, whose logits are averaged: with equal weights in both, the mean of what they see is what
    one would see.
    """
    seen: list[torch.Tensor] = []
    heads = classifiers(model)
    hooks = [head.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0])) for head in heads]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def frozen_features(learner: Learner, data: Plain, batch: int) -> Rows:
    """The Rows of images, unaugmented, on every process; each computes its share.

    Raises Stopped where a process is asked to stop.
    """
    model, world = learner.model, learner.world
    model.eval()
    features = torch.zeros(len(data), classifiers(model)[0].in_features, device=world.device)
    labels = torch.zeros(len(data), dtype=torch.int64, device=world.device)
    mine, start = torch.arange(world.rank, len(data), world.size, device=world.device), 0
    with seen_by_classifiers(model) as seen:
        batches = data.plain(range(world.rank, len(data), world.size), batch)
        for images, targets in until_asked(batches, learner.asked, world):
            with learner.autocast():
                model(images)
            rows = mine[start : start + len(images)]
            features[rows], labels[rows] = torch.stack(seen).float().mean(0), targets
            start += len(images)
            seen.clear()
    return Rows(world.sum_(features), world.sum_(labels))


@torch.no_grad()
def augmented_features(
    learner: Learner, data: Augmented, parts: Sequence[Part], epoch: int, count: int
) -> torch.Tensor:
    """What the classifier sees of each of `count` images, augmented as in an epoch, (count, D) on every process.

    parts: this process's, all of them together every image once. Raises Stopped where asked to stop.
    """
    model, world = learner.model, learner.world
    model.eval()
    features = torch.zeros(count, classifiers(model)[0].in_features, device=world.device)
    with seen_by_classifiers(model) as seen:
        batches = zip(parts, data.augmented(parts, epoch), strict=True)
        for part, (images, _) in until_asked(batches, learner.asked, world):
            with learner.autocast():
                model(images)
            features[part.indices.to(world.device)] = torch.stack(seen).float().mean(0)
            seen.clear()
    return world.sum_(features)


def logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, classes: int, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (C, D) and biases (C,) of the multinomial logistic regression of labels (N,) on features (N, D).

    Minimises mean cross-entropy (labels smoothed) + |weights|^2 / (2 STRENGTH N) in float64, on centred features
    divided by their mean norm; the result is for the features as they are. Convex and deterministic.
    """
    targets = one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return soft_regression(features, targets)


def soft_regression(features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logistic_regression on soft targets (N, C), whose rows sum to their weight in the loss."""
    from data_selection.judging.logistic import logistic_path  # scipy's solver takes a while to import

    x = features.double()
    centre = x.mean(0)
    x = x - centre
    scale = x.norm(dim=1).mean().clamp(min=1e-12)
    ((weight, bias),) = logistic_path(x / scale, targets, [STRENGTH])
    weight = weight / scale
    return weight, bias - weight @ centre


@torch.no_grad()
def fit_head(learner: Learner, data: Plain | Rows, classes: int, *, batch: int, smoothing: float) -> float:
    """Fit the model's classifier to data, the backbone left as it is. Returns the training loss (smoothed, per image).

    The moving average of the weights begins there. The same on any number of processes: each computes its share of the
    features, one fits, all get its result.
    """
    features, labels = data if isinstance(data, Rows) else frozen_features(learner, data, batch)
    targets = one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    set_head(learner, features, targets)
    begin_average(learner)
    loss = cross_entropy(classifiers(learner.model)[0](features), labels, label_smoothing=smoothing).item()
    if not math.isfinite(loss):
        raise UserError("the features of the frozen backbone are not finite: try --amp off, or check the weights")
    return loss


@torch.no_grad()
def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply what the model's classifiers have learned by a factor, in place. Above 0 it changes no answer.

    A head that has fitted the labels leaves the backbone next to nothing to learn; scaled down it does not.
    """
    for layer in classifier_layers(model):
        for value in layer.parameters():
            value.mul_(factor)


def soften(learner: Learner, factor: float) -> None:
    """scale_head for the model and its average, before a training of every weight begins."""
    for model in [learner.model] + ([learner.ema.module] if learner.ema is not None else []):
        scale_head(model, factor)


@torch.no_grad()
def set_head(learner: Learner, features: torch.Tensor, targets: torch.Tensor) -> None:
    """Fit the model's classifiers to soft targets (N, C) of features (N, D) on one process; all get the result.

    The moving average of the weights stays as it is.
    """

    def solve() -> list[torch.Tensor]:
        return [x.float().cpu() for x in soft_regression(features, targets)]

    weight, bias = on_main(learner.world, solve)
    for head in classifiers(learner.model):
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def begin_average(learner: Learner) -> None:
    """Let the moving average of the weights, where there is one, begin at the model as it is."""
    if learner.ema is not None:
        learner.ema.set(learner.model)
