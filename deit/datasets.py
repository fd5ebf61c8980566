"""The training and evaluation images as batches, augmented the same on any process."""

import signal
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.system import cores
from data_selection.embedding.image_batches import Transform, received, stacked
from data_selection.images.pools import Pool
from deit.samples.batches import Batch, ImageBatches, Part, Plain
from deit.samples.draws import AUGMENT, hashed, seeded
from deit.samples.keeping import Room, Share, fits
from deit.samples.pipeline import SMALL, Cropped, Pipeline, Shifted
from deit.samples.tensor_images import (
    CroppedImages,
    EvaluationImages,
    PaddedImages,
    ResizedImages,
    ViewedImages,
    crop_draws,
    shift_draws,
)

TINY = 48  # pixels of a side: random crops of smaller images are resized faster by matrices, also on a CPU
WORKERS = 8  # at most, by default, per process
OPEN: "weakref.WeakSet[PilImages]" = weakref.WeakSet()  # PilImages, whose workers close_workers ends

# What augments an image: a seed, or where it is only shifted the draws (3,); None: nothing
Draws = int | list[float] | None
Own = Transform | Shifted | Cropped  # those that take their draws, too
Item = tuple[int, Draws]  # an image by its place among those of a set


def decode(pool: Pool, ids: Sequence[int], size: int | None = None, threads: int = WORKERS) -> list[np.ndarray]:
    """The images `ids` as uint8 arrays (H, W, 3); size: resize those of another size to (size, size).

    Deviation from the released code, which would crop small inputs out of larger images without resizing.
    """

    def read(i: int) -> np.ndarray:
        image = pool.image(i)
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    with ThreadPoolExecutor(threads) as workers:
        return list(workers.map(read, ids))


def viewed(pool: Pool, ids: Sequence[int], pipeline: Pipeline, margin: int = 0, threads: int = WORKERS) -> torch.Tensor:
    """The images `ids` as evaluation sees them, uint8 (N, size + 2 margin, size + 2 margin, 3)."""
    side = pipeline.size + 2 * margin
    images = torch.empty(len(ids), side, side, 3, dtype=torch.uint8)

    def read(place: int) -> None:
        images[place] = torch.from_numpy(pipeline.pixels(pool.image(ids[place]), margin))

    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(read, range(len(ids))))
    return images


class Transformed(Dataset[tuple[torch.Tensor, int]]):
    """Item (i, draws) is (transform(image i), its label), the transform's draws fixed by the seed (None: no draws).

    Shifted and Cropped take the draws themselves.
    """

    def __init__(self, pool: Pool, ids: Sequence[int], cached: Sequence[np.ndarray] | None, transform: Own) -> None:
        self.pool, self.ids, self.cached, self.transform = pool, ids, cached, transform

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, int]:
        i, draws = item
        image = self.pool.image(self.ids[i]) if self.cached is None else Image.fromarray(self.cached[i])
        return self.transformed(image, draws), self.pool.label(self.ids[i])

    def transformed(self, image: Image.Image, draws: Draws) -> torch.Tensor:
        if isinstance(self.transform, Shifted | Cropped):
            assert isinstance(draws, list)
            return self.transform(image, draws)
        if draws is None:
            return self.transform(image)
        assert isinstance(draws, int)
        with seeded(draws):
            return self.transform(image)


