"""What the methods that look for clusters, balls and typical images can be set to. Imports nothing slow."""

from dataclasses import dataclass

from data_selection.methods.configs import KMeansConfig, check_ranges


@dataclass(frozen=True)
class TypiClustConfig(KMeansConfig):
    """TypiClust's settings, and those of its k-means.

    clusters: at most so many of k-means, and never more than labels. nearest: images whose mean distance says how
    typical an image is. smallest: clusters of fewer images are left for last.
    """

    clusters: int = 500
    nearest: int = 20
    smallest: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, clusters=(1, None), nearest=(1, None), smallest=(1, None))


@dataclass(frozen=True)
class ProbCoverConfig(KMeansConfig):
    """ProbCover's settings, and those of its k-means.

    delta: radius of a ball among unit features; None: the largest that keeps `purity` of the balls in one cluster.
    clusters: of k-means, in the place of the classes; best their number. purity: share of the balls, a fraction 0-1.
    """

    delta: float | None = None
    clusters: int = 20
    purity: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, delta=(0, 2), clusters=(1, None), purity=(0, 1))


@dataclass(frozen=True)
class HerdingConfig:
    """Kernel herding's settings.

    sigma: width of the Gaussian kernel between unit features. alpha: weight of the pool against the distance among
    the chosen; None: 1 - 1 / sqrt(labels), as in the paper, so that it grows with the budget. sample: images whose
    mean kernel stands for the pool's, all where there are fewer.
    """

    sigma: float = 1.0
    alpha: float | None = None
    sample: int = 50_000

    def __post_init__(self) -> None:
        check_ranges(self, sigma=(0.01, None), alpha=(0, 1), sample=(1, None))


@dataclass(frozen=True)
class ZCoreConfig:
    """ZCore's settings.

    draws: points thrown into random subspaces. dimensions: of a subspace. exponent: a neighbour at distance d of a
    covering image loses in proportion to d to the power -exponent.
    """

    draws: int = 50_000
    dimensions: int = 2
    exponent: float = 4.0

    def __post_init__(self) -> None:
        check_ranges(self, draws=(1, None), dimensions=(1, None), exponent=(0, 6))


@dataclass(frozen=True)
class StratifiedConfig(KMeansConfig):
    """Settings of the stratified choice.

    clusters: strata of k-means, and never more than labels.
    """

    clusters: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, clusters=(1, None))
