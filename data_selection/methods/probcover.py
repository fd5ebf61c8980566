"""ProbCover: balls around the chosen images that cover as many images as they can."""

import random

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.clusters import GRID, TILE, fit_clusters, on_grid, resident_rows, tiles
from data_selection.methods.configs_clusters import ProbCoverConfig
from data_selection.nearest.pool_reader import pool_device

ASKED = 2048  # rows whose balls tell the radius
UNIT = GRID**-2  # what half a squared distance is a multiple of, but for its last bit


@full_float32()
def select_probcover(
    features: Features,
    budget: int,
    *,
    config: ProbCoverConfig = ProbCoverConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """Again and again the image whose ball holds most images that no ball holds; (budget,) int64, in order of choice.

    Balls have the radius config.delta among unit features; labelled images have theirs already. Source: Yehuda et al.,
    NeurIPS 2022. Deviations: without a radius, it is the largest that leaves config.purity of the balls of 2,048 random
    images within one cluster of k-means (the paper: of all images, on a grid of radii, with as many clusters as
    classes); of images whose balls hold equally many, which are most of them once few are left to cover, the first in a
    random order is taken (released: in the pool's order, which gives the first classes of a pool that is sorted by
    them), and so is the rest once every image is covered; coordinates are rounded to 1/2048, so that no order of
    summation shows. No edge is stored: all products of the pool are taken about one and a half times, whatever the
    budget.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    device = pool_device(features, device)
    kept = torch.cat([labelled, candidates]).sort().values
    rows = resident_rows(features, kept, device, "probcover")
    if config.delta is None:
        asked = torch.tensor(sorted(random.Random(seed).sample(range(len(rows)), min(ASKED, len(rows)))), device=device)
        _, cluster = fit_clusters(rows, min(config.clusters, len(rows)), config, seed, progress)
        balls = Balls(on_grid(rows), 0.0)
        balls.reach = pure_reach(balls, cluster.to(device), asked, config.purity)
    else:
        balls = Balls(on_grid(rows), config.delta)
    with open_bar(progress, len(rows), "balls", "image") as bar:
        gain = balls.degrees(bar.update)
    barred = torch.zeros(len(rows), dtype=torch.bool, device=device)
    bare = ~barred
    left = len(rows)  # how many are bare
    turn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(device)  # among equal images
    for place in torch.searchsorted(kept, labelled).tolist():
        left = balls.cover(place, int(gain[place]), bool(bare[place]), left, bare, gain)
        barred[place] = True
    chosen: list[int] = []
    with open_bar(progress, budget, "ProbCover", "image") as bar:
        while len(chosen) < budget:
            gain[barred] = -1
            most = gain.max()
            place = torch.where(gain == most, turn, len(rows)).argmin()
            itself = bare.index_select(0, place[None])[0]
            read = torch.stack([most.long(), place, itself.long()]).tolist()  # the one wait for a GPU
            count, best, own = map(int, read)
            if count <= 0:
                break
            left = balls.cover(best, count, bool(own), left, bare, gain)
            barred[best] = True
            chosen.append(best)
            bar.update(1)
    rest = (~barred).nonzero()[:, 0]
    chosen += rest[turn[rest].argsort()].tolist()[: budget - len(chosen)]
    return check_selection(kept[torch.tensor(chosen)], budget, len(features), labelled, excluded)


class Balls:
    """Balls of one radius around rows (n, D) of the grid; reach: half the squared radius, a whole number of UNIT."""

    def __init__(self, rows: torch.Tensor, delta: float) -> None:
        self.rows = rows
        self.half = rows.square().sum(1) / 2  # (n,) exact, as all that follows
        self.reach = int(delta**2 / 2 / UNIT) * UNIT

    def half_squares(self, some: torch.Tensor, part: slice) -> torch.Tensor:
        """Half the squared distances of rows `some` (b,) to those of a slice, (b, c), less the half of `some`."""
        return torch.addmm(self.half[part], self.rows[some], self.rows[part].T, alpha=-1)

    def within(self, some: torch.Tensor, part: slice) -> torch.Tensor:
        """1 where a row of the slice is in the ball of one of `some`, else 0; (b, c) float32."""
        return self.half_squares(some, part).le_((self.reach - self.half[some])[:, None])

    def degrees(self, update: object = None) -> torch.Tensor:
        """How many rows are in each ball, (n,) float32."""
        count = len(self.rows)
        degree = torch.zeros(count, device=self.rows.device)
        numbers = torch.arange(count, device=self.rows.device)
        for start in range(0, count, TILE[0]):
            some = numbers[start : start + TILE[0]]
            stop = start + len(some)
            degree[start:stop] += self.within(some, slice(start, stop)).sum(1)
            for _, part in tiles(1, count - stop):  # what is beyond the diagonal counts for both sides
                inside = self.within(some, slice(stop + part.start, stop + part.stop))
                degree[start:stop] += inside.sum(1)
                degree[stop + part.start : stop + part.stop] += inside.sum(0)
            if callable(update):
                update(len(some))
        return degree

    def cover(self, place: int, count: int, own: bool, left: int, bare: torch.Tensor, gain: torch.Tensor) -> int:
        """Take the ball of a row: what it holds is no longer bare (n,) bool, and counts for no gain (n,); in place.

        count: how many bare rows the ball holds; own: whether the row itself is one; left: how many are bare in all.
        Returns how many still are. A GPU is not waited for.
        """
        ball = self.within(torch.full((1,), place, device=self.rows.device), slice(0, len(self.rows)))[0]
        fresh = ball.bool() & bare
        bare &= ~fresh
        left -= count
        if left < count:  # then what is left is counted anew
            gain.zero_()
            self.add(bare, left, 1, gain)
        else:
            if own:
                gain -= ball
                fresh[place] = False
            self.add(fresh, count - own, -1, gain)
        return left

    def add(self, which: torch.Tensor, count: int, sign: int, gain: torch.Tensor) -> None:
        """Add sign times the number of the `count` rows `which` (n,) bool in every ball to gain (n,), in place."""
        if which.is_cuda:  # nonzero would wait
            numbers = which.byte().sort(descending=True, stable=True).indices[:count]
        else:
            numbers = which.nonzero()[:, 0]
        for some, part in tiles(count, len(which)):
            gain[part].add_(self.within(numbers[some], part).sum(0), alpha=sign)


def pure_reach(balls: Balls, cluster: torch.Tensor, asked: torch.Tensor, purity: float) -> float:
    """The largest reach with which a share `purity` of the balls of rows `asked` (m,) hold rows of one cluster alone.

    cluster: (n,) numbers. Returns a whole number of UNIT; that of the whole sphere where there is one cluster.
    """
    nearest = torch.full((len(asked),), 2.5, device=asked.device)  # beyond the largest half square, 2
    for some, part in tiles(len(asked), len(cluster)):
        square = balls.half_squares(asked[some], part) + balls.half[asked[some]][:, None]
        square[cluster[asked[some]][:, None] == cluster[part]] = 2.5
        nearest[some] = torch.minimum(nearest[some], square.amin(1))
    impure = int((1 - purity) * len(asked) + 1e-9)  # balls that may hold others
    bound = nearest.sort().values[min(impure, len(asked) - 1)].item()
    return max(0.0, (-(-bound // UNIT) - 1) * UNIT)  # just below it
