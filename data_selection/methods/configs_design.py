"""What the methods by kernels, by optimal design and by a model's doubt can be set to. Imports nothing slow."""

from dataclasses import dataclass

from data_selection.methods.configs import check_ranges

CUT = 5  # candidates for one to choose, at least
SERVED = 3  # clients for one label, at least: where each label has its own client, a random choice covers as well


@dataclass(frozen=True)
class FacilityConfig:
    """scales: Gaussian kernels added up, the widest and those of half, a quarter, ... of its width.

    width: of the widest, in units of the pool's median distance. clients: random pool rows that are to be covered, at
    least 3 times the labels. candidates: random rows to choose among, at least 5 times the budget.
    """

    scales: int = 3
    width: float = 1.0
    clients: int = 10_000
    candidates: int = 10_000

    def __post_init__(self) -> None:
        check_ranges(self, scales=(1, 8), width=(0.001, None), clients=(1, None), candidates=(1, None))


@dataclass(frozen=True)
class MaxHerdingConfig(FacilityConfig):
    """width: of the Gaussian kernel, in units of the pool's median distance.

    What else there is to set is as for facility location.
    """

    scales: int = 1


@dataclass(frozen=True)
class DesignConfig:
    """noise: lambda, variance of a label's noise, that of a prediction without labels being 1.

    landmarks: random rows of the Nystroem features. components: of these features kept, for the rows and for the
    smoothed rows. steps: of smoothing over the graph of 10 neighbours, 0: none, None: 2, but 0 in pools above 200,000
    rows, where the graph would take hours, unless a model of the labels needs it anyhow. candidates: random rows to
    choose among, at least 5 times the budget.
    """

    noise: float = 0.1
    landmarks: int = 1_200
    components: int = 400
    steps: int | None = None
    candidates: int = 50_000

    def __post_init__(self) -> None:
        check_ranges(self, noise=(1e-6, None), landmarks=(1, None), components=(1, None))
        check_ranges(self, steps=(0, None), candidates=(1, None))


@dataclass(frozen=True)
class VOptimalConfig(DesignConfig):
    """core: images, the labelled among them, that facility location chooses first.

    What else there is to set is in DesignConfig.
    """

    core: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, core=(0, None))


@dataclass(frozen=True)
class WeightedConfig(DesignConfig):
    """floor: least weight of a row, which one without doubt has.

    What else there is to set is in DesignConfig.
    """

    floor: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, floor=(1e-9, None))


@dataclass(frozen=True)
class MarginConfig:
    """Nothing to set."""


@dataclass(frozen=True)
class MarginClustersConfig:
    """pool: rows clustered, in units of the budget.

    steps: of smoothing over the graph of 10 neighbours, 0: none, None: 2, but 0 in pools above 200,000 rows, where the
    graph would take hours, unless a model of the labels needs it anyhow.
    """

    pool: int = 10
    steps: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, pool=(1, None), steps=(0, None))


@dataclass(frozen=True)
class UncertaintyHerdingConfig:
    """clients: random pool rows to cover, at least 3 times the labels.

    candidates: random rows to choose among, at least 5 times the budget.
    least: the narrowest kernel, a distance between unit rows; else it is the smallest one between labelled rows.
    """

    clients: int = 6_000
    candidates: int = 15_000
    least: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, clients=(1, None), candidates=(1, None), least=(0.001, None))


@dataclass(frozen=True)
class HalfConfig(WeightedConfig):
    """share: of the budget that is chosen by weighted V-optimal design, 0-1.

    pool: rows clustered, in units of the budget.

    What else there is to set is in WeightedConfig.
    """

    share: float = 0.5
    pool: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, share=(0, 1), pool=(1, None))
