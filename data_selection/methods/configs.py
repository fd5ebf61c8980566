"""What every method can be set to. Imports nothing slow: command lines are built from it before any work."""

import math
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast, get_args

from data_selection.common.errors import UserError

DISTANCES = ("euclidean", "cosine", "product", "KLDiv")
INITS, SCHEDULERS = ("random", "fps", "kmeans++"), ("none", "cosine")
OBJECTIVES = ("released", "paper")
SPEED = ("slice", "max_memory")  # fields that change speed and memory alone, which no file name tells
LEAST_MEMORY = 0.01  # GB: with less, blocks are of few rows, and a choice takes a hundred times as long


def check_ranges(config: object, **ranges: tuple[float, float | None]) -> None:
    """Raise UserError where a field is not finite or outside its (lowest, highest), None: no end; None passes."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and low <= value and (high is None or value <= high)):
            raise UserError(f"{name} {value} is outside {low:g}..{'' if high is None else f'{high:g}'}")


def kind_of(field: "Field[Any]") -> type:
    """int, float, str or bool: the type of a config's field, None apart."""
    (kind,) = [kind for kind in get_args(field.type) or (field.type,) if kind is not type(None)]
    return cast("type", kind)


@dataclass(frozen=True)
class RandomConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class FarthestConfig:
    """distance: between unit features, `euclidean`, `cosine` (1 - cos), `product` or `KLDiv` (of softmaxes)."""

    distance: str = "euclidean"

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise UserError(f"distance {self.distance!r} is unknown: use one of {', '.join(DISTANCES)}")


@dataclass(frozen=True)
class KMeansConfig:
    """max_iter: Lloyd or minibatch epochs. batch_size: rows per minibatch; small pools (4 of them) use all rows."""

    max_iter: int = 100
    batch_size: int = 8192

    def __post_init__(self) -> None:
        check_ranges(self, max_iter=(1, None), batch_size=(1, None))


@dataclass(frozen=True)
class ActiveFTConfig:
    """How to choose; the defaults are those of both releases' CIFAR programs.

    temperature: of the similarity softmax. max_iter: Adam steps. lr: Adam's learning rate. init: `random` (pool rows
    drawn by random.Random(seed)), `fps` (farthest points) or `kmeans++`. distance: of `fps`; the objective is always
    cosine. scheduler: `none` or `cosine` (down to 1e-6). balance: weight of the repulsion. batch_size: pool rows per
    iteration, None for all. slice: rows per block of a product, None for automatic; never changes the result.
    max_memory: working memory in GB (1e9 bytes), 0.01 at least, None for a quarter of what is free. threshold: stop
    once the loss moved by less over 10 iterations, None or 0 never (the released programs ignore theirs). objective:
    `released` (self term, others held fixed, weighted by population) or `paper` (equations 5-7).
    """

    temperature: float = 0.07
    max_iter: int = 300
    lr: float = 1e-3
    init: str = "random"
    distance: str = "euclidean"
    scheduler: str = "none"
    balance: float = 1.0
    batch_size: int | None = None
    slice: int | None = None
    max_memory: float | None = None
    threshold: float | None = None
    objective: str = "released"

    def __post_init__(self) -> None:
        for name in ("temperature", "max_iter", "lr", "balance", "batch_size", "slice"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} {value} must be above 0 and finite")
        check_ranges(self, max_memory=(LEAST_MEMORY, None))
        if self.temperature < 1e-4:  # float32 similarities are rounded to 6e-8: below this, rounding would decide
            raise UserError(f"temperature {self.temperature} is below 0.0001: choose a higher one")
        if self.threshold is not None and not self.threshold >= 0:
            raise UserError(f"threshold {self.threshold} must be 0 (never stop early) or above")
        choices = {"init": INITS, "distance": DISTANCES, "scheduler": SCHEDULERS, "objective": OBJECTIVES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}")


class ActiveFTPreset(NamedTuple):
    """A released program's defaults; percent: 0-100 of the pool."""

    config: ActiveFTConfig
    percent: float


