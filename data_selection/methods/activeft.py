"""ActiveFT: move centroids over the pool's features, then take the sample nearest to each (Xie et al., CVPR 2023)."""

import math
import random
from collections.abc import Callable, Iterator

import torch

from data_selection.common.checks import check_request, check_selection
from data_selection.common.distributed import World, current_world
from data_selection.common.errors import UserError
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.common.sending import sent
from data_selection.methods.activeft_objective import OBJECTIVES, TABLE_ROWS, add_segment_sums, through_normalisation
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.starts import farthest_point, plus_plus
from data_selection.nearest.assignment import Blocks, distinct_nearest
from data_selection.nearest.pool_reader import UnitPool, pool_device, working_memory
from data_selection.nearest.screening import Search, make_search
from data_selection.nearest.similarity import chunk_rows, normalise

FINAL_LR = 1e-6  # of the cosine schedule
ASSIGN_BYTES = 48 << 20  # larger blocks of the assignment gain nothing
LARGEST = 1e18  # of a centroid's coordinates: the squares of larger ones overflow in float32
CHECKED = 50  # iterations on a GPU between two looks for centroids that left: every look waits for it
PATIENCE = 10  # iterations over which the loss must move by `threshold`

OnIteration = Callable[[int, float, float], object]  # (iteration, learning rate, loss before the step)


@full_float32()
def select_activeft(
    features: Features,
    budget: int,
    *,
    config: ActiveFTConfig = ActiveFTConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
    on_iteration: OnIteration | None = None,
) -> torch.Tensor:
    """Choose `budget` pool samples by ActiveFT; returns their indices, (budget,) int64, ascending.

    features: (N, D) float tensor, array or memory map, raw (rows are normalised here). labelled: samples annotated
    already: centroids that attract and repel but do not move. excluded: samples left out of everything. Under
    torch.distributed every rank must call this with the same arguments; rows are shared out, all get the result.
    on_iteration: called after each step, where given.
    Raises UserError for a wrong request, NaN or infinity. Source: ActiveFT, algorithm 1; the released programs draw
    from an unseeded generator, compute in float32 and leave ties to an unstable sort.
    """
    labelled, candidates = check_request(features, budget, labelled, excluded)
    device = pool_device(features, device)
    world = current_world(device)
    max_bytes = working_memory(config.max_memory, device)
    kept = torch.zeros(len(features), dtype=torch.bool)
    kept[labelled] = kept[candidates] = True  # a sample may be labelled and excluded; it was annotated, so it counts
    ids = None if kept.all() else kept.nonzero()[:, 0]
    if config.batch_size is not None and config.batch_size > kept.sum():
        raise UserError(f"batch_size {config.batch_size} is above the pool's {kept.sum()} images: choose a smaller one")
    count, shared = int(kept.sum()), world.size > 1 and config.batch_size is None
    own = UnitPool.spans(count)[world.rank :: world.size] if shared else None  # those that `optimise` gives this rank
    pool = UnitPool(features, ids, device, max_bytes, own=own)
    place = kept.cumsum(0) - 1  # (N,) index -> position among the kept rows
    fixed = pool.take(place[labelled])  # (L, D)
    start = place[initial(features, budget, candidates, labelled, config, seed, device, max_bytes)]
    units = optimise(pool, start, fixed, config, world, seed, max_bytes, progress, on_iteration)
    barred = torch.ones(pool.count, dtype=torch.bool)
    barred[place[candidates]] = False
    positions = distinct_nearest(pool_blocks(pool, world, config), units, barred, world, min(max_bytes, ASSIGN_BYTES))
    chosen = positions if ids is None else ids[positions]
    return check_selection(chosen.sort().values, budget, len(features), labelled, excluded)


