"""Image pools by name, folder or list: item i is (RGB image, label, i), and i is what subset files hold."""

import difflib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.common.paths import DATA, DEMO
from data_selection.images.dataset_files import (
    PoolParts,
    existing,
    find_idx,
    imbalanced_rows,
    read_ade20k,
    read_cub,
    read_idx,
    read_voc,
)
from data_selection.images.folders import SPLITS, check_one_split, image_names, in_words
from data_selection.images.image_files import WHITE, read_image, readable
from data_selection.images.inaturalist import read_inaturalist
from data_selection.images.list_files import UNKNOWN, guessed, number_labels, read_list, shared_words

DEMO_FILE = DEMO / "fashion_mnist_12k.npz"
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to 0..1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pool:
    """A pool of images, a map-style dataset for a DataLoader; item i is (PIL image in RGB, label or -1, i).

    arrays: (N, H, W) or (N, H, W, 3) uint8 where the pool is held in memory, else None; then paths has the N files.
    labels: -1 where unknown, or None where no image has one. classes: their number, or None.
    names: N names (folders and lists), or None. class_names: one per class, or None. left_out: of a folder, how many
    files are no part of it and why. background: the colour (#rrggbb) that transparent images are laid over.
    guessed: a sentence where labels were decoded by guess, else "". strange: of evaluation images, {class that the
    training part lacks: how many are of it}.
    Reading an image raises UserError, naming the file, where it cannot be decoded.
    """

    def __init__(
        self,
        *,
        arrays: np.ndarray | None = None,
        paths: Sequence[str] = (),
        labels: Iterable[int] | None = None,
        classes: int | None = None,
        names: Iterable[str] | None = None,
        class_names: Iterable[str] | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self.arrays, self.paths = arrays, paths
        self.labels = None if labels is None else [int(label) for label in labels]
        self.classes = classes
        self.names = None if names is None else tuple(names)
        self.class_names = None if class_names is None else tuple(class_names)
        self.left_out = Counter(left_out or {})
        self.background = WHITE
        self.guessed = ""
        self.strange: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.paths if self.arrays is None else self.arrays)

    def __getitem__(self, i: int) -> tuple[Image.Image, int, int]:
        return self.image(i), self.label(i), i

    def image(self, i: int) -> Image.Image:
        """Image i as a PIL image in RGB."""
        if self.arrays is None:
            return read_image(self.paths[i], self.background)
        return Image.fromarray(self.arrays[i]).convert("RGB")

    def label(self, i: int) -> int:
        return UNKNOWN if self.labels is None else self.labels[i]


@dataclass(frozen=True)
class PoolKind:
    """A row of POOLS. build(root, train) -> Pool; backbone: what embeds it by default; root: where it is by default."""

    build: Callable[[Path, bool], Pool]
    backbone: str = "vit_small"
    root: Path = DATA


def open_pool(name: str, split: str = "train", root: Path | str | None = None) -> Pool:
    """The pool of a name of POOLS, of a folder (recursive, sorted by path) or of a list file (text or CSV).

    split: `train`, or `test` / `val` for the held-out part; a folder or a list has one part, whatever the word.
    root: where the pool's files are (default: data_selection/data); for a list, what its relative paths start from
    (default: the list's folder). Names win over folders: write ./CIFAR10 for a folder that is called like a pool.
    Raises UserError for an unknown name or split, missing files, a folder or list without images, or a folder of
    several splits (train/, val/).
    """
    if name in POOLS:
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r} of {name}: use train, or test (the same as val)")
        kind = POOLS[name]
        return kind.build(Path(kind.root if root is None else root), split == "train")
    if Path(name).is_dir():
        check_one_split(Path(name))
        return folder_pool(Path(name))
    if Path(name).is_file():
        return list_pool(Path(name), Path(name).parent if root is None else Path(root))
    raise UserError(_unknown(name))


