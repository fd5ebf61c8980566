"""Images kept in memory: of one size as a tensor on the device, whole batches at once, or of any size, by Pillow."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from data_selection.common.sending import sent
from deit.samples import resizing
from deit.samples.batches import Batch, Part
from deit.samples.draws import AUGMENT, uniform
from deit.samples.pipeline import MARGIN, Cropped, Pipeline, shifted_places


class TensorImages(ABC):
    """Images of one size as one uint8 tensor on the device, where whole batches are transformed at once."""

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, pipeline: Pipeline, device: torch.device, seed: int
    ) -> None:
        """images (N, H, W, 3) uint8, labels (N,) int64."""
        self.images, self.labels = images.to(device), labels.to(device)
        self.mean = torch.tensor(pipeline.mean, device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(pipeline.std, device=device).view(1, 3, 1, 1) * 255
        self.pipeline, self.seed, self.device = pipeline, seed, device

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def central(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, H, W, 3) uint8 -> (B, 3, size, size), values 0..255: what evaluation sees of them."""

    @abstractmethod
    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each Part."""

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, size, size) of values 0..255."""
        return (images.float() - self.mean) / self.std

    def plain(self, indices: range, batch: int) -> Iterator[Batch]:
        """Yield (images, labels) on the device of the images `indices`, without augmentation."""
        for start in range(0, len(indices), batch):
            (index,) = sent(self.device, torch.tensor(indices[start : start + batch]))
            yield self.normalise(self.central(self.images[index])), self.labels[index]


class PaddedImages(TensorImages):
    """Images of the model's own, small size: padded, cropped and flipped, as train_transform with nothing else."""

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, pipeline: Pipeline, device: torch.device, seed: int
    ) -> None:
        """images (N, size, size, 3) uint8, labels (N,) int64."""
        padded = pad(images, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN))  # (N, size + 8, size + 8, 3)
        super().__init__(padded, labels, pipeline, device, seed)
        self.margin = MARGIN

    def central(self, images: torch.Tensor) -> torch.Tensor:
        edge = slice(self.margin, self.margin + self.pipeline.size)
        return images[:, edge, edge].permute(0, 3, 1, 2)

    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each Part."""
        for part in parts:
            draws = shift_draws(self.seed, epoch, part)
            places = shifted_places(draws, self.pipeline.size, self.margin)
            index, rows, columns = sent(self.device, part.indices, *places)
            crops = self.images[index[:, None, None], rows[:, :, None], columns[:, None]]  # (R, size, size, 3)
            yield self.normalise(crops.permute(0, 3, 1, 2)), self.labels[index]


class ViewedImages(PaddedImages):
    """Images of any size, resized once to what evaluation sees, with a margin to shift them in."""

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, pipeline: Pipeline, device: torch.device, seed: int
    ) -> None:
        """images (N, size + 2 m, size + 2 m, 3) uint8, m = pipeline.margin in training and 0 in evaluation."""
        TensorImages.__init__(self, images, labels, pipeline, device, seed)
        self.margin = (images.shape[1] - pipeline.size) // 2


class EvaluationImages(ViewedImages):
    """Evaluation's images the papers' way, also resized once."""


class ResizedImages(TensorImages):
    """Images cropped at random, resized and flipped, as train_transform with nothing else.

    The same distribution, and for the same crop PIL's pixels but for rounding (see resizing.resize).
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, pipeline: Pipeline, device: torch.device, seed: int
    ) -> None:
        """images (N, H, W, 3) uint8, labels (N,) int64."""
        super().__init__(images, labels, pipeline, device, seed)
        self.height, self.width = images.shape[1:3]
        matrices = resizing.evaluation_matrices(self.height, self.width, pipeline.size)
        self.rows, self.columns = (matrix.to(device) for matrix in matrices)

    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each Part."""
        size, kind = self.pipeline.size, self.pipeline.interpolation
        for part in parts:
            draws = crop_draws(self.seed, epoch, part)
            boxes = resizing.random_boxes(draws[:, :-1], self.height, self.width)
            flipped, index, top, left, tall, wide = sent(self.device, draws[:, -1] < 0.5, part.indices, *boxes)
            rows = resizing.resampling(top, tall, size, self.height, kind)  # (R, size, H)
            columns = resizing.resampling(left, wide, size, self.width, kind)  # (R, size, W)
            columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
            yield self.normalise(resizing.resize(self.images[index], rows, columns)), self.labels[index]

    def central(self, images: torch.Tensor) -> torch.Tensor:
        return resizing.resize(images, self.rows, self.columns)


class CroppedImages:
    """The same augmentation of images of any sizes, one by one by Pillow in threads: faster on a CPU but for tiny ones.

    The draws are those of ResizedImages. threads: at most.
    """

    def __init__(
        self, images: Sequence[np.ndarray], labels: torch.Tensor, pipeline: Pipeline, seed: int, threads: int
    ) -> None:
        """images: (H, W, 3) uint8 each, labels (N,) int64."""
        self.images, self.labels, self.pipeline, self.seed, self.threads = images, labels, pipeline, seed, threads
        self.mean, self.std = (torch.tensor(value).view(1, 3, 1, 1) * 255 for value in (pipeline.mean, pipeline.std))

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), labels (R,)) for each Part."""
        with ThreadPoolExecutor(self.threads) as workers:
            for part in parts:
                draws = crop_draws(self.seed, epoch, part)
                yield (
                    self._batch(list(workers.map(self._crop, part.indices.tolist(), draws))),
                    self.labels[part.indices],
                )

    def plain(self, indices: range, batch: int) -> Iterator[Batch]:
        """Yield (images, labels) of the images `indices`, without augmentation."""
        for start in range(0, len(indices), batch):
            some = indices[start : start + batch]
            images = [self.pipeline.pixels(Image.fromarray(self.images[i])) for i in some]
            yield self._batch(images), self.labels[list(some)]

    def _crop(self, i: int, draws: torch.Tensor) -> np.ndarray:
        return Cropped(self.pipeline).pixels(self.images[i], draws)

    def _batch(self, images: list[np.ndarray]) -> torch.Tensor:
        return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - self.mean) / self.std


def crop_draws(seed: int, epoch: int, part: Part) -> torch.Tensor:
    """Uniform draws (R, resizing.DRAWS) of the places of a Part: those of a random box, then mirrored."""
    return uniform(seed, AUGMENT, epoch, part.places[:, None], torch.arange(resizing.DRAWS))


def shift_draws(seed: int, epoch: int, part: Part) -> torch.Tensor:
    """Uniform draws (R, 3) of the places of a Part: down, across, mirrored."""
    return uniform(seed, AUGMENT, epoch, part.places[:, None], torch.arange(3))
