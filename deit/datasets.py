"""The training and evaluation images as batches, augmented the same on any process."""

import os
import signal
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from data_selection.common.errors import UserError
from deit.samples import resizing
from deit.samples.draws import AUGMENT, hashed, seeded, uniform
from deit.samples.pipeline import MARGIN, SMALL, Shifted, shifted_places

CACHE_BYTES = 2 << 30  # `--cache auto` keeps decoded images up to this size, per process
WORKERS = 8  # at most, by default, per process
OPEN: weakref.WeakSet = weakref.WeakSet()  # PilImages, whose workers close_workers ends


def decode(pool, ids, size=None, threads=WORKERS):
    """The images `ids` as a list of uint8 arrays (H, W, 3); size: resize those of another size to (size, size).

    Deviation from the released code, which would crop small inputs out of larger images without resizing.
    """

    def read(i):
        image = pool.image(i)
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    with ThreadPoolExecutor(threads) as workers:
        return list(workers.map(read, ids))


def viewed(pool, ids, view, margin=0, threads=WORKERS):
    """The images `ids` as evaluation sees them, uint8 (N, size + 2 margin, size + 2 margin, 3)."""
    side = view.size + 2 * margin
    images = torch.empty(len(ids), side, side, 3, dtype=torch.uint8)

    def read(place):
        images[place] = torch.from_numpy(view.pixels(pool.image(ids[place]), margin))

    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(read, range(len(ids))))
    return images