def initial(
    features: Features,
    budget: int,
    candidates: torch.Tensor,
    labelled: torch.Tensor,
    config: ActiveFTConfig,
    seed: int,
    device: torch.device,
    max_bytes: float | None = None,
) -> torch.Tensor:
    """Pool indices of the rows that the centroids start from, (budget,), in parameter order."""
    if config.init == "random":  # the draw of the released programs after random.seed(seed)
        return torch.tensor(random.Random(seed).sample(candidates.tolist(), budget))
    if config.init == "fps":
        return farthest_point(
            features, budget, candidates, labelled, config.distance, seed, device, max_bytes=max_bytes
        )
    return plus_plus(features, budget, candidates, labelled, seed, device, max_bytes)


def optimise(
    pool: UnitPool,
    start: torch.Tensor,
    fixed: torch.Tensor,
    config: ActiveFTConfig,
    world: World,
    seed: int,
    max_bytes: float,
    progress: OpenBar | None = None,
    on_iteration: OnIteration | None = None,
) -> torch.Tensor:
    """Adam on the centroids; returns the free ones at unit length, (K, D) float32.

    start: (K,) positions of the first centroids; fixed: (L, D) unit centroids that do not move. Centroids, their
    moments and all sums are float64, so that neither the number of ranks nor of threads shows in the result.
    """
    centroids = pool.take(start).double()  # (K, D)
    adam = Adam(centroids)
    memory = centroids.new_empty(2, len(fixed) + len(start), pool.dimensions)
    draws = random.Random(seed)
    draws.sample(range(pool.count), len(start))  # the start's: batches come after it, as in the released programs
    mine = pool.spans(config.batch_size or pool.count)[world.rank :: world.size]
    full = config.batch_size is None
    search = make_search(pool, mine, len(start) + len(fixed), full, max_bytes / 8, config.slice)
    losses: list[float] = []
    thrown = torch.full((len(start),), config.max_iter, device=centroids.device)  # the iteration that threw it away
    with open_bar(progress, config.max_iter, "ActiveFT", "step") as bar:
        for iteration in range(config.max_iter):
            loss, gradient = loss_and_gradient(pool, centroids, fixed, config, world, draws, search, memory)
            lr = learning_rate(config, iteration)
            adam.step(gradient, lr)
            fit = centroids.abs().amax(1) < LARGEST  # NaN is not
            thrown = torch.where(fit, thrown, thrown.clamp(max=iteration))
            if not thrown.is_cuda or iteration % CHECKED == CHECKED - 1:
                check_centroids(pool, thrown, start, config)
            if on_iteration is not None:
                on_iteration(iteration, lr, loss.item())
            bar.update(1)
            if config.threshold:
                losses.append(loss.item())
                if len(losses) > PATIENCE and abs(losses[-1] - losses[-1 - PATIENCE]) < config.threshold:
                    break
    check_centroids(pool, thrown, start, config)
    return normalise(centroids)


def check_centroids(pool: UnitPool, thrown: torch.Tensor, start: torch.Tensor, config: ActiveFTConfig) -> None:
    """Raise UserError where a centroid has left the numbers that can be computed with; start: as for optimise.

    thrown: (K,) the iteration that did it, max_iter: none. A search reads no NaN, and a loss over finite centroids is
    finite.
    """
    iteration, place = map(int, torch.stack(thrown.min(0)).tolist())  # of the first such iteration, the first centroid
    if iteration < config.max_iter:
        row = start[place]
        row = row if pool.ids is None else pool.ids[row]
        lr = learning_rate(config, iteration)
        raise UserError(
            f"the loss is not finite: lr {lr:g} threw the centroid of row {int(row)} away; choose a lower lr"
        )