def own_pool(source: Path | str) -> Pool:
    """The user's own images: a folder or a list file, as open_pool opens them, and never a data set of that name.

    Relative paths of a list start from its folder, and no flag sets another.
    """
    path = Path(source).absolute()
    if not path.exists():
        raise UserError(f"{source} does not exist: give a folder of images, or a list of their paths (text or CSV)")
    return list_pool(path, path.parent, flag="") if path.is_file() else open_pool(str(path))


def asked_pool(source: Path | str) -> Pool:
    """The images that a model is asked of: as own_pool, and an image file is a pool of one."""
    path = Path(source).absolute()
    if path.is_file() and path.suffix.lower() in readable():
        return Pool(paths=[str(path)], names=[path.name])
    return own_pool(source)


def _unknown(name: str) -> str:
    lowered = {known.lower(): known for known in POOLS}
    close = difflib.get_close_matches(str(name).lower().replace("-", "").replace("_", ""), lowered, 1, 0.7)
    hint = f" Did you mean {lowered[close[0]]}?" if close else ""
    return (
        f"{str(name)!r} is neither a known data set ({', '.join(POOLS)}) nor a folder of images "
        f"nor a list file (text or CSV) that exists.{hint}"
    )


def folder_pool(folder: Path) -> Pool:
    """Every image below a folder as folders.image_names finds them; relative paths are the names.

    Raises UserError where there are none, or where folders of two splits lie beside each other.
    """
    names, left_out = image_names(folder)
    if not names:
        found = f"; left out: {in_words(left_out)}" if left_out else ""
        raise UserError(f"folder {folder} holds no images ({', '.join(readable())}): check the path{found}")
    return Pool(paths=_joined(folder, names), names=names, left_out=left_out)


def _joined(folder: Path, names: Sequence[str]) -> list[str]:
    return [os.path.join(folder, name) for name in names]  # noqa: PTH118 - pathlib takes six times as long


def list_pool(path: Path, root: Path, flag: str = "--data_path") -> Pool:
    """The images a file lists, in its order: text with a path a line, or a .csv of path and (optional) label.

    A CSV may start with a header (`file,label`). Labels are whole numbers, or words, which are numbered in sorted
    order, together with those of the lists beside it that share some; an empty one is unknown. Relative paths start
    from root. The names are the paths as written. flag: the command's that sets another root, "" for none.
    """
    names, labels = read_list(path, lambda name: Path(root, name).is_file())
    if not names:
        raise UserError(f"list {path} names no images")
    repeated = len(names) - len(set(names))
    if repeated:
        twice = Counter(names).most_common(1)[0][0]
        raise UserError(f"list {path} names {twice!r} more than once ({repeated} repeats): remove the repeats")
    hint = f"relative paths start from {root}" + (f" ({flag} sets another folder)" if flag else "")
    paths = existing(_joined(root, names), f"list {path}", hint)
    numbers, class_names = number_labels(labels, path)
    if class_names:
        numbers, class_names = number_labels(labels, path, shared_words(path, class_names))
    known = [] if numbers is None else numbers
    classes = len(class_names) if class_names else max(known, default=-1) + 1 or None
    pool = Pool(paths=paths, labels=numbers if classes else None, classes=classes, names=names, class_names=class_names)
    pool.guessed = guessed(path, labels)
    return pool


def load_demo() -> dict[str, np.ndarray]:
    """The demo pool: {train,test}_images (N, 28, 28), _labels, _index (rows of Fashion-MNIST); 10,000 and 2,000."""
    if not DEMO_FILE.is_file():
        raise UserError(f"the demo pool {DEMO_FILE} is missing: make it with scripts/demo/make_demo_data.py")
    with np.load(DEMO_FILE, allow_pickle=False) as arrays:
        return dict(arrays)


def _build_demo(_root: Path, train: bool) -> Pool:
    arrays, split = load_demo(), "train" if train else "test"
    return Pool(arrays=arrays[f"{split}_images"], labels=arrays[f"{split}_labels"], classes=10)


