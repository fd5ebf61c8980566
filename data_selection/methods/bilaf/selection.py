"""BiLAF: boundary samples around core samples, chosen in one shot (Lu et al., NeurIPS 2024, section 3.3)."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from data_selection.common.checks import check_ids, check_request, check_selection
from data_selection.common.distributed import World, current_world
from data_selection.common.errors import UserError
from data_selection.common.kinds import Device, Features, Ids
from data_selection.common.precision import full_float32
from data_selection.common.progress import OpenBar, open_bar
from data_selection.methods.bilaf.classes import (
    Batch,
    check_room,
    group_classes,
    open_batch,
    plan_batches,
    rows_at,
    threads_for,
)
from data_selection.methods.bilaf.cores import FEW_CORES, CoreSearch, assign, find_rivals, rival_number
from data_selection.methods.bilaf.steps import allocate, denoise, kept_count, pick
from data_selection.methods.configs import BiLAFConfig
from data_selection.nearest.narrow import Scratch
from data_selection.nearest.pool_reader import pool_device, working_memory

ChooseCores = Callable[..., torch.Tensor]  # (features, count, *, labelled, excluded, seed, device, progress)


def default_core_number(pool_size: int, budget: int) -> int:
    """Half of the budget, at most 0.5 % of the pool or 50, at least 1.

    The paper takes 0.5 % of CIFAR100 and ImageNet and 50 of CIFAR10, and loses accuracy where the cores use up the
    budget (its Table 4); half leaves as many boundary samples as cores at its smallest budgets.
    """
    return max(1, min(budget // 2, max(50, pool_size // 200)))


@full_float32()
def select_bilaf(
    features: Features,
    budget: int,
    *,
    cores: Ids | ChooseCores | None = None,
    config: BiLAFConfig = BiLAFConfig(),
    labelled: Ids = (),
    excluded: Ids = (),
    seed: int = 0,
    device: Device | None = None,
    progress: OpenBar | None = None,
) -> torch.Tensor:
    """Choose `budget` images: the cores, and around each the samples nearest to the borders of its pseudo-class.

    features: (N, D) float tensor or memory map, row i = pool image i. budget: images in all, cores included.
    cores: pool indices (their order numbers the pseudo-classes), or a function that chooses them (see ChooseCores).
    config: by default the published algorithm; BILAF_PRESETS has the released one. labelled: images annotated
    before: each counts as chosen in its class and is not returned; a core may be one of them. excluded: images that
    are never chosen and shape no class. seed: only for the core function, the rest is deterministic. device: None
    takes the tensor's own. Under torch.distributed every rank must call this; each works on its share of the classes
    and all return the same list.

    Returns (budget,) int64 on the CPU: per core, in core order, the core, its picks in order, and last, where the
    budget exceeds all denoised classes, the removed samples nearest to their core. Nested: cores first, then rounds.
    Raises UserError where the budget is below the number of cores, or an id is bad.

    Deviations from the released program: any budget works, ids never repeat (released: fails or repeats), equal
    distances tie to the lowest index on every device.
    """
    labelled, _ = check_request(features, budget, labelled, excluded)
    excluded = check_ids(excluded, len(features), "excluded")
    device = pool_device(features, device)
    world = current_world(device)
    max_bytes = world.least(working_memory(config.max_memory, device))  # ranks that plan otherwise share nothing
    cores = _find_cores(features, budget, cores, config, labelled, excluded, seed, device, progress)
    annotated = torch.zeros(len(features), dtype=torch.bool)
    annotated[labelled] = True
    fresh = int((~annotated[cores]).sum())
    if budget < fresh:
        raise UserError(
            f"budget {budget} is smaller than the {fresh} cores it has to hold: raise it or use fewer cores"
        )

    few = config.opponent == "nearest" or len(cores) <= FEW_CORES
    room = max_bytes // (40 * len(features))  # a quarter for tables of 4 bytes a rival, two of them and a mask
    rivals = 1 if few else max(1, min(2 * budget // len(cores), room))  # what most classes will need
    free = torch.ones(len(features), dtype=torch.bool)
    free[excluded] = False
    own, rival = assign(features, free.nonzero()[:, 0], cores, config, world, max_bytes, progress, rivals)
    members, sizes = group_classes(own, len(cores))
    annotated[cores] = False  # from here on: annotated besides the cores
    annotated[excluded] = False
    before = torch.bincount(own[annotated], minlength=len(cores))  # (K,)
    kept = torch.maximum(kept_count(sizes, config), 1 + before)
    stages: list[torch.Tensor] = []
    for total in _stage_totals(budget, fresh, config.nested):
        total = min(total + len(cores) - fresh + int(before.sum()), int(kept.sum()))
        stages.append(allocate(kept, total, stages[-1] if stages else 1 + before, kept, config.budget_rule))
    classes = Classes(cores, members, sizes, kept, rival, annotated)
    turn = _pick_all(features, classes, stages, config, world, max_bytes, progress)

    turn[labelled] = 0
    own[labelled] = -1
    ids = _in_order(turn, own, stages, config.nested)[:budget]
    if len(ids) < budget:
        ids = _spill(features, ids, own, turn, cores, budget, config, device, max_bytes)
    return check_selection(ids, budget, len(features), labelled, excluded)


def _find_cores(
    features: Features,
    budget: int,
    cores: Ids | ChooseCores | None,
    config: BiLAFConfig,
    labelled: torch.Tensor,
    excluded: torch.Tensor,
    seed: int,
    device: torch.device,
    progress: OpenBar | None,
) -> torch.Tensor:
    """The core ids (K,) of the caller, checked, or those of the caller's function."""
    if cores is None:
        raise UserError("BiLAF builds on core samples: give cores=, pool indices or a function that selects them")
    if callable(cores):
        count = config.core_number or default_core_number(len(features), budget)
        if count > budget:
            raise UserError(f"budget {budget} is smaller than the {count} cores it has to hold: ask for fewer cores")
        given = {"labelled": labelled, "excluded": excluded, "seed": seed, "device": device, "progress": progress}
        cores = cores(features, count, **given)
    cores = check_ids(cores, len(features), "core")
    if not len(cores):
        raise UserError("the list of cores is empty: at least one core is needed")
    barred = cores[torch.isin(cores, excluded)]
    if len(barred):
        raise UserError(
            f"core {barred[0].item()} is excluded: a core is always chosen, so leave it out of one of the lists"
        )
    return cores