ACTIVEFT_PRESETS = {
    "activeft_cifar": ActiveFTPreset(ActiveFTConfig(), 2.0),
    "activeft_imagenet": ActiveFTPreset(ActiveFTConfig(max_iter=100, batch_size=100_000), 1.0),
    "bilaf_cifar": ActiveFTPreset(ActiveFTConfig(), 0.5),
    "bilaf_imagenet": ActiveFTPreset(ActiveFTConfig(max_iter=100, batch_size=100_000), 1.0),
}


CHOICES = {
    "neighbours": ("cluster", "position"),
    "ring_start": ("core", "nearest"),
    "ring_end": ("all", "whole"),
    "rounding": ("share", "kept"),
    "opponent": ("all", "nearest"),
    "intra": ("remaining", "class"),
    "removal": ("remaining", "class"),
    "budget_rule": ("remainder", "smallest"),
}


@dataclass(frozen=True)
class BiLAFConfig:
    """Settings of BiLAF; the defaults are the published algorithm, the second word of each choice the released program.

    core_number: cores, counted in the budget; None: half of it, at most 0.5 % of the pool or 50. Not read where ids are
    given.
    density_number: neighbours of the density (k of the paper). ring_share: of a class in one ring, a fraction 0-1
    (P_in). remove_share: of each class removed as noise, a fraction 0-1 (P_rm). penalty: of an opponent met again
    (delta).

    Each field below is one deviation of the released program, so that each can be measured alone:
    normalised: features at unit length in this stage (released: raw).
    neighbours: density is the mean distance to the k nearest samples of the growing `cluster`; `position`: their
        positions in the cluster's list are taken for positions in the class, so other samples are measured.
    ring_start: the cluster starts from the `core` alone, or from the whole first ring of samples `nearest` to it.
    ring_end: rings go on until `all` are in, or stop after the last `whole` ring, whose rest is then removed too.
    small_class: classes with fewer members are not denoised (paper: 0, none is exempt; released: 10).
    rounding: remove floor(remove_share x members), the `share`, or keep floor((1 - remove_share) x members), `kept`.
    opponent: the score's minimum over `all` other cores with their penalties (Eq. 7), or the `nearest` core only.
    intra: the mean distance to the candidates `remaining` (Alg. 1), or to the whole denoised `class`.
    removal: each pick takes |U| / B_i candidates away, U being those `remaining` (Alg. 1) or the denoised `class`.
    budget_rule: shares by largest `remainder`, or rounded down and the rest to the `smallest` share, one by one.

    nested: the list of a budget begins with the list of every smaller one.
    max_memory: GB of working memory, 0.01 at least, None: a quarter of what is free; it never changes the result.

    Raises UserError for a value outside its range.
    """

    core_number: int | None = None
    density_number: int = 10
    ring_share: float = 0.1
    remove_share: float = 0.1
    penalty: float = 1.1
    normalised: bool = True
    neighbours: str = "cluster"
    ring_start: str = "core"
    ring_end: str = "all"
    small_class: int = 0
    rounding: str = "share"
    opponent: str = "all"
    intra: str = "remaining"
    removal: str = "remaining"
    budget_rule: str = "remainder"
    nested: bool = False
    max_memory: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: use {' or '.join(allowed)}")
        check_ranges(
            self, core_number=(1, None), density_number=(1, None), ring_share=(0, 1), remove_share=(0, 1),
            penalty=(1, None), small_class=(0, None), max_memory=(LEAST_MEMORY, None),
        )  # fmt: skip


_RELEASED = BiLAFConfig(
    normalised=False, neighbours="position", ring_start="nearest", ring_end="whole", small_class=10, rounding="kept",
    opponent="nearest", intra="class", removal="class", budget_rule="smallest",
)  # fmt: skip

BILAF_PRESETS = {
    "paper": BiLAFConfig(),
    "released": _RELEASED,
    "released_imagenet": replace(_RELEASED, remove_share=0.2),
}


class Config(Protocol):
    """Any of these, and those of the other modules: a frozen dataclass whose docstring says `field: what it sets`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


AnyConfig = TypeVar("AnyConfig", bound=Config)


def without_speed(config: AnyConfig) -> AnyConfig:
    """The config with its fields of SPEED at their defaults: equal for equal lists."""
    return replace(config, **{field.name: field.default for field in fields(config) if field.name in SPEED})
