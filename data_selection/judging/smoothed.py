"""A probe on features averaged over the pool's neighbours, and its labels spread over them: more from few labels.

The unlabelled pool says which images are alike; labels are read off the averaged features, then corrected by the
neighbours' where the labels say that this helps. Every choice is made on the labels alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from data_selection.common.checks import check_labelled
from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from data_selection.judging.calibration import (
    TEMPERATURES,
    at_temperature,
    calibration_error,
    log_loss,
    temperature,
)
from data_selection.judging.correction import (
    Choice,
    HeldOut,
    choose_correction,
    held_out_corrected,
    spread_labels,
)
from data_selection.judging.probe import (
    GRID,
    SMOOTH_C,
    Probe,
    choose_c,
    enough_to_ask,
    fit_probe,
    folds,
    held_out,
)
from data_selection.nearest.graph import (
    NEIGHBOURS,
    SPREAD_NEIGHBOURS,
    Finder,
    Graph,
    build_graph,
    nearest_neighbours,
    outside_average,
    smooth,
    smooth_outside,
    times,
)
from data_selection.nearest.neighbour_files import Neighbours, row_hashes
from data_selection.nearest.pool_reader import pool_device, unit_mean, working_memory
from data_selection.nearest.similarity import about, normalise, read_rows

__all__ = [
    "GRID", "SMOOTH_C", "TEMPERATURES", "Probe", "SmoothedProbe", "Smoothing", "at_temperature",
    "calibration_error", "choose_c", "fit_probe", "fit_smoothed", "folds", "held_out", "log_loss", "smoothing_of",
    "spread_labels", "temperature",
]  # fmt: skip


# Labels a class from which on C is cross-validated: with 10 a class that lost up to 1.8 points to SMOOTH_C, with 50 or
# more 0.4 at most (configs/README.md).
SURE_OF_C = 50


class Outside(NamedTuple):
    """Rows from outside the pool. smoothed: (Q, D); average: (Q, N), over the pool's labels; alone: (Q,), who has none.

    The last two are None where the pool has no graph for spreading.
    """

    smoothed: torch.Tensor
    average: sparse.csr_array | None
    alone: np.ndarray | None


@dataclass(frozen=True)
class Smoothing:
    """A pool, smoothed: what needs no labels, made once for all lists of them.

    mean: (D,) of the pool's unit rows. features: (N, D) the rows about it, at unit length; smoothed: (N, D); levels: of
    `smooth`. graph, spread: of k neighbours, and of those for spreading labels, None where that is not asked for.
    """

    k: int
    mean: torch.Tensor
    features: torch.Tensor
    smoothed: torch.Tensor
    levels: list[torch.Tensor]
    graph: Graph
    spread: Graph | None
    world: World

    @property
    def wide(self) -> int:
        """Neighbours that a row from outside the pool is asked for."""
        return self.k if self.spread is None else max(self.k, SPREAD_NEIGHBOURS)

    @cached_property
    def finder(self) -> Finder:
        """Looks for neighbours in the pool; made once, however many batches of queries come."""
        limit = working_memory(None, self.features.device)
        return Finder(self.features, self.wide, self.features.device, limit, queries=self.features[:0])

    def neighbours(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index, similarity), (Q, wide) each, in the pool, of rows (Q, D) about the mean; ranks share the work."""
        if self.world.size > 1:
            return nearest_neighbours(self.features, self.wide, queries=rows, world=self.world)
        found = [self.finder.find_rows(some) for some in normalise(rows).split(self.finder.step)]
        return torch.cat([index for index, _ in found]), torch.cat([similarity for _, similarity in found])

    def outside(self, queries: torch.Tensor | np.ndarray) -> Outside:
        """Raw features (Q, D) from outside the pool, smoothed by it; with a World of several ranks all must call it.

        Raises UserError where a value is not finite or the dimensions differ.
        """
        if queries.ndim != 2 or queries.shape[1] != len(self.mean):
            raise UserError(f"queries of shape {tuple(queries.shape)}: the pool's {len(self.mean)} columns are needed")
        rows = about(read_rows(queries, 0, len(queries), self.features.device), self.mean)
        index, similarity = self.neighbours(rows)
        smoothed = smooth_outside(rows, self.levels, index[:, : self.k], similarity[:, : self.k], self.graph)
        if self.spread is None:
            return Outside(smoothed, None, None)
        part = slice(None), slice(SPREAD_NEIGHBOURS)
        return Outside(smoothed, *outside_average(index[part], similarity[part], self.spread))