def _stage_totals(budget: int, cores: int, nested: bool) -> list[int]:
    """New images after each stage: the budget, or doubling steps from the cores, so that they don't depend on it."""
    if not nested:
        return [budget]
    totals = [2 * max(1, cores)]
    while totals[-1] < budget:
        totals.append(2 * totals[-1])
    return totals


class Classes(NamedTuple):
    """K pseudo-classes: their cores (K,), members and sizes as group_classes gives them, how many are kept (K,).

    rival: (N, R) the nearest other cores, as assign gives them. annotated: (N,) bool, besides the cores.
    """

    cores: torch.Tensor
    members: torch.Tensor
    sizes: torch.Tensor
    kept: torch.Tensor
    rival: torch.Tensor
    annotated: torch.Tensor


def _pick_all(
    features: Features,
    classes: Classes,
    stages: list[torch.Tensor],
    config: BiLAFConfig,
    world: World,
    max_bytes: int,
    progress: OpenBar | None,
) -> torch.Tensor:
    """(N,) int64: 0, or the place 1, 2, ... at which a sample was chosen in its class. Ranks share the batches."""
    cores, members, sizes, kept, rival, annotated = classes
    count, device = stages[-1], world.device
    most = rival_number(count, len(cores), config)
    search = CoreSearch(features, cores, config, device)
    turn, memory = torch.zeros(len(features), dtype=torch.int64, device=device), Scratch(torch.float64, device)
    if config.max_memory is not None and (count > 1).any():  # else all is tried with what is there
        check_room(sizes[count > 1], most[count > 1], features.shape[1], config.max_memory)
    batches = plan_batches(sizes, most, count > 1, features.shape[1], max_bytes, device)
    with open_bar(progress, int((count > 1).sum()), "BiLAF classes", "class") as bar:
        for labels in batches[world.rank :: world.size]:
            with threads_for(int(sizes[labels].max())):
                batch = open_batch(features, labels, members, sizes, cores, config, memory, max_bytes)
                must = annotated[batch.ids].to(device)
                local = denoise(batch.pairs, batch.sizes, batch.core, kept[labels].to(device), config, must)
                rivals = find_rivals(batch, local, search, rival, count[labels].to(device), config, max_bytes)
                ids, place = _pick_batch(batch, local, must, kept, rivals, stages, config)
            turn[ids] = place
            bar.update(len(labels) * world.size)
    turn = world.sum_(turn).cpu()
    turn[cores] = 1
    return turn


