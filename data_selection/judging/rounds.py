"""The next images to label: a model of the labels so far says where it is in doubt, and a method chooses there."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from data_selection.common.checks import check_ids, check_labelled
from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from data_selection.common.kinds import Ids
from data_selection.judging.correction import UNEVEN, unevenness
from data_selection.judging.smoothed import Smoothing, at_temperature, fit_smoothed, smoothing_of
from data_selection.methods.configs import Config
from data_selection.methods.table import METHODS
from data_selection.nearest.graph import smooth
from data_selection.nearest.neighbour_files import Neighbours
from data_selection.nearest.pool_reader import pool_device

A_CLASS = 25  # labels a class up to which the weighted design was best


class Next(NamedTuple):
    """ids: (budget,) pool indices. method: a row of METHODS. probabilities: (N, C), calibrated, that it chose by."""

    ids: torch.Tensor
    method: str
    probabilities: torch.Tensor


def advise_rounds(labels: torch.Tensor, budget: int) -> tuple[str, str]:
    """(method, reason) for `budget` more labels, by the labels so far (n,) int64, of two classes at least.

    Set on rounds of four pools: the uncertainty-weighted design was best up to about 25 labels a class; beyond, and
    where the labels are uneven, half of each round by it and half by small margins over clusters was near the best.
    """
    classes, uneven = len(labels.unique()), unevenness(labels)
    each = (len(labels) + budget) / classes
    if uneven > UNEVEN:
        return "half", f"the {len(labels)} labels so far are uneven over {classes} classes ({uneven:.2f})"
    if each > A_CLASS:
        return "half", f"{each:.0f} labels a class, above {A_CLASS}"
    return "wvoptimal", f"{each:.0f} labels a class, at most {A_CLASS}, evenly over {classes} classes"


def choose_next(
    features: torch.Tensor | np.ndarray,
    labels: torch.Tensor | np.ndarray | Sequence[int],
    ids: Ids,
    budget: int,
    *,
    method: str = "auto",
    config: Config | None = None,
    labelled: Ids = (),
    excluded: Ids = (),
    classes: int | None = None,
    seed: int = 0,
    graph: Neighbours | None = None,
    base: Smoothing | None = None,
    world: World | None = None,
    progress: Callable[..., Any] | None = None,
) -> Next:
    """The `budget` images of a pool to label after those that have labels, by a method that asks a model of these.

    features: (N, D) raw floats. ids: (n,) pool indices; labels: (n,) int64, of two classes at least. method: a row of
    METHODS with rounds, or `auto`: advise_rounds. labelled: further images that are labelled, their classes unknown;
    excluded: images that must not be chosen. The model is the smoothed probe (C = 30), calibrated on the labels; it and
    its graph are of the whole pool, as training's are, so that excluded rows must be finite and do shape it. base: the
    pool's Smoothing, where it was made for other rounds, in place of graph and world. graph, world, classes,
    progress: as for fit_smoothed; rank 0 chooses, and all ranks get the same. config.steps None: as many as the
    model, 2, however large the pool, as its graph is there. Raises UserError for labels of one class, which no doubt
    can be told from.
    """
    known, targets = check_labelled(ids, labels, len(features))
    if len(targets.unique()) < 2:
        raise UserError(
            f"{len(targets)} labels of {len(targets.unique())} classes: rounds ask a model of two classes at least; "
            "choose by a method without labels, such as --method facility"
        )
    name = advise_rounds(targets, budget)[0] if method == "auto" else method
    row = METHODS.get(name)
    if row is None or not row.rounds:
        rounds = ", ".join(other for other, some in METHODS.items() if some.rounds)
        raise UserError(f"method {method!r} asks no model: use auto or one of {rounds}")
    if base is None:
        world = world or World(0, 1, pool_device(features, None))
        base = smoothing_of(features, spread=False, graph=graph, world=world, progress=progress)
    probe = fit_smoothed(base, targets, known, classes=classes, correct=False)
    said = at_temperature(probe.pool, probe.temperature)
    config = config or row.config()
    more = {"smoothed": rows_of(base, getattr(config, "steps", None))} if row.smoothed else {}
    taken = torch.cat([known, check_ids(labelled, len(features), "labelled")]).unique()

    def choose() -> torch.Tensor:
        return row.select(
            features, budget, config=config, labelled=taken, excluded=excluded, seed=seed,
            device=base.world.device, progress=progress, probabilities=said, **more,
        ).cpu()  # fmt: skip

    return Next(on_main(base.world, choose), name, said)


def rows_of(base: Smoothing, steps: int | None) -> torch.Tensor | None:
    """The pool's rows (N, D), smoothed `steps` times over its graph, None: as often as they are; None for 0."""
    if steps is None or steps == len(base.levels):
        return base.smoothed
    return smooth(base.features, base.graph, steps)[0] if steps else None