def smoothing_of(
    features: torch.Tensor | np.ndarray,
    *,
    k: int = NEIGHBOURS,
    steps: int = 2,
    spread: bool = True,
    graph: Neighbours | None = None,
    world: World | None = None,
    progress: Callable[..., Any] | None = None,
) -> Smoothing:
    """The Smoothing of a pool's raw features (N, D); spread: with the graph that labels are spread over.

    Others as for fit_smoothed. Raises UserError where the graph does not fit the pool.
    """
    if k < 1 or steps < 0:
        raise UserError(f"k {k} and steps {steps}: at least 1 neighbour and 0 steps are needed")
    world = world or World(0, 1, pool_device(features, None))
    wide = max(k, SPREAD_NEIGHBOURS) if spread else k
    if graph is None:
        mean = unit_mean(features, world.device)
    else:
        check_graph(graph, features, wide)
        mean = graph.centre.to(world.device)
    rows = about(read_rows(features, 0, len(features), world.device), mean)
    if graph is None:
        index, similarity = nearest_neighbours(features, wide, world=world, centre=mean, progress=progress)
    else:
        index, similarity = graph.index.to(world.device), graph.similarity.to(world.device)
    near = build_graph(index[:, :k], similarity[:, :k])
    smoothed, levels = smooth(rows, near, steps)
    far = build_graph(index[:, :SPREAD_NEIGHBOURS], similarity[:, :SPREAD_NEIGHBOURS]) if spread else None
    return Smoothing(k, mean, rows, smoothed, levels, near, far, world)


@dataclass(frozen=True)
class SmoothedProbe:
    """What fit_smoothed learned. pool: (N, C) float32 probabilities of the pool; corrected: the same after spreading.

    Neither is calibrated: temperature and corrected_temperature (of what is half corrected) make predictions mean what
    they say; 1 where there were too few labels to ask. choice: whether predictions are corrected, and why. probe, c:
    the classifier of smoothed features and its strength. held: of the labelled rows, by probes that did not see them,
    in the order of ids; None where nobody was asked. base: the pool's Smoothing.
    """

    pool: torch.Tensor
    corrected: torch.Tensor | None
    probe: Probe
    c: float
    base: Smoothing
    choice: Choice
    temperature: float
    corrected_temperature: float
    held: HeldOut | None

    def pool_probabilities(self) -> torch.Tensor:
        """The pool's probabilities (N, C) as chosen, calibrated."""
        if self.choice.corrected and self.corrected is not None:
            return at_temperature(self.corrected, self.corrected_temperature)
        return at_temperature(self.pool, self.temperature)

    def predict(
        self, queries: torch.Tensor | np.ndarray | Outside, corrected: bool | None = None, calibrated: bool = True
    ) -> torch.Tensor:
        """Probabilities (Q, C) float32 of raw features (Q, D) from outside the pool, or of what base.outside made.

        corrected: half the probe's, half the mean of the neighbours' corrected ones; None: as chosen. calibrated: at
        the temperature that the labels gave. Raises UserError where correct=False was fitted; others as base.outside.
        """
        corrected = self.choice.corrected if corrected is None else corrected
        if corrected and self.corrected is None:
            raise UserError("corrected predictions need a probe that was fitted with correct=True")
        rows = queries if isinstance(queries, Outside) else self.base.outside(queries)
        result = self.probe.predict(rows.smoothed)
        if not corrected or self.corrected is None or rows.average is None:
            return at_temperature(result, self.temperature) if calibrated else result
        mixed = (result + times(rows.average, self.corrected)) / 2
        mixed = torch.where(torch.from_numpy(rows.alone).to(mixed.device)[:, None], result, mixed)
        return at_temperature(mixed, self.corrected_temperature) if calibrated else mixed


