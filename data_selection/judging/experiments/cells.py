"""The cells of an experiment's plan: which list of which pool, judged how, and the digest that tells equal ones."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_selection.common.checks import check_finite
from data_selection.common.errors import UserError, meant
from data_selection.common.feature_table import FeatureTable, labels_like, load_features
from data_selection.common.subset_files import budget_from_percent, describe
from data_selection.images.dataset_files import imbalanced_rows
from data_selection.images.record import load_record
from data_selection.judging.experiments.hashes import Hashes
from data_selection.judging.experiments.list_settings import told_settings
from data_selection.judging.experiments.plan import Plan, PoolSpec, Row, method_of, settings_of
from data_selection.methods.configs import Config
from data_selection.methods.table import Method

if TYPE_CHECKING:
    from data_selection.judging.smoothed import Outside, Smoothing


@dataclass(frozen=True)
class Kind:
    """A way to judge a list.

    scores: the names of its results, the first one is reported where the config does not say. frozen: it needs the
    features and labels of pool and test images. check: (settings, pool, where errors say it is) -> settings, complete;
    UserError for what is not understood. key: (these, hash of a file) -> what counts besides list, test file and seed.
    run: (Task) -> {score: percent}, and what else is worth a record.
    """

    scores: tuple[str, ...]
    frozen: bool
    check: Callable[[dict[str, Any], PoolSpec, str], dict[str, Any]]
    run: "Callable[[Task], dict[str, Any]]"
    key: Callable[[dict[str, Any], Callable[[Path], str]], dict[str, Any]] = lambda settings, _: dict(settings)


class LoadedPool:
    """A pool's feature files, opened. Rows are counted in the cut where the pool has one; lists hold the file's."""

    def __init__(self, spec: PoolSpec, hashes: Hashes) -> None:
        self.spec, self.hashes = spec, hashes
        self.train = load_features(spec.train)
        self.test: FeatureTable | None = load_features(spec.test) if spec.test else None
        widths = [table.features.shape[1] for table in (self.train, self.test) if table is not None]
        if len(set(widths)) > 1:
            raise UserError(
                f"pool {spec.name!r}: {spec.train} has {widths[0]} columns and {spec.test} {widths[1]}: extract both "
                "by the same backbone"
            )
        self.train_hash = hashes.of(spec.train)
        self.test_hash = hashes.of(spec.test) if spec.test else None
        self.smoothings: dict[tuple[int, int], tuple[Smoothing, Outside]] = {}

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The file's rows that are in the pool, ascending (M,)."""
        if self.spec.imbalance is None:
            return np.arange(len(self.train))
        labels = self.known_labels()
        sizes = np.bincount(labels[labels >= 0])
        return np.sort(imbalanced_rows(labels.tolist(), self.spec.imbalance, len(sizes), int(sizes.max())))

    @functools.cached_property
    def features(self) -> np.ndarray:
        """(M, D): the memory map itself where there is no cut."""
        return self.train.features if self.spec.imbalance is None else self.train.features[self.rows]

    @functools.cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(features (M, D), labels (M,), test features (Q, D), test labels (Q,)): float32 and int64, in memory.

        Raises UserError for a value that is not finite, and for missing labels.
        """
        assert self.test is not None
        labels = torch.from_numpy(self.known_labels()[self.rows])
        test_labels = torch.from_numpy(labels_like(self.test, self.train))
        features = torch.from_numpy(np.array(self.features, dtype=np.float32))
        test = self.test.tensor()
        check_finite(features, ids=torch.from_numpy(self.rows))
        check_finite(test)
        return features, labels, test, test_labels

    def smoothed(self, k: int, steps: int) -> "tuple[Smoothing, Outside]":
        """The pool and the test features smoothed by it, which needs no labels: made once for all lists.

        The neighbours are those kept beside the feature file, where the pool is not a cut of it.
        """
        from data_selection.judging.smoothed import SPREAD_NEIGHBOURS, smoothing_of
        from data_selection.nearest.stored_graph import pool_graph

        if (k, steps) not in self.smoothings:
            features, _, test, _ = self.tensors
            graph = None if self.spec.imbalance is not None else pool_graph(self.train, max(k, SPREAD_NEIGHBOURS))
            pool = smoothing_of(features if graph is None else self.train.features, k=k, steps=steps, graph=graph)
            self.smoothings[k, steps] = pool, pool.outside(test)
        return self.smoothings[k, steps]

    @property
    def classes(self) -> int:
        """Their number, in pool and test images together."""
        _, labels, _, test_labels = self.tensors
        return int(max(labels.max(), test_labels.max())) + 1

    def unknown_classes(self) -> list[int]:
        """The classes of test images that no image of the pool has, of which no list can teach anything."""
        if self.test is None or self.train.labels is None or self.test.labels is None:
            return []
        found = np.setdiff1d(labels_like(self.test, self.train), self.train.labels[self.rows])
        return [int(label) for label in found if label >= 0]

    def copied(self) -> list[str]:
        """The test images that are exact copies of the pool's: names, or rows, by the records beside both files."""
        if self.spec.test is None or self.test is None:
            return []
        pool, test = load_record(self.spec.train, len(self.train)), load_record(self.spec.test, len(self.test))
        if pool is None or test is None:
            return []
        known = {pool.hashes[row] for row in self.rows.tolist()} - {""}
        names = test.names or range(len(test))
        return [str(name) for name, value in zip(names, test.hashes, strict=True) if value in known]

    def known_labels(self) -> np.ndarray:
        """Labels of all of the pool's rows (N,). Raises UserError where it, or the test images' file, has none."""
        bare = next(
            (table.path for table in (self.train, self.test) if table is not None and table.labels is None), None
        )
        if bare is not None:
            raise UserError(
                f"feature file {bare} has no labels, and accuracy can't be judged without: extract again with --labels "
                "folders, where each image lies in a folder of its class, or --labels FILE, a CSV of file,label"
            )
        assert self.train.labels is not None
        return self.train.labels

    def check_labels(self) -> None:
        """Raise UserError where images of the pool, or those to judge by, have no label."""
        self.known_labels()
        for table, rows in ((self.train, self.rows), (self.test, slice(None))):
            labels = None if table is None else table.labels[rows] if table.labels is not None else None
            if table is not None and labels is not None and (bare := int((labels < 0).sum())):
                raise UserError(
                    f"{bare} of the {len(labels)} images in {table.path} have no label, and nothing can be judged by "
                    "them: label them, or extract without them"
                )

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What the record of each of its lists begins with."""
        return describe(self.train, method="", config={}, seed=0, budget=0)


@dataclass(frozen=True)
class Cell:
    """One number to find. pool, method, evaluation: names in the config; asked: the budget as it says it.

    chosen: what the list depends on, judged: what the evaluation adds. score: which of its results is the number.
    settings: what the evaluation is given.
    """

    pool: str
    method: str
    evaluation: str
    budget: int
    asked: str
    seed: int
    score: str
    chosen: Mapping[str, Any] = dataclasses.field(repr=False)
    judged: Mapping[str, Any] = dataclasses.field(repr=False)
    settings: Mapping[str, Any] = dataclasses.field(repr=False)
    select: Method = dataclasses.field(repr=False)
    config: Config = dataclasses.field(repr=False)

    @functools.cached_property
    def list_digest(self) -> str:
        """Of the list: equal for all evaluations of it."""
        return digest_of(self.chosen)

    @functools.cached_property
    def digest(self) -> str:
        """Of all that the result depends on; names and the score do not count."""
        return digest_of([self.chosen, self.judged])


@dataclass(frozen=True)
class Task:
    """What an evaluation is given. ids: (n,) int64 rows of the pool, ascending; file: the list, in the file's rows.

    settings: what `check` returned. folder: of the run alone, kept when it is killed. device: as the user says it.
    """

    pool: LoadedPool
    ids: torch.Tensor
    file: Path
    seed: int
    settings: Mapping[str, Any]
    folder: Path
    device: str = "auto"


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def make_cells(plan: Plan, pools: Mapping[str, LoadedPool], kinds: Mapping[str, Kind]) -> list[Cell]:
    """The cells of a plan, in the order in which they are computed: pool, seed, budget, method, evaluation.

    Raises UserError for a budget beyond a pool, for settings of an evaluation that are not understood, and where two
    budgets are one number but not one result.
    """
    cells = []
    for pool in plan.pools:
        loaded = pools[pool.name]
        for seed in plan.seeds:
            for asked in pool.budgets or plan.budgets:
                budget = budget_in(loaded, asked)
                judges = [
                    (row.name, *judge_of(row, loaded, asked, kinds, plan.path))
                    for row in plan.evaluations
                    if row.pools is None or pool.name in row.pools
                ]
                for row in plan.methods:
                    if row.pools is None or pool.name in row.pools:
                        method, config = method_of(row, pool.name, asked, plan.path)
                        chosen = {
                            "features": loaded.train_hash, "imbalance": loaded.spec.imbalance, "method": row.kind,
                            "config": told_settings(method, config, len(loaded.rows), budget), "budget": budget,
                            "seed": seed,
                        }  # fmt: skip
                        cells += [
                            Cell(pool.name, row.name, name, budget, str(asked), seed, score, chosen, judged, settings,
                                 method, config)
                            for name, score, judged, settings in judges
                        ]  # fmt: skip
    first: dict[tuple[str, str, str, int, int], Cell] = {}
    for cell in cells:
        other = first.setdefault((cell.pool, cell.method, cell.evaluation, cell.budget, cell.seed), cell)
        if other.digest != cell.digest:
            raise UserError(
                f"{plan.path}: budgets {other.asked} and {cell.asked} are both {cell.budget} images of pool "
                f"{cell.pool}, with other settings of {cell.method} or {cell.evaluation}: leave one out, or settle "
                "them alike"
            )
    return cells


def budget_in(pool: LoadedPool, asked: int | str) -> int:
    """The number of images that a budget of the config means in a pool."""
    size = len(pool.rows)
    budget = asked if isinstance(asked, int) else budget_from_percent(size, asked.rstrip("% "))
    if budget > size:
        raise UserError(f"budget {asked} exceeds the {size} images of pool {pool.spec.name}: choose a smaller one")
    return budget


def judge_of(
    row: Row, pool: LoadedPool, asked: int | str, kinds: Mapping[str, Kind], path: Path
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(score, what the result depends on besides list and seed, settings) of an evaluation; UserError for mistakes."""
    where = f"{path}: evaluation {row.name!r}"
    if row.kind not in kinds:
        raise UserError(f"{where}: kind {row.kind!r} is none of {', '.join(kinds)}{meant(row.kind, kinds)}")
    kind = kinds[row.kind]
    settings = settings_of(row, pool.spec.name, asked)
    score = settings.pop("score", kind.scores[0])
    if score not in kind.scores:
        raise UserError(f"{where}: score {score!r} is none of {', '.join(kind.scores)}{meant(str(score), kind.scores)}")
    if kind.frozen and pool.test_hash is None:
        raise UserError(f"{where}: pool {pool.spec.name!r} needs test: a feature file of images to evaluate on")
    if kind.frozen:
        pool.check_labels()
    if kind.frozen and pool.test_hash == pool.train_hash:
        raise UserError(f"{where}: train and test of pool {pool.spec.name!r} are one file: test needs other images")
    test = {"test": pool.test_hash} if kind.frozen else {}
    complete = kind.check(settings, pool.spec, where)
    return score, {"kind": row.kind, **kind.key(complete, pool.hashes.of), **test}, complete
