"""The files of public data sets: where their images and labels are, in the order that published subsets count in."""

import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np

from data_selection.common.errors import UserError
from data_selection.images.downloads import fetch_file

CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1"
CUB_MD5 = "97eceeb196236b17998738112f37df78"
CIFAR100_PER_CLASS = 500  # training images
VOC_PARTS = {True: (("2007", "trainval"), ("2012", "trainval")), False: (("2007", "test"),)}  # 2012's test is secret


class PoolParts(TypedDict, total=False):
    """The keywords of a pools.Pool whose images are files."""

    paths: list[str]
    labels: list[int]
    names: list[str]
    classes: int
    class_names: list[str]


def find_idx(folder: Path | str, name: str) -> Path:
    """The idx file `name` or `name.gz` in a folder. Raises UserError where neither is there."""
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"neither {name} nor {name}.gz is in {folder}: give the folder with the original idx files")


def read_idx(path: Path | str) -> np.ndarray:
    """An idx file (MNIST's format, .gz or not) as a uint8 array of its own shape.

    Raises UserError where it is missing, truncated or no idx file of bytes.
    """
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as handle:
            data = handle.read()
    except FileNotFoundError:
        raise UserError(f"idx file {path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is truncated or no gzip file ({error}): fetch it again") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is no idx file of bytes: it starts with {data[:4].hex()!r}, 000008 is needed")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if len(data) != start + int(np.prod(shape)):
        raise UserError(f"{path} holds {len(data)} bytes, {start + int(np.prod(shape))} are needed: fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def read_cub(root: Path, train: bool) -> PoolParts:
    """CUB-200-2011 in root/CUB_200_2011 (downloaded where it is not there), as the keywords of a Pool.

    The archive's own split (5,994 training and 5,794 test images) in the order of images.txt; labels count from 0, and
    the names are the paths within images/. For training: open_pool("CUB2011", "train" or "test", root) gives images
    with labels; class_names are the same for both. Raises UserError where files are missing or do not fit together.
    Deviation from the released extraction, which took the training part whatever the split.
    """
    folder = root / "CUB_200_2011"
    if not folder.is_dir():
        _unpack(fetch_file(CUB_URL, root, digest=f"md5:{CUB_MD5}"), folder)
    files, labels, parts = (
        dict(line.split(" ", 1) for line in _lines(folder / name, "CUB-200-2011"))
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    if not files.keys() == labels.keys() == parts.keys():
        raise UserError(f"the tables in {folder} list different images: remove the folder to unpack the archive again")
    chosen = [image for image in files if parts[image] == ("1" if train else "0")]
    names = [files[image] for image in chosen]
    class_names = {int(labels[image]): files[image].split("/")[0] for image in files}
    return {
        "paths": existing([str(folder / "images" / name) for name in names], "CUB-200-2011"),
        "labels": [int(labels[image]) - 1 for image in chosen],
        "names": names,
        "classes": len(class_names),
        "class_names": [class_names[label] for label in sorted(class_names)],
    }


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack `folder` out of a tar archive beside it: whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        try:
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10
                    tar.extractall(temporary, filter="data")
                else:
                    tar.extractall(temporary)
            (Path(temporary) / folder.name).replace(folder)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(f"cannot unpack {archive} into {folder} ({error}): make room, or fetch it again") from None


def imbalanced_rows(
    labels: Iterable[int], ratio: float, classes: int = 100, largest: int = CIFAR100_PER_CLASS
) -> np.ndarray:
    """The rows (ascending within a class, class by class) of a long-tailed cut; default: of CIFAR100's training set.

    Class c of 0..classes - 1 keeps its first floor(largest * (1 / ratio) ^ (c / (classes - 1))) images. CIFAR100's
    ratios 10, 50 and 100 keep 19,573, 12,608 and 10,847. Source: the rule of the BiLAF release.
    """
    labels = np.asarray(labels)
    if classes < 2:
        raise UserError(f"imbalance {ratio} is between classes, and there is {classes}: leave it out")
    quotas = [int(largest * (1 / ratio) ** (label / (classes - 1))) for label in range(classes)]
    return np.concatenate([np.flatnonzero(labels == label)[:quota] for label, quota in enumerate(quotas)])


def read_ade20k(root: Path, train: bool) -> PoolParts:
    """ADE20K's scene parsing images in root/ADE20K/ADEChallengeData2016 (or root/ADEChallengeData2016), sorted.

    Returns the keywords of a Pool: paths, and names without .jpg, as the released name lists hold them.
    Deviation from the released extraction, whose order was that of the file system.
    """
    part = Path("ADEChallengeData2016", "images", "training" if train else "validation")
    folder = root / "ADE20K" / part if (root / "ADE20K" / part).is_dir() else root / part
    names = sorted(path.stem for path in folder.glob("*.jpg"))
    if not names:
        raise UserError(
            f"ADE20K is needed as images in {root}/ADE20K/{part}: unpack ADEChallengeData2016.zip there, "
            "or give with --data_path the folder that holds ADEChallengeData2016"
        )
    return {"paths": [str(folder / f"{name}.jpg") for name in names], "names": names}


def read_voc(root: Path, train: bool) -> PoolParts:
    """Pascal VOC in root/VOCdevkit: trainval of 2007, then of 2012 (5,011 and 11,540 images); held out: test of 2007.

    Returns the keywords of a Pool: paths, and the image ids as names, in the order of the id lists.
    """
    names, paths = [], []
    for year, part in VOC_PARTS[train]:
        folder = root / "VOCdevkit" / f"VOC{year}"
        ids = _lines(folder / "ImageSets" / "Main" / f"{part}.txt", "PascalVOC")
        names += ids
        paths += [str(folder / "JPEGImages" / f"{name}.jpg") for name in ids]
    return {"paths": existing(paths, "PascalVOC"), "names": names}


def _lines(path: Path, what: str) -> list[str]:
    """The lines of a data set's table, without the empty ones."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(
            f"{what} needs {path}: unpack the data set's archive there, or give its folder with --data_path"
        ) from None


def existing(paths: list[str], what: str, hint: str = "unpack its archive again") -> list[str]:
    """paths, where every one is a file. Raises UserError that counts the missing ones and names the first."""
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 - pathlib takes three times as long
    if missing:
        raise UserError(f"{what}: {len(missing)} of {len(paths)} files are missing, first {missing[0]}; {hint}")
    return paths
