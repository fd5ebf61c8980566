"""From a PIL image to a normalised tensor, for training and for evaluation, in the words of the flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms

from data_selection.embedding.image_batches import Transform
from data_selection.embedding.preprocessing import Preprocess
from deit.samples import resizing

SMALL = 32  # input sizes up to this are cropped from a padded image, larger ones by random resized crops
MARGIN = 4  # pixels of that padding
SHIFT = 8  # `shift` moves images by up to this part of their side


@dataclass(frozen=True)
class Pipeline:
    """How images become tensors; the fields are those of the flags. mean, std: three floats, of values in 0..1."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    color_jitter: float = 0.0
    aa: str | None = None  # AutoAugment / RandAugment policy in timm's words
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    view: Preprocess | None = None  # what evaluation sees; None: the papers' way
    augment: str = "crop"  # crop, or shift: the view moved a little

    @property
    def shifts(self) -> bool:
        """True where training moves and flips the view, and does nothing else."""
        return self.augment == "shift"

    @property
    def margin(self) -> int:
        """Pixels by which `shift` moves an image at most."""
        return self.size // SHIFT

    @property
    def simple(self) -> bool:
        """True where training augments by crop, resize and flip alone, which whole batches can do at once."""
        plain = not (self.color_jitter or self.aa or self.reprob)
        return plain and (self.size <= SMALL or self.interpolation != "random")

    def train_transform(self) -> transforms.Compose:
        """PIL image -> augmented float tensor (3, size, size); draws from the global generators."""
        transform = create_transform(
            self.size, is_training=True, auto_augment=self.aa,
            color_jitter=self.color_jitter or None,  # type: ignore[arg-type]  # None: no jitter, timm's type forgot it
            interpolation=self.interpolation, re_prob=self.reprob, re_mode=self.remode, re_count=self.recount,
            mean=self.mean, std=self.std,
        )  # fmt: skip
        if self.size <= SMALL:
            transform.transforms[0] = transforms.RandomCrop(self.size, padding=MARGIN)
        if self.aa:
            allow_no_bits(transform)
        return transform

    def eval_transform(self) -> Transform:
        """PIL image -> float tensor (3, size, size): resize to 256/224 of the size, centre crop; small: resize."""
        return transforms.Compose([self.pixels, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)])

    def pixels(self, image: Image.Image, margin: int = 0) -> np.ndarray:
        """What evaluation sees of a PIL image, and `margin` pixels around it (of a view): uint8 (H, W, 3)."""
        if self.view is not None:
            return self.view.pixels(image, margin)
        if self.size > SMALL:
            bicubic = transforms.InterpolationMode.BICUBIC
            steps = [transforms.Resize(int(256 / 224 * self.size), bicubic), transforms.CenterCrop(self.size)]
            image = transforms.Compose(steps)(image)
        elif image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.array(image)


def allow_no_bits(transform: transforms.Compose) -> None:
    """Let timm's Posterize keep 0 bits, a black image, as it always could: Pillow 13 raises ValueError instead."""
    for step in transform.transforms:
        ops = getattr(step, "ops", None) or [op for policy in getattr(step, "policy", ()) for op in policy]
        for op in ops:
            if getattr(op, "aug_fn", None) is auto_augment.posterize:
                op.aug_fn = posterize


def posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """timm's operation, which Pillow 13 refuses for 0 bits."""
    return auto_augment.posterize(image, bits, **settings) if bits > 0 else Image.new(image.mode, image.size)


@dataclass(frozen=True)
class Shifted:
    """PIL image and its draws (3,) -> float tensor (3, size, size): the view moved and flipped as they say."""

    pipeline: Pipeline

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> torch.Tensor:
        assert self.pipeline.view is not None  # what is shifted is what evaluation sees
        pixels = torch.from_numpy(self.pipeline.view.pixels(image, self.pipeline.margin))
        rows, columns = shifted_places(torch.tensor(draws)[None], self.pipeline.size, self.pipeline.margin)
        pixels = pixels[rows[0][:, None], columns[0][None]].permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.pipeline.mean, self.pipeline.std))
        return (pixels - mean) / std


@dataclass(frozen=True)
class Cropped:
    """PIL image and its draws (resizing.DRAWS,) -> float tensor (3, size, size): the crop and flip that they say."""

    pipeline: Pipeline

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> torch.Tensor:
        pixels = torch.from_numpy(self.pixels(np.asarray(image), torch.tensor(draws)).copy()).permute(2, 0, 1).float()
        mean, std = (torch.tensor(value).view(3, 1, 1) * 255 for value in (self.pipeline.mean, self.pipeline.std))
        return (pixels - mean) / std

    def pixels(self, image: np.ndarray, draws: torch.Tensor) -> np.ndarray:
        """The same of an image (H, W, 3) uint8 as uint8 (size, size, 3)."""
        size, kind = self.pipeline.size, Image.Resampling[self.pipeline.interpolation.upper()]
        top, left, tall, wide = (int(x) for x in resizing.random_boxes(draws[None, :-1], *image.shape[:2]))
        crop = Image.fromarray(image[top : top + tall, left : left + wide])
        pixels = np.asarray(crop.resize((size, size), kind))
        return pixels[:, ::-1] if draws[-1] < 0.5 else pixels


def shifted_places(draws: torch.Tensor, size: int, margin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pixels of shifted, flipped images come from in padded ones: rows (R, size), columns (R, size) int64.

    draws: (R, 3) in [0, 1): down, across, and a mirror image below a half.
    """
    side = torch.arange(size)
    offsets = (draws[:, :2] * (2 * margin + 1)).long()  # (R, 2) in 0..2 margin
    return offsets[:, :1] + side, offsets[:, 1:] + torch.where(draws[:, 2:] < 0.5, side.flip(0), side)