def fit_smoothed(
    features: torch.Tensor | np.ndarray | Smoothing,
    labels: torch.Tensor | np.ndarray | Sequence[int],
    ids: torch.Tensor | np.ndarray | Sequence[int],
    *,
    classes: int | None = None,
    c: float | None = SMOOTH_C,
    k: int = NEIGHBOURS,
    steps: int = 2,
    correct: bool | None = True,
    calibrate: bool = True,
    graph: Neighbours | None = None,
    world: World | None = None,
    progress: Callable[..., Any] | None = None,
) -> SmoothedProbe:
    """A probe on the pool's smoothed features, from the labels of some of its rows.

    features: (N, D) raw floats of the whole pool, or its Smoothing, which then says k, steps, graph and world. ids:
    (n,) pool indices; labels: (n,) int64, their classes, below `classes` (default: one more than the highest). c:
    inverse strength of the L2 penalty, None: choose_c from SURE_OF_C labels a class on, SMOOTH_C below. k neighbours
    and `steps` steps of smoothing; correct: also spread labels over the neighbours, None: do so, and let the labels
    decide whether predictions use it (`choice`; True and False leave them uncorrected unless asked for). calibrate:
    find temperatures on held-out labels. graph: the pool's neighbours as stored_graph.pool_graph gives them; None: they
    are looked up. world: its ranks share the search for neighbours, and all get the same. Raises UserError where ids
    and labels, or the graph, do not fit the pool or each other.
    """
    count = len(features.features if isinstance(features, Smoothing) else features)
    rows_known, targets = check_labelled(ids, labels, count)
    order = rows_known.argsort()  # the result does not depend on theirs
    rows_known, targets = rows_known[order], targets[order]
    base = features if isinstance(features, Smoothing) else smoothing_of(
        features, k=k, steps=steps, spread=correct is not False, graph=graph, world=world, progress=progress
    )  # fmt: skip
    smoothed, spread = base.smoothed, None if correct is False else base.spread
    count = int(targets.max()) + 1 if classes is None else classes

    def fit() -> tuple[float, Probe, HeldOut | None]:
        known = smoothed[rows_known.to(smoothed.device)].cpu()
        strength = choose_c(known, targets, each=SURE_OF_C) if c is None else c
        probe, held = fit_probe(known, targets, count, strength), None
        if enough_to_ask(targets) and (calibrate or correct is None):
            if spread is None:
                plain = held_out(known, targets, count, strength)
                held = HeldOut(plain, plain)
            else:
                held = held_out_corrected(smoothed.cpu(), targets, rows_known, count, strength, spread)
        return strength, probe, held

    strength, probe, held = on_main(base.world, fit)
    choice = Choice(False, "not corrected by the neighbours: not asked for")
    if correct is None:
        choice = choose_correction(targets, held)
    heats = [temperature(part.cpu(), targets) for part in held] if held is not None and calibrate else [1.0, 1.0]
    pool = probe.predict(smoothed)
    corrected = None if spread is None else spread_labels(pool, targets, rows_known, spread)
    asked = order.argsort()  # back to the order of the ids as they were given
    held = None if held is None else HeldOut(*(part[asked] for part in held))
    return SmoothedProbe(pool, corrected, probe, strength, base, choice, heats[0], heats[1], held)


def check_graph(graph: Neighbours, features: torch.Tensor | np.ndarray, k: int) -> None:
    """Raise UserError where stored neighbours are of other rows than the pool's, or too few."""
    if graph.index.shape[1] < min(k, len(features) - 1):
        raise UserError(f"a graph of {graph.index.shape[1]} neighbours a row, {k} are needed: look up as many")
    if len(graph.hashes) != len(features) or not np.array_equal(graph.hashes, row_hashes(features)):
        raise UserError(
            f"the graph is of {len(graph.hashes)} other rows than the pool's {len(features)}: look its neighbours up "
            "again by pool_graph"
        )
