"""Which pixels a model sees: the one place that extraction and training both ask."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.embedding.backbones import WIDTHS, timm_config
from data_selection.images.image_files import WHITE
from data_selection.images.pools import FASHION_MEAN, FASHION_STD, IMAGENET_MEAN, IMAGENET_STD

FILTERS = {name.lower(): getattr(Image.Resampling, name) for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")}
THIN = 100  # times longer than wide: such an image, whole, can take gigabytes once its short side is resized


@dataclass(frozen=True)
class Preprocess:
    """From an image to size x size pixels, scaled to 0..1 and normalised per channel.

    crop: what the centre crop keeps of the resized image's short side, 0-1. squash: both sides are resized alike,
    whatever the image's ratio; else the short side is, and the long one follows. interpolation: of FILTERS. background:
    the colour (#rrggbb) below what is transparent, which whoever decodes the image lays it over.
    """

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop: float = 1.0
    squash: bool = True
    background: str = WHITE

    @property
    def short(self) -> int:
        """The short side of the resized image, of which the centre is kept; as timm and torchvision count."""
        return math.floor(self.size / self.crop)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that an image of this size is resized to."""
        if self.squash or width == height:
            return self.short, self.short
        long = int(self.short * max(width, height) / min(width, height))  # in this order: 2:1 stays 2:1
        return (self.short, long) if width < height else (long, self.short)

    def pixels(self, image: Image.Image, margin: int = 0) -> np.ndarray:
        """The image as (size + 2 margin, size + 2 margin, 3) uint8: the centre crop and `margin` pixels around it.

        Where the image ends before the margin does, its border is reflected.
        """
        target = self.resized(*image.size)
        left, top = (round((side - self.size) / 2) - margin for side in target)
        side = self.size + 2 * margin
        seen = (max(0, left), max(0, top), min(left + side, target[0]), min(top + side, target[1]))
        if max(target) > THIN * min(target):  # of it the part alone that is seen: the same but for rounding
            x, y = (old / new for old, new in zip(image.size, target, strict=True))
            box = (seen[0] * x, seen[1] * y, min(seen[2] * x, image.width), min(seen[3] * y, image.height))
            part = (seen[2] - seen[0], seen[3] - seen[1])
            image, seen = image.resize(part, FILTERS[self.interpolation], box), (0, 0, *part)
        elif target != image.size:
            image = image.resize(target, FILTERS[self.interpolation])
        array = np.array(image)[seen[1] : seen[3], seen[0] : seen[2]]  # a copy: what comes of it can be written to
        lack = [(max(0, -low), max(0, low + side - have)) for low, have in ((top, target[1]), (left, target[0]))]
        if any(map(any, lack)):
            array = np.pad(array, (*lack, (0, 0)), mode="reflect")
        return np.ascontiguousarray(array)

    def record(self) -> dict[str, Any]:
        """The fields as plain data, for provenance files and checkpoints; exif: images are turned upright."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return fields | {"exif": True}


DINO_PREPROCESS = Preprocess(224)  # the released extraction
DEMO_PREPROCESS = Preprocess(28, (FASHION_MEAN,) * 3, (FASHION_STD,) * 3)


def preprocess_of(name: str, size: int | None = None) -> Preprocess:
    """What a backbone was pretrained to see. name: as for backbones.build_model; size: another side in pixels.

    demo_vit and DINO's ViTs: as the released extraction. A timm name: the mean, std, interpolation and crop that timm
    holds for it (its pretrained_cfg). Raises UserError for an unknown name, and where timm holds none.
    """
    if name == "demo_vit" or name in WIDTHS:
        known = DEMO_PREPROCESS if name == "demo_vit" else DINO_PREPROCESS
    else:
        config = timm_config(name)
        if config is None:
            raise UserError(f"timm does not say what pixels {name} was made for: use --pixels data-set")
        known = Preprocess(
            config.input_size[-1], tuple(config.mean), tuple(config.std),
            config.interpolation if config.interpolation in FILTERS else "bicubic",
            config.crop_pct, config.crop_mode == "squash",
        )  # fmt: skip
    return known if size is None else replace(known, size=size)