class Batches:
    """A batch sampler whose batches are set before each epoch, so that one DataLoader (and its workers) serves all."""

    def __init__(self) -> None:
        self.items: list[list[Item]] = []

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def collate(items: Sequence[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor | np.ndarray, np.ndarray]:
    """Items of Transformed as one batch."""
    return stacked([image for image, _ in items]), np.array([label for _, label in items], np.int64)


def ignore_signals(_worker: int) -> None:
    """A scheduler's warning and Ctrl-C reach every process; the trainer decides, and its workers end with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class PilImages:
    """Images transformed one by one with PIL, in workers that live as long as the run."""

    def __init__(
        self,
        pool: Pool,
        ids: Sequence[int],
        cached: Sequence[np.ndarray] | None,
        pipeline: Pipeline,
        device: torch.device,
        seed: int,
        *,
        train: bool,
        workers: int,
        pin_memory: bool,
    ) -> None:
        transform: Own = pipeline.eval_transform()
        if train:
            crops = pipeline.simple and pipeline.size > SMALL  # as images that are kept
            other = Cropped(pipeline) if crops else pipeline.train_transform()
            transform = Shifted(pipeline) if pipeline.shifts else other
        self.transform, self.pin = transform, pin_memory and device.type == "cuda"
        self.batches, self.seed, self.device, self.count = Batches(), seed, device, len(ids)
        self.loader = DataLoader(
            Transformed(pool, ids, cached, transform), batch_sampler=self.batches, num_workers=workers,
            collate_fn=collate, pin_memory=self.pin, persistent_workers=workers > 0, worker_init_fn=ignore_signals,
        )  # fmt: skip
        OPEN.add(self)

    def __len__(self) -> int:
        return self.count

    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each Part."""

        def seeds(part: Part) -> list[Draws]:
            if isinstance(self.transform, Shifted | Cropped):
                drawn = shift_draws if isinstance(self.transform, Shifted) else crop_draws
                return drawn(self.seed, epoch, part).tolist()
            return (hashed(self.seed, AUGMENT, epoch, part.places) & (1 << 63) - 1).tolist()

        self.batches.items = [list(zip(part.indices.tolist(), seeds(part), strict=True)) for part in parts]
        yield from self._load()

    def plain(self, indices: range, batch: int) -> Iterator[Batch]:
        """Yield (images, labels) on the device of the images `indices`, without augmentation."""
        starts = range(0, len(indices), batch)
        self.batches.items = [[(i, None) for i in indices[start : start + batch]] for start in starts]
        yield from self._load()

    def close(self) -> None:
        """End the workers, whatever state they are in; nobody waits for them, and their death raises nothing more.

        A DataLoader ends its workers when it is collected, which a traceback delays for as long as somebody holds it,
        and waits for ever for those that ignore SIGTERM. It has no public way to do this.
        """
        iterator: Any = self.loader._iterator
        self.loader._iterator = None
        if iterator is None:
            return
        masked = hasattr(signal, "pthread_sigmask")  # Windows has no such signal
        if masked:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            torch._C._remove_worker_pids(id(iterator))  # from here on PyTorch's SIGCHLD handler does not know them
            iterator._worker_pids_set, iterator._shutdown = False, True
            for worker in iterator._workers:
                worker.kill()
            for worker in iterator._workers:
                worker.join()
            for queue in iterator._index_queues:
                queue.cancel_join_thread()
                queue.close()
            if hasattr(iterator, "_pin_memory_thread"):
                iterator._pin_memory_thread_done_event.set()
                iterator._worker_result_queue.put((None, None))
        finally:
            if masked:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _load(self) -> Iterator[Batch]:
        try:
            for images, labels in self.loader:
                batch = received(images, self.pin), received(labels, self.pin)
                yield batch[0].to(self.device, non_blocking=True), batch[1].to(self.device, non_blocking=True)
        except UserError as error:  # a worker's comes with its traceback, of which the last line is the message
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from None
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it handed a batch over
            raise RuntimeError(f"DataLoader worker is gone: {error}") from None


def close_workers() -> None:
    """End the workers of all PilImages."""
    for images in list(OPEN):
        images.close()


def prepare(
    pool: Pool,
    ids: Sequence[int],
    pipeline: Pipeline,
    device: torch.device,
    *,
    train: bool,
    seed: int = 0,
    cache: str = "auto",
    workers: int | None = None,
    pin_memory: bool = True,
    room: Room | None = None,
    most: int = 0,
) -> ImageBatches:
    """The pool indices `ids` as whatever does the pipeline fastest: see the classes of tensor_images, and PilImages.

    What evaluation sees, or `shift` moves, is made once. Random crops of whole batches are made on the device by matrix
    products (ResizedImages), where that is a GPU or the images are tiny; else by Pillow (CroppedImages).
    cache: `device` keeps decoded images on the device and transforms batches there, `ram` keeps them in main memory,
    `none` does not keep them; `auto` keeps them where room has the bytes. Small inputs are always kept. workers:
    processes that transform images one by one; None picks by the number of cores. most: images that take room, where
    another process has more.
    Raises UserError for `device` where the images differ in size, or the augmentation is not for whole batches.
    """
    small, batched, cached = pipeline.size <= SMALL, pipeline.simple or not train, None
    keep = cache in ("ram", "device")
    labels, room = torch.tensor([pool.label(i) for i in ids]), room or Room()
    if workers is None:
        workers = min(WORKERS, cores())
    if (not small and not train) or (pipeline.view is not None and (pipeline.shifts or not train)):
        margin = pipeline.margin if train else 0
        frames = 3 * max(most, len(ids)) * (pipeline.size + 2 * margin) ** 2
        if keep or (cache == "auto" and room.take(frames)):
            kind = ViewedImages if pipeline.view is not None else EvaluationImages
            return kind(viewed(pool, ids, pipeline, margin), labels, pipeline, device, seed)
    elif small or keep or (cache == "auto" and fits(pool, ids, batched, room)):
        cached = decode(pool, ids, pipeline.size if small else None)
    if batched and cached and (small or cache != "ram"):
        alike = len({image.shape for image in cached}) == 1
        if small and alike:
            return PaddedImages(torch.from_numpy(np.stack(cached)), labels, pipeline, device, seed)
        if alike and (cache == "device" or device.type == "cuda" or max(cached[0].shape[:2]) <= TINY):
            return ResizedImages(torch.from_numpy(np.stack(cached)), labels, pipeline, device, seed)
        if cache == "auto" and device.type == "cpu":
            return CroppedImages(cached, labels, pipeline, seed, workers or 1)
    if cache == "device" and ids:  # a process may have none of a few images
        raise UserError(
            "--cache device needs images of one size, and no --aa, --color-jitter, --reprob or --train-interpolation "
            "random: use --cache ram"
        )
    return PilImages(
        pool, ids, cached, pipeline, device, seed, train=train, workers=workers, pin_memory=pin_memory
    )  # fmt: skip


def prepare_share(
    world: World,
    pool: Pool,
    ids: Sequence[int],
    pipeline: Pipeline,
    *,
    cache: str = "auto",
    workers: int | None = None,
    pin_memory: bool = True,
    room: Room | None = None,
) -> Plain:
    """As prepare, without augmentation: of all images only those that this process of several evaluates."""
    mine, most = ids[world.rank :: world.size], -(-len(ids) // world.size)
    held = prepare(
        pool, mine, pipeline, world.device, train=False, cache=cache, workers=workers, pin_memory=pin_memory,
        room=room, most=most,
    )  # fmt: skip
    return held if world.size == 1 else Share(held, len(ids), world.rank, world.size)