class Adam:
    """Adam's update of one tensor, in place, with PyTorch's defaults (Kingma and Ba 2015, algorithm 1).

    Not torch.optim.Adam: its first step imports PyTorch's compiler, seconds for which the user waits.
    """

    def __init__(self, values: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.values, self.betas, self.epsilon, self.steps = values, betas, epsilon, 0
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, gradient: torch.Tensor, lr: float) -> None:
        first, second = self.betas
        self.steps += 1
        tables = (self.values, self.mean, self.square, gradient)
        step = chunk_rows(gradient, TABLE_ROWS)
        for values, mean, square, part in zip(*(table.split(step) for table in tables), strict=True):
            mean.lerp_(part, 1 - first)
            square.mul_(second).addcmul_(part, part, value=1 - second)
            scale = square.sqrt().div_((1 - second**self.steps) ** 0.5).add_(self.epsilon)
            values.addcdiv_(mean, scale, value=-lr / (1 - first**self.steps))


def learning_rate(config: ActiveFTConfig, iteration: int) -> float:
    """The step's learning rate: constant, or a half cosine from lr down to 1e-6."""
    if config.scheduler == "none":
        return config.lr
    return FINAL_LR + (config.lr - FINAL_LR) * (1 + math.cos(math.pi * iteration / config.max_iter)) / 2


def loss_and_gradient(
    pool: UnitPool,
    centroids: torch.Tensor,
    fixed: torch.Tensor,
    config: ActiveFTConfig,
    world: World,
    draws: random.Random,
    search: Search,
    memory: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The objective and its gradient at centroids (K, D) float64 over the pool or a batch drawn from it.

    memory: (2, L + K, D) float64, overwritten. Returns (loss, gradient): float64 scalar and (K, D), a part of memory,
    the same on every rank.
    """
    units = fixed.new_empty(memory.shape[1:])  # (L + K, D) float32
    units[: len(fixed)] = fixed
    step = chunk_rows(centroids, TABLE_ROWS)
    for part, values in zip(units[len(fixed) :].split(step), centroids.split(step), strict=True):
        part.copy_(normalise(values))
    terms = OBJECTIVES[config.objective](units, config, world, memory[0])
    spans, read = batch(pool, config, draws)
    search.begin(units)
    pull = memory[1].zero_()
    totals = pull.new_zeros(len(units) + 1)  # sums of w_i per centroid; the last is the summed loss
    for start, stop in spans[world.rank :: world.size]:
        rows = read(start, stop)
        similarity, index = search.nearest(rows, start)
        losses, weights = terms.sample_terms(similarity.double(), index)
        add_segment_sums(pull, totals[:-1], rows, index, weights)
        totals[-1] += losses.sum()
    count = spans[-1][1]
    pull, totals = world.sum_(pull), world.sum_(totals) / count
    loss, push = terms.centroid_terms(totals[:-1])
    gradient = push.sub_(pull, alpha=1 / (count * config.temperature))[len(fixed) :]
    return totals[-1] + loss, through_normalisation(gradient, centroids)


def batch(
    pool: UnitPool, config: ActiveFTConfig, draws: random.Random
) -> tuple[list[tuple[int, int]], Callable[[int, int], torch.Tensor]]:
    """The spans of this iteration and the function that reads one: the whole pool, or distinct random rows."""
    if config.batch_size is None:
        return pool.spans(pool.count), pool.read
    drawn = draw(pool.count, config.batch_size, draws)
    if pool.resident is not None:
        drawn = sent(pool.device, drawn)[0]
    return pool.spans(config.batch_size), lambda start, stop: pool.take(drawn[start:stop])


def draw(count: int, size: int, draws: random.Random) -> torch.Tensor:
    """`size` distinct positions of 0..count-1, (size,), those of the released programs after random.seed(seed).

    Ascending, so that a memory map is read onwards.
    """
    return torch.tensor(draws.sample(range(count), size)).sort().values


def pool_blocks(pool: UnitPool, world: World, config: ActiveFTConfig) -> Blocks:
    """A function that yields (first, rows) of this rank's spans of the pool in blocks of at most `step` rows."""

    def blocks(step: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start, stop in pool.spans(pool.count)[world.rank :: world.size]:
            rows = pool.read(start, stop)
            for first in range(0, stop - start, config.slice or step):
                yield start + first, rows[first : first + (config.slice or step)]

    return blocks
