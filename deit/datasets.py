"""The training and evaluation images: by data set name, whole or a chosen subset, augmented the same on any process."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

from data_selection import pools
from data_selection.errors import UserError
from data_selection.feature_table import read_json, sidecar
from data_selection.subset_files import load_subset
from deit.draws import AUGMENT, hashed, seeded, uniform
from deit.pipeline import MARGIN, SMALL

DEFAULT_PATH = Path(__file__).resolve().parent / "data"
CACHE_BYTES = 2 << 30  # `--cache auto` keeps decoded images up to this size, per process
POOL_NAMES = {"FASHIONMNIST": "FashionMNIST", "IMNET": "ImageNet"}  # where extraction's differ from the trainer's
HELD = {"CIFAR10": ("cifar-10-*",), "CIFAR100": ("cifar-100-*",), "FASHIONMNIST": ("FashionMNIST", "*-ubyte*")}
WORKERS = 8  # at most, by default, per process


def find_data(name, data_path):
    """The folder of a data set: data_path as given; else `data` where the user stands, else deit/data.

    A data set that is there to download is taken from the first of these that holds it; else from data_selection/data,
    where feature extraction puts it.
    ImageNet and class folders: the folder that holds train/ and val/, {data path} itself or ImageNet/ in it.
    """
    root = Path(data_path or "data")
    if data_path is None:
        folders, files = (root, DEFAULT_PATH, pools.DATA), HELD.get(name, ())
        holding = [folder for folder in folders if any(any(folder.glob(pattern)) for pattern in files)]
        root = holding[0] if holding else root if root.is_dir() else DEFAULT_PATH
    if name == "IMNET" and not (root / "train").is_dir():
        return root / "ImageNet"
    return root


def open_images(name, data_path=None):
    """(training pool, evaluation pool) of a data set name without SUBSET; labels in both count the same classes."""
    root = find_data(name, data_path)
    if name == "FOLDER":
        train, test = class_folders(root / "train"), class_folders(root / "val")
        if train.class_names != test.class_names:
            raise UserError(
                f"{root}/train has the classes {_some(train.class_names)} but {root}/val has "
                f"{_some(test.class_names)}: both need the same class folders"
            )
        return train, test
    if name == "IMNET":
        if root.name == "ImageNet":
            return tuple(pools.open_pool("ImageNet", split, root.parent) for split in ("train", "val"))
        return tuple(imagenet_folders(root / split) for split in ("train", "val"))
    return tuple(
        pools.open_pool(POOL_NAMES.get(name, name), split, None if name == "DEMO" else root)
        for split in ("train", "test")
    )


def class_folders(folder):
    """The images below folder/<class>/, in the order of feature extraction (sorted by relative path)."""
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist: --data-path must hold train/<class>/ and val/<class>/")
    pool = pools.folder_pool(folder)
    stray = next((name for name in pool.names if "/" not in name), None)
    if stray:
        raise UserError(f"{folder}/{stray} lies in no class folder: put each image into {folder}/<class>/")
    words = [name.split("/")[0] for name in pool.names]
    pool.class_names = tuple(sorted(set(words)))
    pool.classes = len(pool.class_names)
    number = {word: i for i, word in enumerate(pool.class_names)}
    pool.labels = [number[word] for word in words]
    return pool


def imagenet_folders(folder):
    """ImageNet's train or val folder in torchvision's order, which published subsets count in."""
    from torchvision.datasets import ImageFolder

    try:
        source = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"ImageNet is needed as class folders in {folder} ({error}): check --data-path") from None
    paths, labels = zip(*source.samples, strict=True)
    return pools.Pool(paths=list(paths), labels=labels, classes=len(source.classes), class_names=source.classes)


def choose_ids(pool, subset_file=None):
    """The pool indices to train on, a list: all, or those of a subset file (checked against the pool)."""
    return list(range(len(pool))) if subset_file is None else load_subset(subset_file, len(pool)).tolist()


def check_same_pool(subset_file, pool, name, log):
    """Raise UserError where the provenance beside a subset file tells of a pool with another number of images.

    name: of the data set, as for open_images. A pool of another name gets a line in log: names are the user's.
    """
    beside = sidecar(subset_file, "provenance")
    features = read_json(beside).get("features") if beside.exists() else None
    features = features or {}
    if features.get("shape") and features["shape"][0] != len(pool):
        raise UserError(
            f"subset file {subset_file} was chosen from {features['shape'][0]} images, but the training set has "
            f"{len(pool)}: it is a list of another data set, or images were skipped or added since the features were "
            "extracted. Extract the features of this training set and choose again"
        )
    chosen_from = ((features.get("provenance") or {}).get("pool") or {}).get("name")
    if chosen_from in pools.POOLS and name != "FOLDER" and chosen_from != POOL_NAMES.get(name, name):
        log(f"{subset_file} was chosen from {chosen_from}, and the data set is {name}")


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


class TensorImages:
    """Small images as one uint8 tensor on the device; whole batches are cropped, flipped and normalised at once.

    The same distribution as train_transform with nothing but padded crop and flip.
    """

    def __init__(self, images, labels, pipeline, device, seed):
        """images (N, size, size, 3) uint8, labels (N,) int64."""
        self.images, self.labels = images.to(device), labels.to(device)
        self.padded = pad(self.images, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN))  # (N, size + 8, size + 8, 3)
        self.mean = torch.tensor(pipeline.mean, device=device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(pipeline.std, device=device).view(1, 3, 1, 1) * 255
        self.pipeline, self.seed, self.device = pipeline, seed, device

    def __len__(self):
        return len(self.labels)

    def normalise(self, images):
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std  # (B, 3, size, size)

    def augmented(self, parts, epoch):
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each samplers.Part."""
        side = torch.arange(self.pipeline.size)
        for part in parts:
            draws = uniform(self.seed, AUGMENT, epoch, part.places[:, None], torch.arange(3))  # (R, 3)
            offsets = (draws[:, :2] * (2 * MARGIN + 1)).long()  # (R, 2) in 0..8
            rows = offsets[:, :1] + side  # (R, size)
            columns = offsets[:, 1:] + torch.where(draws[:, 2:] < 0.5, side.flip(0), side)
            index, rows, columns = (x.to(self.device) for x in (part.indices, rows, columns))
            yield (
                self.normalise(self.padded[index[:, None, None], rows[:, :, None], columns[:, None]]),
                self.labels[index],
            )

    def plain(self, indices, batch):
        """Yield (images, labels) on the device of the images `indices`, a range, without augmentation."""
        for start in range(0, len(indices), batch):
            index = torch.tensor(indices[start : start + batch], device=self.device)
            yield self.normalise(self.images[index]), self.labels[index]


