"""The training and evaluation pools by data set name, and the subset to train on."""

import argparse
import contextlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.feature_table import sidecar
from data_selection.common.files import read_json
from data_selection.common.kinds import Log
from data_selection.common.paths import ROOT
from data_selection.images import pools
from data_selection.images.folders import UNREAD, in_words
from data_selection.images.image_files import WHITE
from data_selection.images.inaturalist import find_lists, read_inaturalist
from data_selection.images.inventory import nameless, twins
from data_selection.images.known_lists import find_images, of_pool
from data_selection.images.label_files import NONE, check_there, evaluation_folder, open_folders, some
from data_selection.images.record import file_hash

FEW = 10  # labels per class
DEFAULT_PATH = ROOT / "deit" / "data"
POOL_NAMES = {"FASHIONMNIST": "FashionMNIST", "IMNET": "ImageNet"}  # where extraction's differ from the trainer's
YEARS = {"INAT": 2018, "INAT19": 2019}
HELD = {"CIFAR10": ("cifar-10-*",), "CIFAR100": ("cifar-100-*",), "FASHIONMNIST": ("FashionMNIST", "*-ubyte*"),
        "CUB2011": ("CUB_200_2011",), "INAT": ("train2018.json",), "INAT19": ("train2019.json",)}  # fmt: skip


def find_data(name: str, data_path: Path | str | None) -> Path:
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


def where(args: argparse.Namespace) -> tuple[str | None, str | None, str | None, str, str | None, str | None, str]:
    """What open_images takes of the flags."""
    folders = args.train_path, args.val_path
    return args.data_path, args.labels, args.val_labels, args.inat_category, *folders, args.background


def open_images(
    name: str,
    data_path: Path | str | None = None,
    labels: Path | str | None = None,
    val_labels: Path | str | None = None,
    category: str = "name",
    train_path: Path | str | None = None,
    val_path: Path | str | None = None,
    background: str = WHITE,
) -> tuple[pools.Pool, pools.Pool]:
    """(training pool, evaluation pool) of a data set name without SUBSET; labels in both count the same classes.

    labels, val_labels, train_path, val_path: CSV files for FOLDER's two parts and where these are, see
    label_files.open_folders. category: iNaturalist's rank. background: the colour (#rrggbb) below what is transparent.
    """
    root = find_data(name, data_path)
    if name == "FOLDER":
        train, test = open_folders(root, labels, val_labels, train_path, val_path, root if data_path else None)
    else:
        train, test = (open_part(name, root, split, category) for split in ("train", "val"))
    train.background = test.background = background
    if train.classes == 1:
        held = train.class_names[0] if train.class_names else "0"
        raise UserError(
            f"all images of --data-set {name} in {root} are of one class, {held!r}: two are needed. Class folders lie "
            "right in train/ and val/, not in a folder of these"
        )
    return train, test


def check_images(
    name: str,
    data_path: Path | str | None = None,
    train_path: Path | str | None = None,
    val_path: Path | str | None = None,
) -> None:
    """Raise UserError where open_images would not find its images, and nobody downloads them. Opens none of them."""
    root = find_data(name, data_path)
    if name == "FOLDER":
        if data_path and not root.is_dir():
            raise UserError(f"--data-path {root} is no folder that exists: check the path")
        check_there(Path(train_path or root / "train"))
        if val_path != NONE:
            check_there(Path(val_path or root / "val"), "--val-labels", "--val-path")
    elif name in YEARS:
        find_lists(root, YEARS[name])
    elif name == "IMNET":
        for folder in (root / "train", root / "val"):
            if not folder.is_dir():
                raise UserError(
                    f"ImageNet is needed as class folders in {folder}, which is not there: check --data-path"
                )


def open_evaluation(
    name: str,
    data_path: Path | str | None,
    labels: Path | str | None,
    val_labels: Path | str | None,
    category: str,
    train_path: Path | str | None,
    val_path: Path | str | None,
    background: str,
    classes: Sequence[str] | None = None,
) -> tuple[pools.Pool, tuple[str, ...] | None]:
    """(evaluation pool, class names of the data), as open_images opens both parts.

    classes: those of what is evaluated, where it knows them: a FOLDER then needs no training images.
    """
    folder = find_data(name, data_path) / "train"
    if name == "FOLDER" and classes and not labels and not train_path and not folder.exists():
        base = folder.parent if data_path else None
        test = evaluation_folder(Path(val_path or folder.parent / "val"), val_labels, base)
        test.background = background
        return test, test.class_names
    train, test = open_images(name, data_path, labels, val_labels, category, train_path, val_path, background)
    return test, train.class_names


def open_part(name: str, root: Path, split: str, category: str) -> pools.Pool:
    """The pool of one split, `train` or `val`, of a data set in the folder `root`."""
    if name in YEARS:
        return pools.Pool(**read_inaturalist(root, split == "train", year=YEARS[name], category=category))
    if name == "IMNET" and root.name != "ImageNet":
        return imagenet_folders(root / split)
    where = {"IMNET": root.parent, "DEMO": None}.get(name, root)
    return pools.open_pool(POOL_NAMES.get(name, name), split, where)


def imagenet_folders(folder: Path) -> pools.Pool:
    """ImageNet's train or val folder in torchvision's order, which published subsets count in."""
    from torchvision.datasets import ImageFolder

    try:
        source = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UserError(f"ImageNet is needed as class folders in {folder} ({error}): check --data-path") from None
    paths, labels = zip(*source.samples, strict=True)
    return pools.Pool(paths=list(paths), labels=labels, classes=len(source.classes), class_names=source.classes)


