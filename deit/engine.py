"""One epoch of training, and evaluation: the same numbers on any number of processes, to rounding."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from data_selection.common.distributed import World
from data_selection.common.precision import repeatable
from data_selection.images.list_files import UNKNOWN
from deit.gradients import FlatGradients
from deit.losses import Criterion
from deit.runs.kinds import Numbers, State
from deit.runs.stopping import Asked, NotFinite, Sofar, Stopped, until_asked
from deit.samples.batches import Augmented, Batch, Plain, Step
from deit.samples.draws import DropDraws
from deit.samples.mixing import Mixing, mix

LOOK = 16  # steps between looks at the losses on a GPU

OnStep = Callable[[int, int, int, torch.Tensor, float], object]  # see train_one_epoch


@dataclass
class Learner:
    """What training moves, and what it needs to do so."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None  # None: a constant rate
    by_step: bool  # the schedule moves at every step; else the caller moves it after an epoch
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    draws: DropDraws
    gradients: FlatGradients
    criterion: Criterion
    amp: torch.dtype | None  # of autocast; None: full precision
    world: World
    # Layers kept in evaluation mode: batch norm with fixed statistics
    fixed: list[nn.Module] = field(default_factory=list)
    input_size: int = 224  # side of the images
    answering: nn.Module | None = None  # what evaluation asks, where that is not the model
    asked: Asked = field(default_factory=Asked)  # to stop
    kept: dict[str, State] = field(default_factory=dict)  # of several trainings on the labels: see restarts.py
    fresh: State = field(default_factory=dict)  # the optimiser's state as built, its rates and counts of steps

    @property
    def rate(self) -> float:
        """The learning rate, before what --layer-decay and --head-rate make of it in a group."""
        return max(group["lr"] / group.get("lr_scale", 1.0) for group in self.optimizer.param_groups)

    def autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.amp)

    def one_order(self) -> contextlib.AbstractContextManager[None]:
        """Gradients in one order. Those of half precision came out the same without it, and seemed twice as fast."""
        return repeatable(self.world.device) if self.amp is None else contextlib.nullcontext()


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def train_one_epoch(
    learner: Learner,
    data: Augmented,
    steps: Sequence[Step],
    epoch: int,
    *,
    classes: int,
    seed: int,
    mixing: Mixing | None = None,
    clip_grad: float | None = None,
    skip_nonfinite: bool = False,
    on_step: OnStep | None = None,
    done: int | None = None,
    sofar: Sofar | None = None,
) -> tuple[float, int]:
    """Train on the Steps of one epoch. Returns (mean training loss per image, steps left out).

    on_step(epoch, number, steps, loss, factor): called at each step; loss: this process's share, on the device; times
    factor: the mean over its images. done: steps before this epoch, by default those of as many equal ones.
    The loss of a step is the mean over its global batch, so gradients are summed, not averaged, over parts and
    processes.
    Where a loss is not finite, raises NotFinite on every process at that step (on a GPU at most LOOK steps later: a
    look waits for the device); with skip_nonfinite such a step changes nothing.
    Where a process is asked to stop, raises Stopped after the running step, on every process (several GPUs: at most
    LOOK steps later), unless that was the last one. sofar: what it held then; only the other steps are done.
    """
    model, world, mixing = learner.model, learner.world, mixing or Mixing()
    done = (epoch - 1) * len(steps) if done is None else done
    training_mode(learner)
    losses, sizes, first = begun(steps, sofar, world.device)
    look = 1 if world.device.type == "cpu" else LOOK
    batches = data.augmented([part for step in steps[first:] for part in step.parts], epoch)
    for number, step in enumerate(steps[first:], first):
        update = done + number  # steps done before this one
        if learner.by_step and learner.scheduler is not None:
            learner.scheduler.step_update(update)
        before = [buffer.clone() for buffer in model.buffers()] if skip_nonfinite else []
        learner.gradients.zero()
        mine = passes(learner, batches, step, classes, mixing, (seed, epoch, number))
        learner.gradients.sum(mine, learner.asked.is_set())
        losses[number] = learner.gradients.loss
        if on_step is not None:
            rows = sum(len(part.rows) for part in step.parts)
            on_step(epoch, number, len(steps), mine, step.size / max(1, rows))
        if skip_nonfinite and not is_finite(learner):
            losses[number] = sizes[number] = 0
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
        else:
            if number % look == look - 1:
                check_losses(learner, losses[: number + 1], epoch, len(steps))
            descend(learner, update, clip_grad)
        if number + 1 < len(steps) and is_asked(learner, number % look == look - 1):
            check_losses(learner, losses[: number + 1], epoch, len(steps))
            average_buffers(model, world)
            raise Stopped(Sofar(losses[: number + 1].cpu(), sizes[: number + 1]))
    check_losses(learner, losses, epoch, len(steps))
    average_buffers(model, world)
    return mean_loss(losses.double().cpu(), sizes, epoch), int((sizes == 0).sum())


