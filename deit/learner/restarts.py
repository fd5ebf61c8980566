"""Several trainings on the labels from the same start with other draws; the result is the mean of their weights.

With few labels a training's augmentation and order decide a part of what it learns. Weights of runs from one start can
be averaged (Wortsman et al., 2022, "Model soups"), and the mean answers as fast as one of them.
"""

from deit.engine import Learner
from deit.learner.linear import begin_average
from deit.runs.kinds import State


def begin(learner: Learner) -> None:
    """Begin a training: the first one keeps where it began, the others go back there, the optimiser, too."""
    if "start" not in learner.kept:
        learner.kept["start"] = copied(learner.model.state_dict())
        return
    learner.model.load_state_dict(learner.kept["start"])
    forget(learner)


def forget(learner: Learner) -> None:
    """Go on from the weights as they are: the optimiser as it was built, the average of weights at the model."""
    learner.optimizer.load_state_dict(learner.fresh)  # which copies it
    begin_average(learner)


def end(learner: Learner, number: int, count: int) -> None:
    """End training `number` of `count`, from 1: its weights and their average are added up, the last leaves the means.

    Numbers that are no fractions (how many batches a layer has seen) stay the last one's. A run may have been continued
    with or without an average: its mean is over the trainings that had one.
    """
    counts = learner.kept.setdefault("counts", {})
    now = {"model": learner.model.state_dict()}
    if learner.ema is not None:
        now["model_ema"] = learner.ema.module.state_dict()
    for name, weights in now.items():
        counts[name] = counts.get(name, number - 1 if name in learner.kept else 0) + 1  # none in older checkpoints
        if name not in learner.kept:
            learner.kept[name] = copied(weights)
            continue
        for key, total in learner.kept[name].items():
            if total.is_floating_point():
                total += weights[key].to(total.device)  # a continued run's came from a file
    if number == count:
        for name, weights in now.items():
            for key, value in weights.items():
                if value.is_floating_point():
                    value.copy_(learner.kept[name][key] / counts[name])
        learner.kept.clear()


def copied(weights: State) -> State:
    return {key: value.detach().clone() for key, value in weights.items()}