def choose_ids(
    pool: pools.Pool, lists: Sequence[Path | str] | None = None, missing: str = "stop", log: Log = print
) -> list[int]:
    """The pool indices to train on: all, or those of some lists, as known_lists.find_images reads them."""
    return list(range(len(pool))) if not lists else find_images(lists, of_pool(pool), missing=missing, log=log)


def say_of_origin(subset_file: Path | str, name: str, log: Log) -> None:
    """A line where a subset file was chosen from a data set of another name; name: as for open_images."""
    beside = sidecar(subset_file, "provenance")
    features = (read_json(beside).get("features") if beside.exists() else None) or {}
    chosen_from = ((features.get("provenance") or {}).get("pool") or {}).get("name")
    if chosen_from in pools.POOLS and name != "FOLDER" and chosen_from != POOL_NAMES.get(name, name):
        log(f"{subset_file} was chosen from {chosen_from}, and the data set is {name}")


def say_of_unread(log: Log, **parts: pools.Pool) -> None:
    """A line where a folder has image files that the installed Pillow does not read; parts: what each pool is for.

    One, too, where labels are guessed at, and where images are of classes that training knows nothing of.
    """
    for part, pool in parts.items():
        unread = Counter({why: count for why, count in pool.left_out.items() if UNREAD in why})
        if unread:
            log(f"warning: left out of the {part} images: {in_words(unread)}")
        if pool.guessed:
            log(f"warning: {pool.guessed}")
        if pool.strange:
            log(
                f"warning: {sum(pool.strange.values())} of {len(pool)} {part} images are of classes that no label to "
                f"train on has, and count as mistakes: {some(list(pool.strange))}"
            )


def absent_classes(pool: pools.Pool, ids: Sequence[int]) -> list[str]:
    """The classes, by name or number, of which none of the images `ids` of a pool is."""
    words, there = pool.class_names or tuple(map(str, range(pool.classes or 0))), {pool.label(i) for i in ids}
    return [word for label, word in enumerate(words) if label not in there]


def say_of_absent(test: pools.Pool, log: Log) -> None:
    """A line where classes have no evaluation image, and others have some."""
    absent = absent_classes(test, range(len(test)))
    if absent and len(test):
        log(
            f"warning: {len(absent)} of {test.classes} classes without an evaluation image, of which the accuracy says "
            f"nothing: {some(absent)}"
        )


def say_of_leaks(train: pools.Pool, ids: Sequence[int], test: pools.Pool, log: Log) -> None:
    """A line where evaluation images are exact copies, byte for byte, of images to train on.

    Only files of equal size are read. Images that a pool holds in memory are a data set's own, and not looked at.
    """
    if train.arrays is not None or test.arrays is not None:
        return
    learned = by_size(train.paths[i] for i in ids)
    leaked = []
    for size, paths in by_size(test.paths).items():
        if size in learned:
            seen = {file_hash(path) for path in learned[size]} - {""}
            leaked += [path for path in paths if file_hash(path) in seen]
    if leaked:
        log(
            f"warning: {len(leaked)} of {len(test)} evaluation images are copies of images to train on, and make the "
            f"accuracy look better than it is: {some(leaked)}"
        )


def by_size(paths: Iterable[str]) -> dict[int, list[str]]:
    """The files of each size in bytes; without those that are not there, which are told where they are read."""
    found: dict[int, list[str]] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found.setdefault(Path(path).stat().st_size, []).append(path)
    return found


def hold_out(
    ids: Sequence[int], pool: pools.Pool, fraction: float | None, seed: int
) -> tuple[Sequence[int], list[int]]:
    """(ids to train on, ids held out), both in the order of ids; fraction None: nothing is held out.

    round(fraction * len(ids)) images, at least one, each class in proportion to its size as nearly as whole numbers
    allow, ties and images drawn by the seed; a class always keeps one image to train on.
    """
    if fraction is None:
        return ids, []
    draw = random.Random(seed)
    members: dict[int, list[int]] = {}
    for i in ids:
        members.setdefault(pool.label(i), []).append(i)
    total = max(1, round(fraction * len(ids)))
    if total > len(ids) - len(members):
        raise UserError(
            f"--val-fraction {fraction} of {len(ids)} images holds out {total}, but each of the {len(members)} classes "
            "must keep one to train on: give a smaller fraction, or leave it out"
        )
    share = {label: total * len(some) / len(ids) for label, some in members.items()}
    count = {label: min(int(share[label]), len(some) - 1) for label, some in members.items()}
    order = sorted(members)
    draw.shuffle(order)
    while sum(count.values()) < total:
        room = [label for label in order if count[label] < len(members[label]) - 1]
        count[max(room, key=lambda label: share[label] - count[label])] += 1
    held = {i for label in order for i in draw.sample(members[label], count[label])}
    return [i for i in ids if i not in held], [i for i in ids if i in held]


def say_of_labels(mode: str, pool: pools.Pool, ids: Sequence[int], log: Log) -> None:
    """One line where classes have no image, or two look alike, or are called like no label.

    One for full finetuning under 10 labels a class: there frozen modes usually win (as FACT reports, arXiv 2606.02079).
    """
    classes = pool.classes or 0
    if bare := absent_classes(pool, ids):
        log(f"warning: {len(bare)} of {classes} classes without a training image: {some(bare)}")
    if same := twins(pool.class_names or ()):
        log(f"warning: classes that may be meant for one: {some(same)}; mend the labels if so")
    if bare := nameless(pool.class_names or ()):
        log(f"warning: classes whose names say that there is no label: {some(bare)}; take their images out if so")
    if mode == "full" and len(ids) < FEW * classes:
        log(
            f"warning: {len(ids) / classes:.3g} labels per class: below {FEW}, a frozen backbone usually gives more; "
            "try --mode linear (seconds) or --mode lp-ft"
        )
