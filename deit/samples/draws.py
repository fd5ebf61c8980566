"""Random numbers as functions of (seed, purpose, epoch, place): the same on any number of processes and workers.

A counter-based hash (the finaliser of SplitMix64) turns whole numbers into whole numbers. Nothing here has a state, so
no process has to draw what another one needs, and a resumed run draws what the unbroken one would have drawn.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from timm.layers import DropPath
from torch import nn

from data_selection.common.errors import UserError
from data_selection.common.sending import sent

ORDER, AUGMENT, DROP, MIX, INIT, FOLDS, POOL = range(7)  # the purposes; each has its own stream

OFFSETS = {"meta_mlp", "rel_pos", "shared_rel_pos"}  # timm's parts that see a table of offsets between places

GOLDEN, FIRST, SECOND = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hashed(*keys: int | torch.Tensor) -> torch.Tensor:
    """Whole numbers and int64 tensors (they broadcast) -> an int64 tensor of hashes, 64 random bits each."""
    h = torch.zeros((), dtype=torch.int64)
    for key in keys:
        h = (h + key + 1) * GOLDEN  # int64 products wrap, as SplitMix64 wants
        h = (h ^ ((h >> 30) & (1 << 34) - 1)) * FIRST  # the masks make the arithmetic shifts logical ones
        h = (h ^ ((h >> 27) & (1 << 37) - 1)) * SECOND
        h = h ^ ((h >> 31) & (1 << 33) - 1)
    return h


def uniform(*keys: int | torch.Tensor) -> torch.Tensor:
    """The hashes of `keys` as float32 numbers in [0, 1), 24 bits each."""
    return ((hashed(*keys) >> 40) & (1 << 24) - 1).float() / (1 << 24)


def seed_of(*keys: int) -> int:
    """One hash of whole numbers as a seed in 0..2**63-1."""
    return int(hashed(*keys).item()) & (1 << 63) - 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), Python and NumPy inside the block and give them back as they were.

    For code that offers no generator of its own: model initialisation, and torchvision's and timm's transforms.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


class DropDraws:
    """What the model's drop-path and dropout layers share: who the rows of the current batch are.

    begin() is called before each forward pass; then the k-th layer call of the pass takes row k of `table`, which
    grows where a family calls a layer more often.
    """

    def __init__(self, seed: int, layers: int) -> None:
        self.seed, self.calls = seed, 2 * layers  # some families call one layer twice per pass
        self.table: torch.Tensor | None = None
        self.place, self.rows, self.next = (0, 0), torch.zeros(0, dtype=torch.int64), 0

    def begin(self, epoch: int, step: int, rows: torch.Tensor, device: torch.device) -> None:
        """epoch, step: whole numbers. rows (R,): int64, the places of this batch's images in the global batch."""
        self.place, self.rows, self.next = (epoch, step), rows, 0
        self.table = self.made(0, device)

    def made(self, first: int, device: torch.device) -> torch.Tensor:
        """The rows of the table (calls, R) of the layer calls from `first` on."""
        calls = torch.arange(first, first + self.calls)[:, None]
        return sent(device, hashed(self.seed, DROP, *self.place, calls, self.rows[None]))[0]

    def take(self, x: torch.Tensor, *, of_images: bool = True) -> torch.Tensor:
        """The hashes (R,) of this layer call for x (R, ...). R may be a multiple of the batch: each image's patches.

        of_images: False where the rows of x are not of images but the same in each pass.
        """
        assert self.table is not None  # begin() comes before a pass
        self.next += 1
        if not of_images:
            rows = torch.arange(len(x), device=self.table.device)
            return hashed(self.seed, DROP, *self.place, self.next - 1, rows)
        if self.next > len(self.table):
            self.table = torch.cat([self.table, self.made(len(self.table), self.table.device)])
        row = self.table[self.next - 1]
        if len(row) == len(x):
            return row
        if len(x) % len(row):
            raise UserError(
                f"a drop layer sees {len(x)} rows in a batch of {len(row)} images: set --drop-path 0 --drop 0"
            )
        return hashed(row[:, None], torch.arange(len(x) // len(row), device=row.device)).flatten()


class SeededDropPath(nn.Module):
    """Stochastic depth whose mask depends on the image's place in the global batch, not on the process.

    Same distribution as timm's DropPath: a row is kept with probability 1 - rate and then divided by it.
    """

    def __init__(self, rate: float, draws: DropDraws, *, of_images: bool = True) -> None:
        super().__init__()
        self.rate, self.draws, self.of_images = rate, draws, of_images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = ((self.draws.take(x, of_images=self.of_images) >> 40) & (1 << 24) - 1) < keep * (1 << 24)  # (R,)
        return x * (kept.to(x.dtype) / keep).view(-1, *[1] * (x.ndim - 1))


class SeededDropout(SeededDropPath):
    """Dropout; the mask is a hash of the image's place in the global batch and the value's place in the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        places = torch.arange(x[0].numel(), device=x.device)
        bits = hashed(self.draws.take(x, of_images=self.of_images)[:, None], places[None])  # (R, values)
        kept = ((bits >> 40) & (1 << 24) - 1) < keep * (1 << 24)
        return x * (kept.view_as(x).to(x.dtype) / keep)


def seed_drop_layers(model: nn.Module, seed: int, drop: float = 0.0, heads: Sequence[nn.Module] = ()) -> DropDraws:
    """Replace the model's drop-path and dropout layers by seeded ones, in place. Returns their DropDraws.

    drop: rate of dropout on what the classifiers `heads` see. Hung onto them, not left to timm's drop_rate: half of its
    families call a function for it, which draws from the global generator.
    Drop layers inside a fused attention call (timm's attn_drop_rate) are not reached; no flag sets them.
    """
    found: list[tuple[str, type[SeededDropPath], float]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, DropPath) and layer.drop_prob:
            found.append((name, SeededDropPath, layer.drop_prob))
        elif type(layer) is nn.Dropout and layer.p:
            found.append((name, SeededDropout, layer.p))
    draws = DropDraws(seed, len(found) + (len(heads) if drop else 0))
    for name, kind, rate in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, kind(rate, draws, of_images=not OFFSETS & set(name.split("."))))
    for head in heads if drop else ():
        head.register_forward_pre_hook(drop_input(SeededDropout(drop, draws)))
    return draws


def drop_input(
    dropout: SeededDropout,
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """A forward pre-hook that applies dropout to a layer's input while that layer is in training mode."""

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (dropout.train(layer.training)(inputs[0]), *inputs[1:])

    return hook