class TensorImages:
    """Images of one size as one uint8 tensor on the device, where whole batches are transformed at once."""

    def __init__(self, images, labels, pipeline, device, seed):
        """images (N, H, W, 3) uint8, labels (N,) int64."""
        self.images, self.labels = images.to(device), labels.to(device)
        self.mean = torch.tensor(pipeline.mean, device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(pipeline.std, device=device).view(1, 3, 1, 1) * 255
        self.pipeline, self.seed, self.device = pipeline, seed, device

    def __len__(self):
        return len(self.labels)

    def normalise(self, images):
        """images (B, 3, size, size) of values 0..255."""
        return (images.float() - self.mean) / self.std

    def plain(self, indices, batch):
        """Yield (images, labels) on the device of the images `indices`, a range, without augmentation."""
        for start in range(0, len(indices), batch):
            index = torch.tensor(indices[start : start + batch], device=self.device)
            yield self.normalise(self.central(self.images[index])), self.labels[index]


class PaddedImages(TensorImages):
    """Images of the model's own, small size: padded, cropped and flipped, as train_transform with nothing else."""

    def __init__(self, images, labels, pipeline, device, seed):
        """images (N, size, size, 3) uint8, labels (N,) int64."""
        super().__init__(images, labels, pipeline, device, seed)
        self.margin = MARGIN
        self.padded = pad(self.images, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN))  # (N, size + 8, size + 8, 3)

    def central(self, images):
        return images.permute(0, 3, 1, 2)

    def augmented(self, parts, epoch):
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each samplers.Part."""
        for part in parts:
            draws = shift_draws(self.seed, epoch, part)
            places = shifted_places(draws, self.pipeline.size, self.margin)
            index, rows, columns = (x.to(self.device) for x in (part.indices, *places))
            crops = self.padded[index[:, None, None], rows[:, :, None], columns[:, None]]  # (R, size, size, 3)
            yield self.normalise(crops.permute(0, 3, 1, 2)), self.labels[index]


class ViewedImages(PaddedImages):
    """Images of any size, resized once to what evaluation sees, with a margin to shift them in."""

    def __init__(self, images, labels, pipeline, device, seed):
        """images (N, size + 2 m, size + 2 m, 3) uint8, m = pipeline.margin in training and 0 in evaluation."""
        TensorImages.__init__(self, images, labels, pipeline, device, seed)
        self.margin = (images.shape[1] - pipeline.size) // 2
        self.padded = self.images

    def central(self, images):
        edge = slice(self.margin, self.margin + self.pipeline.size)
        return images[:, edge, edge].permute(0, 3, 1, 2)


def shift_draws(seed, epoch, part):
    """Uniform draws (R, 3) of the places of a samplers.Part: down, across, mirrored."""
    return uniform(seed, AUGMENT, epoch, part.places[:, None], torch.arange(3))


class Transformed(Dataset):
    """Item (i, seed) is (transform(image i), its label), the transform's draws fixed by the seed (None: no draws).

    Where training only shifts, the seed is the draws themselves.
    """

    def __init__(self, pool, ids, cached, transform):
        self.pool, self.ids, self.cached, self.transform = pool, ids, cached, transform

    def __getitem__(self, item):
        i, seed = item
        image = self.pool.image(self.ids[i]) if self.cached is None else Image.fromarray(self.cached[i])
        if seed is None:
            return self.transform(image), self.pool.label(self.ids[i])
        if isinstance(self.transform, Shifted):
            return self.transform(image, seed), self.pool.label(self.ids[i])
        with seeded(seed):
            return self.transform(image), self.pool.label(self.ids[i])


class Batches:
    """A batch sampler whose batches are set before each epoch, so that one DataLoader (and its workers) serves all."""

    def __init__(self):
        self.items = []

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)


class ResizedImages(TensorImages):
    """Images cropped at random, resized and flipped, as train_transform does, PIL's pixels but for rounding."""

    def __init__(self, images, labels, pipeline, device, seed):
        """images (N, H, W, 3) uint8, labels (N,) int64."""
        super().__init__(images, labels, pipeline, device, seed)
        self.height, self.width = images.shape[1:3]
        matrices = resizing.evaluation_matrices(self.height, self.width, pipeline.size)
        self.rows, self.columns = (matrix.to(device) for matrix in matrices)

    def augmented(self, parts, epoch):
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each samplers.Part."""
        size, kind = self.pipeline.size, self.pipeline.interpolation
        for part in parts:
            draws = uniform(self.seed, AUGMENT, epoch, part.places[:, None], torch.arange(resizing.DRAWS))
            boxes = resizing.random_boxes(draws[:, :-1], self.height, self.width)
            flipped, index, top, left, tall, wide = (
                x.to(self.device) for x in (draws[:, -1] < 0.5, part.indices, *boxes)
            )
            rows = resizing.resampling(top, tall, size, self.height, kind)  # (R, size, H)
            columns = resizing.resampling(left, wide, size, self.width, kind)  # (R, size, W)
            columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
            yield self.normalise(resizing.resize(self.images[index], rows, columns)), self.labels[index]

    def central(self, images):
        return resizing.resize(images, self.rows, self.columns)


def ignore_sigterm(worker):
    """A scheduler's warning reaches every process of a job; the trainer decides, and its workers end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class PilImages:
    """Images transformed one by one with PIL, in workers that live as long as the run."""

    def __init__(self, pool, ids, cached, pipeline, device, seed, *, train, workers, pin_memory):
        transform = pipeline.eval_transform()
        if train:
            transform = Shifted(pipeline) if pipeline.shifts else pipeline.train_transform()
        self.shifts = pipeline.shifts
        self.batches, self.seed, self.device, self.count = Batches(), seed, device, len(ids)
        self.loader = DataLoader(
            Transformed(pool, ids, cached, transform), batch_sampler=self.batches, num_workers=workers,
            pin_memory=pin_memory and device.type == "cuda", persistent_workers=workers > 0,
            worker_init_fn=ignore_sigterm,
        )  # fmt: skip
        OPEN.add(self)

    def __len__(self):
        return self.count

    def augmented(self, parts, epoch):
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each samplers.Part."""

        def seeds(part):
            if self.shifts:
                return shift_draws(self.seed, epoch, part).tolist()
            return (hashed(self.seed, AUGMENT, epoch, part.places) & (1 << 63) - 1).tolist()

        self.batches.items = [list(zip(part.indices.tolist(), seeds(part))) for part in parts]
        yield from self._load()

    def plain(self, indices, batch):
        """Yield (images, labels) on the device of the images `indices`, a range, without augmentation."""
        starts = range(0, len(indices), batch)
        self.batches.items = [[(i, None) for i in indices[start : start + batch]] for start in starts]
        yield from self._load()

    def close(self):
        """End the workers, whatever state they are in; nobody waits for them, and their death raises nothing more.

        A DataLoader ends its workers when it is collected, which a traceback delays for as long as somebody holds it,
        and waits for ever for those that ignore SIGTERM. It has no public way to do this.
        """
        iterator, self.loader._iterator = self.loader._iterator, None
        if iterator is None:
            return
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
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _load(self):
        try:
            for images, labels in self.loader:
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except UserError as error:  # a worker's comes with its traceback, of which the last line is the message
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from None


def close_workers():
    """End the workers of all PilImages."""
    for images in list(OPEN):
        images.close()


def prepare(pool, ids, pipeline, device, *, train, seed=0, cache="auto", workers=None, pin_memory=True):
    """ViewedImages, PaddedImages, ResizedImages or PilImages of the pool indices `ids`, whichever does the pipeline.

    cache: `device` keeps decoded images on the device and transforms batches there, `ram` keeps them in main memory,
    `none` does not keep them; `auto` is the first of these that can be and takes up to 2 GiB. Small inputs are always
    kept. workers: processes that transform images one by one; None picks by the number of cores.
    Raises UserError for `device` where the images differ in size, or the augmentation is not for whole batches.
    """
    small, batched, cached = pipeline.size <= SMALL, pipeline.simple or not train, None
    if pipeline.view is not None and (pipeline.shifts or not train):
        margin = pipeline.margin if train else 0
        needed = 3 * len(ids) * (pipeline.size + 2 * margin) ** 2  # bytes
        if cache in ("ram", "device") or (cache == "auto" and needed <= CACHE_BYTES):
            labels = torch.tensor([pool.label(i) for i in ids])
            return ViewedImages(viewed(pool, ids, pipeline.view, margin), labels, pipeline, device, seed)
    elif small or cache in ("ram", "device") or (cache == "auto" and fits(pool, ids, batched)):
        cached = decode(pool, ids, pipeline.size if small else None)
    if batched and cached and (small or cache != "ram") and len({image.shape for image in cached}) == 1:
        kind, labels = PaddedImages if small else ResizedImages, torch.tensor([pool.label(i) for i in ids])
        return kind(torch.from_numpy(np.stack(cached)), labels, pipeline, device, seed)
    if cache == "device":
        raise UserError(
            "--cache device needs images of one size, and no --aa, --color-jitter, --reprob or --train-interpolation "
            "random: use --cache ram"
        )
    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(WORKERS, max(1, (os.cpu_count() or 1) // here))
    return PilImages(
        pool, ids, cached, pipeline, device, seed, train=train, workers=workers, pin_memory=pin_memory
    )  # fmt: skip


def fits(pool, ids, batched):
    """Whether decoding `ids` once saves time and takes up to CACHE_BYTES, judged by the first image."""
    if pool.arrays is not None and not batched:  # held in memory as it is
        return False
    width, height = pool.image(ids[0]).size
    return 3 * width * height * len(ids) <= CACHE_BYTES
