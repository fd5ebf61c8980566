"""Random resized crops and evaluation crops of whole batches at once, with PIL's resampling as two matrix products."""

import math

import torch

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the crop's area, and of its width to its height
TRIES = 10  # draws of a crop that fits, as timm and torchvision have it
DRAWS = 4 * TRIES + 1  # uniform numbers for each image


def filter_weights(x: torch.Tensor, interpolation: str) -> torch.Tensor:
    """PIL's filters at distance x (in pixels of the coarser grid): bicubic with a = -0.5, or bilinear."""
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resampling(start: torch.Tensor, length: torch.Tensor, size: int, source: int, interpolation: str) -> torch.Tensor:
    """Matrices (B, size, source) that resize the pixels start..start+length-1 of an axis of `source` to `size` pixels.

    start, length: (B,) int64. As Image.resize of the crop: shrinking widens the filter, and the crop's edge cuts it.
    """
    scale = (length.float() / size)[:, None, None]  # (B, 1, 1)
    place = torch.arange(source, device=start.device) - start[:, None]  # (B, source), in the crop
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    distance = (place[:, None] + 0.5 - centre) / scale.clamp(min=1)  # (B, size, source)
    inside = (place >= 0) & (place < length[:, None])
    weights = filter_weights(distance, interpolation) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def resize(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """images (B, H, W, 3) uint8, rows (B, h, H), columns (B, w, W) -> (B, 3, h, w) float of whole numbers 0..255.

    Rounds (halves up) after the columns and after the rows, as PIL does; a pixel that comes to lie between two levels
    may go the other way, which the second pass can make two.
    """
    x = images.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
    x = (x @ columns.mT[:, None]).add_(0.5).floor_().clamp_(0, 255)  # (B, 3, H, w)
    return (rows[:, None] @ x).add_(0.5).floor_().clamp_(0, 255)  # (B, 3, h, w)


def random_boxes(draws: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Crops (top, left, tall, wide), each (R,) int64, of images of height x width from uniform draws (R, 4 TRIES).

    The first of ten crops of random area and ratio that fits; else the largest central one of an allowed ratio.
    """
    area, ratio, down, across = draws.double().view(len(draws), TRIES, 4).unbind(2)  # (R, TRIES)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    low, high = (math.log(bound) for bound in RATIO)
    ratio = torch.exp(low + (high - low) * ratio)
    wide, tall = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (wide <= width) & (tall <= height)
    top = (down * (height - tall + 1)).floor().long()
    left = (across * (width - wide + 1)).floor().long()
    first = fits.int().argmax(1, keepdim=True)  # (R, 1)
    boxes = torch.stack([top, left, tall, wide]).gather(2, first.expand(4, -1, -1)).squeeze(2)  # (4, R)
    return torch.where(fits.any(1), boxes, torch.tensor(central_box(height, width))[:, None]).unbind(0)


def central_box(height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, tall, wide) of the largest central crop whose ratio is allowed."""
    tall, wide = height, width
    if width / height < RATIO[0]:
        tall = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        wide = round(height * RATIO[1])
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def evaluation_matrices(height: int, width: int, size: int) -> list[torch.Tensor]:
    """rows (1, size, height), columns (1, size, width): the short side to 256/224 of size, then the centre."""
    short = int(256 / 224 * size)
    result = []
    for source, other in ((height, width), (width, height)):
        full = short if source <= other else int(short * source / other)
        matrix = resampling(torch.tensor([0]), torch.tensor([source]), full, source, "bicubic")
        low = round((full - size) / 2)
        result.append(matrix[:, low : low + size])
    return result