def _build_fashion(root: Path, train: bool) -> Pool:
    for folder in (root / "FashionMNIST" / "raw", root):
        if any(folder.glob("*-ubyte*")):
            break
    else:
        from torchvision.datasets import FashionMNIST

        _download(FashionMNIST, root, train)
        folder = root / "FashionMNIST" / "raw"
    part = "train" if train else "t10k"
    images = read_idx(find_idx(folder, f"{part}-images-idx3-ubyte"))
    return Pool(arrays=images, labels=read_idx(find_idx(folder, f"{part}-labels-idx1-ubyte")), classes=10)


def _build_cifar(name: str, root: Path, train: bool) -> Pool:
    from torchvision import datasets  # slow to import, and half the users of this module never need it

    source = _download(getattr(datasets, name), root, train)
    return Pool(arrays=source.data, labels=source.targets, classes=len(source.classes), class_names=source.classes)


def _download(kind: Any, root: Path, train: bool) -> Any:
    """A torchvision data set from root, downloaded where it is not there yet."""
    try:
        try:
            return kind(root, train=train, download=False)
        except RuntimeError:  # torchvision's word for: not there, or not whole
            return kind(root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        sources = getattr(kind, "url", None) or f"{kind.mirrors[0]} ({', '.join(name for name, _ in kind.resources)})"
        target = root if hasattr(kind, "url") else root / kind.__name__ / "raw"
        raise UserError(
            f"{kind.__name__} is not in {root} and cannot be downloaded ({error}): fetch {sources} "
            f"on another machine and put it into {target}, or give its folder with --data_path"
        ) from None


def _build_imagenet(root: Path, train: bool) -> Pool:
    from torchvision.datasets import ImageFolder

    folder = root / "ImageNet" / ("train" if train else "val")
    try:
        source = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(
            f"ImageNet is needed as class folders in {folder}: link it there, or give with --data_path the folder "
            f"that holds ImageNet/train and ImageNet/val ({error})"
        ) from None
    paths, labels = zip(*source.samples, strict=True)
    return Pool(paths=list(paths), labels=labels, classes=len(source.classes), class_names=source.classes)


def _build_long_tail(ratio: int, root: Path, train: bool) -> Pool:
    """The training part of CIFAR100 thinned out; its names are CIFAR100 indices. The held-out part is CIFAR100's."""
    whole = _build_cifar("CIFAR100", root, train)
    if not train:
        return whole
    assert whole.arrays is not None  # as of every pool that torchvision holds in memory
    assert whole.labels is not None
    rows = imbalanced_rows(whole.labels, ratio)
    return Pool(
        arrays=whole.arrays[rows], labels=np.asarray(whole.labels)[rows], classes=whole.classes,
        names=map(str, rows), class_names=whole.class_names,
    )  # fmt: skip


def _build_from(reader: Callable[[Path, bool], PoolParts], root: Path, train: bool) -> Pool:
    return Pool(**reader(root, train))


POOLS = {
    "DEMO": PoolKind(_build_demo, backbone="demo_vit", root=DEMO),
    "CIFAR10": PoolKind(functools.partial(_build_cifar, "CIFAR10")),
    "CIFAR100": PoolKind(functools.partial(_build_cifar, "CIFAR100")),
    "ImageNet": PoolKind(_build_imagenet),
    "FashionMNIST": PoolKind(_build_fashion),
    "CUB2011": PoolKind(functools.partial(_build_from, read_cub)),
    "INAT": PoolKind(functools.partial(_build_from, functools.partial(read_inaturalist, year=2018))),
    "INAT19": PoolKind(functools.partial(_build_from, functools.partial(read_inaturalist, year=2019))),
    "CIFAR100LT_IR10": PoolKind(functools.partial(_build_long_tail, 10)),
    "CIFAR100LT_IR50": PoolKind(functools.partial(_build_long_tail, 50)),
    "CIFAR100LT_IR100": PoolKind(functools.partial(_build_long_tail, 100)),
    "ADE20K": PoolKind(functools.partial(_build_from, read_ade20k)),
    "PascalVOC": PoolKind(functools.partial(_build_from, read_voc)),
}
