"""What a step reads: places in an epoch, and the images there as batches; the types that training and judging share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Batch = tuple[torch.Tensor, torch.Tensor]  # images (R, 3, size, size), labels (R,) or soft targets (R, C)


@dataclass(frozen=True)
class Part:
    """Images that one process handles in one forward pass; all fields int64 (R,).

    rows: places in the global batch. indices: into the training set. places: in the epoch's order (they seed the
    augmentation). Mirror-symmetric: rows[i] + rows[R - 1 - i] == global batch - 1, so flip(0) gives the mixing partner.
    """

    rows: torch.Tensor
    indices: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Step:
    """One optimiser step: the size of its global batch, and this process's parts of it (maybe none)."""

    size: int
    parts: Sequence[Part]


class Plain(Protocol):
    """Images as evaluation sees them."""

    def __len__(self) -> int: ...

    def plain(self, indices: range, batch: int) -> Iterator[Batch]:
        """Yield (images, labels) on the device of the images `indices`, without augmentation."""
        ...


class Augmented(Protocol):
    """Images as training sees them."""

    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), labels (R,) or soft targets (R, C)) on the device for each Part."""
        ...


class ImageBatches(Plain, Augmented, Protocol):
    """Images as datasets.prepare decodes them, for either."""
