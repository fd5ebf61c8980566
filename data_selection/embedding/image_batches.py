"""Batches of a pool's images, prepared ahead: decoded in other processes, resized and normalised on the device."""

import functools
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from data_selection.common.errors import UserError, no_more_files
from data_selection.common.sending import sent
from data_selection.embedding.preprocessing import Preprocess
from data_selection.images.pools import Pool

Transform = Callable[[Image.Image], torch.Tensor]
Images = tuple[torch.Tensor | None, list[str]]  # of those that could be read, and for each "" or the error


AHEAD = 4  # batches that each loading process has ready at most
SHARED = "/dev/shm"  # where Linux keeps shared memory
PIL_ONE = 2**22  # PIL's weights are whole multiples of 1 / PIL_ONE


def to_input(images: torch.Tensor, preprocess: Preprocess, device: torch.device) -> torch.Tensor:
    """Model input (B, 3, size, size) float32 on device.

    images: uint8, square as a pool holds them, (B, S, S) or (B, S, S, 3), or (B, 3, size, size) as View gives them.
    """
    images = images.to(device, non_blocking=True)
    if images.ndim == 3 or images.shape[-1] == 3:
        # (B, 1 or 3, S, S): grey is resized once, then repeated
        images = resize(images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2), preprocess.short)
        edge = round((preprocess.short - preprocess.size) / 2)
        images = images[..., edge : edge + preprocess.size, edge : edge + preprocess.size]
    statistics = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    mean, std = (values.view(1, 3, 1, 1) for values in sent(device, *statistics))
    return images.float().mul(1 / (255 * std)).sub_(mean / std)  # mul makes three channels of one


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images (B, C, S, S) -> (B, C, size, size) uint8, bit-equal to PIL's bicubic resize of square images.

    PIL filters rows, rounds to grey levels, then filters columns, with weights rounded to 22 bits; float64 holds the
    products of such weights and grey levels, and their sums, exactly, on any device.
    """
    if images.shape[-1] == size:
        return images
    weights = bicubic_weights(images.shape[-1], size).to(images.device)  # (size, S)
    x = images.double()
    for right in (True, False):
        x = x @ weights.T if right else weights @ x
        x.add_(0.5).floor_().clamp_(0, 255)  # in place: the largest array there is on the way
    return x.to(torch.uint8)


@functools.lru_cache(maxsize=8)
def bicubic_weights(old: int, new: int) -> torch.Tensor:
    """PIL's filter as a (new, old) float64 matrix."""
    eye = torch.eye(old, dtype=torch.float64)[None, None]
    # antialias selects PIL's kernel (a = -0.5, wider when shrinking); the other axis keeps its size, so it is untouched
    return (F.interpolate(eye, (new, old), mode="bicubic", antialias=True)[0, 0] * PIL_ONE).round() / PIL_ONE


class Decoded(Dataset[tuple[torch.Tensor | None, str]]):
    """Image i as (tensor, "") or (None, error text): an error that crosses processes as an exception loses its form."""

    def __init__(self, pool: Pool, prepare: Transform) -> None:
        self.pool, self.prepare = pool, prepare

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, i: int) -> tuple[torch.Tensor | None, str]:
        try:
            return self.prepare(self.pool.image(i)), ""
        except UserError as error:
            return None, str(error)


@dataclass(frozen=True)
class View:
    """PIL image -> (3, size, size) uint8 tensor of the pixels that the model sees."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(self.preprocess.pixels(image)).permute(2, 0, 1).contiguous()


def collate(items: Sequence[tuple[torch.Tensor | None, str]]) -> tuple[torch.Tensor | np.ndarray | None, list[str]]:
    """The items of Decoded as one batch."""
    images = [image for image, _ in items if image is not None]
    return stacked(images) if images else None, [text for _, text in items]


def stacked(images: list[torch.Tensor]) -> torch.Tensor | np.ndarray:
    """Images as one batch, on its way to another process through shared memory, or as an array through a pipe.

    A tensor takes shared memory, which PyTorch uses until it is full and then dies of; a container has 64 MB of it.
    """
    worker = get_worker_info()
    if worker is None:
        return torch.stack(images)
    try:
        room = shutil.disk_usage(SHARED).free
    except OSError:  # another system: no such folder, and no such limit
        room = sys.maxsize
    enough = room > (AHEAD + 1) * worker.num_workers * sum(image.nbytes for image in images)
    return default_collate(images) if enough else np.stack([image.numpy() for image in images])


def received(batch: torch.Tensor | np.ndarray, pin: bool) -> torch.Tensor:
    """A stacked batch as a tensor; pin: one that a GPU copies without waiting, as the loader makes them itself."""
    if torch.is_tensor(batch):
        return batch
    images = torch.from_numpy(batch)
    return images.pin_memory() if pin else images


def batches(
    pool: Pool,
    parts: Sequence[list[int]],
    preprocess: Preprocess,
    transform: Transform | None,
    num_workers: int,
    device: torch.device,
) -> Iterator[Images]:
    """Yield the Images of each list of rows: uint8, or transform's floats."""
    bicubic = transform is None and preprocess.interpolation == "bicubic"
    if pool.arrays is not None and bicubic and pool.arrays.shape[1] == pool.arrays.shape[2]:
        for rows in parts:
            yield received(pool.arrays[rows], device.type == "cuda"), [""] * len(rows)
        return
    loader = DataLoader(
        Decoded(pool, transform or View(preprocess)),
        batch_sampler=parts,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=AHEAD if num_workers else None,
    )
    try:
        for images, errors in loader:
            yield None if images is None else received(images, device.type == "cuda"), errors
    except RuntimeError as error:
        if str(error).startswith("Too many open files"):
            raise UserError(f"{no_more_files()}; the rows so far are kept") from None
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loading process died ({str(error).splitlines()[0]}): the rows so far are kept; if memory ran out, "
            "start again with fewer --num_workers or a smaller --batch_size_per_gpu"
        ) from None