def _pick_batch(
    batch: Batch,
    local: torch.Tensor,
    must: torch.Tensor,
    kept: torch.Tensor,
    rivals: tuple[torch.Tensor, torch.Tensor],
    stages: list[torch.Tensor],
    config: BiLAFConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the stages on one batch; local: (G, n) members that denoising kept. Returns (ids, places), both flat."""
    device = local.device
    wanted = [stage[batch.labels].to(device) for stage in stages]
    sizes = kept[batch.labels].to(device)
    core = (local == batch.core[:, None]).int().argmax(1)
    must = must.gather(1, local) & (torch.arange(local.shape[1], device=device) < sizes[:, None])
    must[torch.arange(len(core), device=device), core] = False
    pairs = batch.pairs.take(local)
    chosen = torch.cat([core[:, None], _true_first(must)], dim=1)  # the core, then what was annotated before
    for count in wanted:
        chosen = pick(pairs, sizes, core, count, rivals, config, forced=chosen)
    found = chosen >= 0
    places = torch.arange(1, chosen.shape[1] + 1, device=device).expand_as(chosen)[found]
    inside = local.gather(1, chosen.clamp(min=0))  # (G, B) local index in the whole class
    return batch.ids.to(device).gather(1, inside)[found], places


def _true_first(mask: torch.Tensor) -> torch.Tensor:
    """(G, most) column indices of each row's true entries, ascending, padded with -1."""
    count = mask.sum(1, keepdim=True)
    order = (~mask).sort(dim=1, stable=True).indices[:, : int(count.max())]
    return torch.where(torch.arange(order.shape[1], device=mask.device) < count, order, -1)


def _in_order(turn: torch.Tensor, own: torch.Tensor, stages: list[torch.Tensor], nested: bool) -> torch.Tensor:
    """Chosen ids: class by class, or, nested, round by round so that every beginning is a list of its own."""
    ids = ((turn > 0) & (own >= 0)).nonzero()[:, 0]
    place, label = turn[ids], own[ids]
    if not nested:
        return ids[(label * (int(turn.max()) + 1) + place).argsort()]
    ends = torch.stack([torch.ones_like(stages[0]), *stages])  # (S + 1, K) places filled after the cores and each stage
    stage = (place > ends[:, label]).sum(0)  # 0: a core
    within = place - ends[(stage - 1).clamp(min=0), label]
    key = (stage * (int(turn.max()) + 1) + within) * len(stages[0]) + label
    return ids[key.argsort()]


def _spill(
    features: Features,
    ids: torch.Tensor,
    own: torch.Tensor,
    turn: torch.Tensor,
    cores: torch.Tensor,
    budget: int,
    config: BiLAFConfig,
    device: torch.device,
    max_bytes: int,
) -> torch.Tensor:
    """Fill the budget with samples that denoising removed, those nearest to their core first, equal ones by index."""
    rest = ((turn == 0) & (own >= 0)).nonzero()[:, 0]
    parts = []
    for part in rest.split(max(1, max_bytes // (64 * features.shape[1]))):
        rows, centre = (rows_at(features, of, device, config.normalised) for of in (part, cores[own[part]]))
        parts.append((rows - centre).square().sum(1).cpu())
    extra = rest[torch.cat(parts).sort(stable=True).indices[: budget - len(ids)]]
    if config.nested:
        return torch.cat([ids, extra])
    everything = torch.cat([ids, extra])
    return everything[own[everything].sort(stable=True).indices]
