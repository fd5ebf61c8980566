"""Mixup and CutMix whose draws depend on (seed, epoch, step) and the image's place in the global batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import one_hot

from data_selection.common.sending import sent
from deit.samples.batches import Batch
from deit.samples.draws import MIX, seed_of


@dataclass(frozen=True)
class Mixing:
    """Settings as the flags name them; alphas of 0 switch a kind off, minmax (low, high) replaces CutMix's alpha."""

    mixup: float = 0.0
    cutmix: float = 0.0
    minmax: Sequence[float] | None = None  # range of the cut box's side, as a fraction of the image's
    prob: float = 0.0
    switch_prob: float = 0.5  # chance of CutMix where both are on
    mode: str = "batch"  # one draw per batch, pair or elem(ent)

    @property
    def on(self) -> bool:
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.minmax is not None)


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    rows: torch.Tensor,
    size: int,
    mixing: Mixing,
    *,
    seed: int,
    epoch: int,
    step: int,
) -> Batch:
    """Mix each image with its mirror image in the global batch.

    images (R, C, H, W) float; labels (R,) int64; rows (R,) places in the global batch of `size` images, such that
    rows[i] + rows[R - 1 - i] == size - 1. Returns images (R, C, H, W) and soft targets (R, classes).
    Source: mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), with timm's three modes. Deviations: pairs are formed
    in the global batch; an odd batch is allowed, its middle image stays as it is.
    """
    height, width = images.shape[2:]
    drawn = draw(size, height, width, mixing, seed_of(seed, MIX, epoch, step))
    share, cut, boxes = sent(images.device, *(torch.from_numpy(values[rows.numpy()]) for values in drawn))
    share = share.to(images.dtype)  # (R,) how much of the image itself stays; cut: (R,) bool
    inside = inside_boxes(boxes, height, width)  # (R, 1, H, W)
    weight = torch.where(cut[:, None, None, None], 1 - inside.to(images.dtype), share[:, None, None, None])
    targets = one_hot(labels, classes).to(images.dtype)  # (R, classes)
    mixed = images * weight + images.flip(0) * (1 - weight)
    return mixed, targets * share[:, None] + targets.flip(0) * (1 - share[:, None])


def draw(size: int, height: int, width: int, mixing: Mixing, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A global batch's draws: share (size,) float32, cut (size,) bool, boxes (size, 4): top, bottom, left, right."""
    rng = np.random.default_rng(seed)
    count = {"batch": 1, "pair": (size + 1) // 2, "elem": size}[mixing.mode]
    cut_on = mixing.cutmix > 0 or mixing.minmax is not None
    applied = rng.random(count) < mixing.prob
    cut = rng.random(count) < (mixing.switch_prob if mixing.mixup > 0 and cut_on else float(cut_on))
    share = np.ones(count)
    if mixing.mixup > 0:
        share = rng.beta(mixing.mixup, mixing.mixup, count)
    if cut_on:
        alpha = mixing.cutmix if mixing.minmax is None else 1.0
        share = np.where(cut, rng.beta(alpha, alpha, count), share)
    boxes = draw_boxes(rng, share, height, width, mixing.minmax)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    share = np.where(cut, 1 - area / (height * width), share)  # the border clips the box: what is left counts
    share, cut = np.where(applied, share, 1.0), cut & applied
    each = np.arange(size)
    place = {"batch": np.zeros(size, int), "pair": np.minimum(each, each[::-1])}.get(mixing.mode, each)
    return share[place].astype(np.float32), cut[place], boxes[place]


def draw_boxes(
    rng: np.random.Generator, share: np.ndarray, height: int, width: int, minmax: Sequence[float] | None
) -> np.ndarray:
    """Cut boxes (count, 4): top, bottom, left, right. Sides from 1 - share of the area, or from the range minmax."""
    count = len(share)
    if minmax is None:
        side = np.sqrt(1 - share)
        tall, wide = (side * height).astype(int), (side * width).astype(int)
        y, x = rng.integers(0, height, count), rng.integers(0, width, count)
        top, bottom = np.clip([y - tall // 2, y + (tall + 1) // 2], 0, height)
        left, right = np.clip([x - wide // 2, x + (wide + 1) // 2], 0, width)
    else:
        low, high = minmax
        tall = rng.integers(int(height * low), max(int(height * high), int(height * low) + 1), count)
        wide = rng.integers(int(width * low), max(int(width * high), int(width * low) + 1), count)
        top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
        bottom, right = top + tall, left + wide
    return np.stack([top, bottom, left, right], axis=1)


def inside_boxes(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """bool (R, 1, height, width): which pixels lie in the row's box (R, 4)."""
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    in_y = (y >= boxes[:, :1]) & (y < boxes[:, 1:2])  # (R, height)
    in_x = (x >= boxes[:, 2:3]) & (x < boxes[:, 3:])  # (R, width)
    return (in_y[:, :, None] & in_x[:, None, :])[:, None]