def begun(steps: Sequence[Step], sofar: Sofar | None, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(mean losses of an epoch's steps (steps,) on the device, their sizes (steps,) float64, how many are done)."""
    losses = torch.zeros(len(steps), device=device)  # of the whole global batch
    sizes = torch.tensor([step.size for step in steps], dtype=torch.float64)
    done = len(sofar.losses) if sofar is not None else 0
    if sofar is not None:
        losses[:done], sizes[:done] = sofar.losses.to(device), sofar.sizes
    return losses, sizes, done


def passes(
    learner: Learner, batches: Iterator[Batch], step: Step, classes: int, mixing: Mixing, place: tuple[int, int, int]
) -> torch.Tensor:
    """Add the gradients of this process's parts of a step, the next of batches. Returns its share of the loss, ().

    place: seed, epoch, number of the step.
    """
    seed, epoch, number = place
    mine = torch.zeros((), device=learner.world.device)
    # batches runs on through the steps: zip asks it last, and strict would take a batch of the next step to see whether
    # it has ended
    for part, (images, targets) in zip(step.parts, batches, strict=False):
        if mixing.on:
            images, targets = mix(
                images, targets, classes, part.rows, step.size, mixing, seed=seed, epoch=epoch, step=number
            )  # fmt: skip
        learner.draws.begin(epoch, number, part.rows, learner.world.device)
        with learner.one_order():
            with learner.autocast():
                loss = learner.criterion(images, learner.model(images), targets) / step.size
            learner.gradients.last_pass = part is step.parts[-1]
            learner.scaler.scale(loss).backward()
        mine += loss.detach()
    if not step.parts:
        learner.scaler.scale(mine)  # fp16: makes the scaler's factor, which a process without rows must have too
    return mine


def is_asked(learner: Learner, look: bool) -> bool:
    """Whether a process was asked to stop; of several where `look` says so, since to know that waits for the device."""
    if learner.world.size == 1:
        return learner.asked.is_set()
    return look and bool(learner.gradients.asked)


def training_mode(learner: Learner) -> None:
    """Put the model into training mode, all but the layers that are fixed."""
    learner.model.train()
    for layer in learner.fixed:
        layer.eval()


def descend(learner: Learner, update: int, clip_grad: float | None) -> None:
    """The optimiser's step by the gradients, and what follows from it. update: steps done before this one."""
    learner.scaler.unscale_(learner.optimizer)
    if clip_grad is not None:
        learner.gradients.clip(clip_grad)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        learner.ema.update(learner.model, update + 1 if learner.ema.use_warmup else None)


def mean_loss(losses: torch.Tensor, sizes: torch.Tensor, epoch: int) -> float:
    """Mean loss per image of steps with mean losses (steps,) and sizes (steps,), 0 where a step was left out.

    Raises NotFinite where every step was left out.
    """
    if not sizes.any():
        raise NotFinite(f"the loss of every step of epoch {epoch} is not finite: try a smaller --lr or --amp off", None)
    return (losses @ sizes / sizes.sum()).item()


def check_losses(learner: Learner, losses: torch.Tensor, epoch: int, steps: int) -> None:
    """Raise NotFinite for the first of the losses (steps so far,) of an epoch that is not finite, and say why."""
    if losses.isfinite().all():
        return
    first = int((~losses.isfinite()).nonzero()[0])
    diverged = not answers(learner)
    why = "the weights have diverged in the steps before it; " if diverged else ""
    raise NotFinite(
        f"the loss is {losses[first].item()} at epoch {epoch}, step {first + 1} of {steps}: {why}nothing of this epoch "
        "is saved; try a smaller --lr, --clip-grad 2.0, or --amp off",
        None if diverged else first,
    )


@torch.inference_mode()
def answers(learner: Learner) -> bool:
    """Whether the weights are of use: finite, and the model's answer to an image of zeros, too."""
    learner.model.eval()
    if not all(tensor.isfinite().all() for tensor in learner.model.state_dict().values()):
        return False
    with learner.autocast():
        logits = learner.model(torch.zeros(1, 3, learner.input_size, learner.input_size, device=learner.world.device))
    return bool(logits.isfinite().all())


@torch.no_grad()
def is_finite(learner: Learner) -> bool:
    """Whether a step's loss and gradients, summed over the processes, are finite."""
    if learner.scaler.is_enabled():  # it leaves out what has infinite gradients, and tries again smaller
        return bool(learner.gradients.loss.isfinite())
    return bool(torch.linalg.vector_norm(learner.gradients.whole).isfinite())


@torch.no_grad()
def average_buffers(model: nn.Module, world: World) -> None:
    """Average floating-point buffers (batch norm's statistics) over the processes; models without them: nothing."""
    if world.size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                world.sum_(buffer).div_(world.size)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Plain,
    world: World,
    *,
    batch: int,
    amp: torch.dtype | None = None,
    sharded: bool = True,
    asked: Asked | None = None,
) -> Numbers:
    """Loss, top-1 and top-5 accuracy (percent) of a model on data; every image counts once.

    Images without a label are of classes that the model does not have: mistakes, of which there is no loss.
    sharded: each process takes its share; else each evaluates everything. Raises Stopped where asked to stop.
    """
    model.eval()
    rank, size = (world.rank, world.size) if sharded else (0, 1)
    totals = torch.zeros(5, dtype=torch.float64, device=world.device)  # loss, its images, top-1, top-5, images
    for images, labels in until_asked(data.plain(range(rank, len(data), size), batch), asked or Asked(), world):
        with autocast(world.device, amp):
            logits = model(images)
        logits = logits.float()  # (B, C)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=UNKNOWN)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, up to 5)
        known = (labels != UNKNOWN).sum()
        totals += torch.stack([loss, known, best[:, 0].sum(), best.sum(), loss.new_full((), len(labels))])
    if sharded:
        world.sum_(totals)
    loss, known, first, fifth, count = totals.tolist()
    return {"loss": loss / max(1, known), "acc1": 100 * first / count, "acc5": 100 * fifth / count}


@torch.inference_mode()
def probabilities(
    model: nn.Module, data: Plain, world: World, classes: int, *, batch: int, amp: torch.dtype | None = None
) -> torch.Tensor:
    """What a model says of the images of data, (N, classes) float32 on the CPU, on every process.

    Each computes its share.
    """
    model.eval()
    found, start = torch.zeros(len(data), classes, device=world.device), 0
    mine = torch.arange(world.rank, len(data), world.size, device=world.device)
    for images, _ in data.plain(range(world.rank, len(data), world.size), batch):
        with autocast(world.device, amp):
            logits = model(images)
        found[mine[start : start + len(images)]] = logits.float().softmax(1)
        start += len(images)
    return world.sum_(found).cpu()