class Transformed(Dataset):
    """Item (i, seed) is (transform(image i), its label), the transform's draws fixed by the seed (None: no draws)."""

    def __init__(self, pool, ids, cached, transform):
        self.pool, self.ids, self.cached, self.transform = pool, ids, cached, transform

    def __getitem__(self, item):
        i, seed = item
        image = self.pool.image(self.ids[i]) if self.cached is None else Image.fromarray(self.cached[i])
        if seed is None:
            return self.transform(image), self.pool.label(self.ids[i])
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


class PilImages:
    """Images transformed one by one with PIL, in workers that live as long as the run."""

    def __init__(self, pool, ids, cached, pipeline, device, seed, *, train, workers, pin_memory):
        transform = pipeline.train_transform() if train else pipeline.eval_transform()
        self.batches, self.seed, self.device, self.count = Batches(), seed, device, len(ids)
        self.loader = DataLoader(
            Transformed(pool, ids, cached, transform), batch_sampler=self.batches, num_workers=workers,
            pin_memory=pin_memory and device.type == "cuda", persistent_workers=workers > 0,
        )  # fmt: skip

    def __len__(self):
        return self.count

    def augmented(self, parts, epoch):
        """Yield (images (R, 3, size, size), labels (R,)) on the device for each samplers.Part."""

        def seeds(part):
            return (hashed(self.seed, AUGMENT, epoch, part.places) & (1 << 63) - 1).tolist()

        self.batches.items = [list(zip(part.indices.tolist(), seeds(part))) for part in parts]
        yield from self._load()

    def plain(self, indices, batch):
        """Yield (images, labels) on the device of the images `indices`, a range, without augmentation."""
        starts = range(0, len(indices), batch)
        self.batches.items = [[(i, None) for i in indices[start : start + batch]] for start in starts]
        yield from self._load()

    def _load(self):
        for images, labels in self.loader:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def prepare(pool, ids, pipeline, device, *, train, seed=0, cache="auto", workers=None, pin_memory=True):
    """TensorImages or PilImages of the pool indices `ids`, whichever can do the pipeline.

    cache: `ram` keeps decoded images in memory, `none` does not, `auto` does where they take up to 2 GiB. Small inputs
    are always kept. workers: processes that transform images; None picks by the number of cores.
    """
    small, cached = pipeline.size <= SMALL, None
    if small or cache == "ram" or (cache == "auto" and fits(pool, ids)):
        cached = decode(pool, ids, pipeline.size if small else None)
    if small and (pipeline.simple or not train):
        labels = torch.tensor([pool.label(i) for i in ids])
        return TensorImages(torch.from_numpy(np.stack(cached)), labels, pipeline, device, seed)
    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(WORKERS, max(1, (os.cpu_count() or 1) // here))
    return PilImages(
        pool, ids, cached, pipeline, device, seed, train=train, workers=workers, pin_memory=pin_memory
    )  # fmt: skip


def fits(pool, ids):
    """Whether decoding `ids` once saves time and takes up to CACHE_BYTES, judged by the first image."""
    if pool.arrays is not None:  # held in memory as it is
        return False
    width, height = pool.image(ids[0]).size
    return 3 * width * height * len(ids) <= CACHE_BYTES


def _some(words, count=4):
    return ", ".join(words[:count]) + (f" and {len(words) - count} more" if len(words) > count else "")
