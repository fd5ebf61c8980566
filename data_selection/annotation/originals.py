"""The chosen images as people find them: links or copies in a folder, addresses for a page, thumbnails."""

import base64
import contextlib
import errno
import filecmp
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote

from PIL import Image

from data_selection.common.errors import UserError
from data_selection.common.files import named
from data_selection.common.progress import OpenBar, open_bar
from data_selection.images.image_files import DEEP, head, read_small
from data_selection.images.label_files import some

HOW = ("link", "copy", "none")
BROWSERS_OPEN = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif")
BROWSERS_SHOW = {
    "JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "AVIF": "avif",
}  # fmt: skip
THUMBNAIL, LARGE = 176, 1280  # longest sides in pixels: in the sheet, and of what browsers cannot show themselves
TINY = 64  # up to this side an image is its own thumbnail, kept to the bit
T = TypeVar("T")
LONGEST = 255  # bytes of a file's name that file systems take
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # for links, and less for copies
THREADS = 8  # decoders leave Python to other threads meanwhile


@dataclass(frozen=True)
class Shown:
    """A chosen image for a page: size in pixels, thumbnail as a data URI, and the address of the image itself."""

    width: int
    height: int
    thumbnail: str
    address: str


def places(names: Sequence[str]) -> list[str]:
    """Where each image goes below a folder: its name, or a made one where that would lead out of the folder.

    Distinct as files are, also where a disk knows no capitals; a made one is no other image's name.
    """
    result: list[str] = []
    taken: set[str] = set()
    wanted = {name.lower() for name in names}
    for number, name in enumerate(names):
        path = PurePosixPath(name)
        place = path.as_posix()
        # no absolute path, no step up, and no file where another one needs a folder
        if path.is_absolute() or ".." in path.parts or place.lower() in taken or "\0" in name:
            place = shortened(f"{number}_{path.name}")
            while place.lower() in taken or place.lower() in wanted:
                place = shortened(f"_{place}")
        result.append(place)
        taken |= {place.lower(), *(parent.as_posix().lower() for parent in PurePosixPath(place).parents)}
    return result


def shortened(name: str) -> str:
    """A file name that file systems take, with its ending."""
    ending = os.fsencode(PurePosixPath(name).suffix)
    whole = os.fsencode(name)
    if len(whole) <= LONGEST:
        return name
    return whole[: LONGEST - len(ending)].decode("utf-8", "ignore") + os.fsdecode(ending)


def made_places(names: Sequence[str]) -> dict[str, str]:
    """{place: name} of the images that places() gives a made one."""
    pairs = zip(places(names), names, strict=True)
    return {place: name for place, name in pairs if place != PurePosixPath(name).as_posix()}


def put(folder: Path, names: Sequence[str], paths: Sequence[str], how: str) -> None:
    """Put the images into a folder as links or copies; those that are there stay.

    Raises UserError where the system makes no links, and, with nothing changed, where a file that is neither a link nor
    a copy of its image is there; OSError where the folder cannot be written.
    """
    pairs = [(folder / place, path) for place, path in zip(places(names), paths, strict=True)]
    kept = {target: path for target, path in pairs if target.is_file() and not target.is_symlink()}
    copies = {target for target, path in kept.items() if filecmp.cmp(target, path, shallow=False)}
    if others := [str(target) for target in kept if target not in copies]:
        raise UserError(
            f"{len(others)} files in {folder} are not the chosen images, as they were edited or replaced: "
            f"{some(others)}; move them elsewhere, and the same command puts the images there again"
        )
    for target, path in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            link(target, os.path.abspath(path))  # noqa: PTH100 - a link to a link stays one
        elif target not in copies:
            copy(target, path)


def link(target: Path, path: str) -> None:
    """Make a symbolic link, in place of a copy or another link."""
    if target.is_symlink() and os.readlink(target) == path:  # noqa: PTH115 - Path would tidy what is to be compared
        return
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(path)
    except OSError as error:
        if error.errno not in (None, *NO_ROOM) and Path(path).exists() and os.access(target.parent, os.W_OK):
            raise UserError(f"no link can be made in {target.parent} ({error.strerror}): use --images copy") from None
        raise named(error, target) from None  # the system names the image that it leads to


def copy(target: Path, path: str) -> None:
    """Copy a file so that it is whole or absent; a link of that name is replaced and not followed."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".partial")
    os.close(descriptor)
    try:
        shutil.copyfile(path, name)
        shutil.copymode(path, name)
        Path(name).chmod(Path(name).stat().st_mode | 0o200)  # of a read-only pool, too, the copy is the user's own
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def show(
    paths: Sequence[str], addresses: Sequence[str], *, embed: bool = False, progress: OpenBar | None = None
) -> list[Shown]:
    """What a page shows of each image. addresses: where it finds them; embed: the images themselves as data URIs.

    An image that browsers do not show (TIFF, PGM, ...), or not as people and models should see it, becomes a JPEG
    within the page in any case. Raises UserError where one cannot be read.
    """
    return in_threads(functools.partial(show_one, embed=embed), paths, addresses, progress)


def show_readable(paths: Sequence[str], progress: OpenBar | None = None) -> list[Shown | None]:
    """What a page shows of each image, by its place on this machine; None of one that cannot be read."""

    def shown(path: str, address: str) -> Shown | None:
        with contextlib.suppress(UserError):
            return show_one(path, address, embed=False)
        return None

    return in_threads(shown, paths, [file_address(path) for path in paths], progress)


def in_threads(
    work: Callable[[str, str], T], paths: Sequence[str], addresses: Sequence[str], progress: OpenBar | None
) -> list[T]:
    """What work(path, address) gives for each image, in their order."""
    with open_bar(progress, len(paths), "thumbnails", "image") as bar, ThreadPoolExecutor(THREADS) as threads:
        result = []
        for found in threads.map(work, paths, addresses):
            result.append(found)
            bar.update(1)
        return result


def show_one(path: str, address: str, embed: bool) -> Shown:
    kind = browsers_kind(path)
    image, size = read_small(path, 2 * THUMBNAIL if kind else None)
    if kind is None:
        address = data_uri(smaller(image, LARGE), "JPEG", quality=90)
    elif embed:
        address = f"data:image/{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    small = smaller(image, THUMBNAIL)
    tiny = max(size) <= TINY
    return Shown(*size, data_uri(small, "WEBP", quality=80, lossless=tiny, method=2), address)


def browsers_kind(path: str) -> str | None:
    """What browsers call the format of an image file that they show as read_image gives it; None for others.

    By its content, too: a scan may be called .jpg and be a TIFF. Of deep grey they show 12 bits in a file of 16 black.
    """
    kind, mode, _ = head(path)
    plain = Path(path).suffix.lower() in BROWSERS_OPEN and not mode.startswith(DEEP)
    return BROWSERS_SHOW.get(kind) if plain else None


def smaller(image: Image.Image, side: int) -> Image.Image:
    """The image within a square of `side` pixels; one that fits stays as it is."""
    copied = image.copy()
    copied.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return copied


def data_uri(image: Image.Image, kind: str, **settings: object) -> str:
    with io.BytesIO() as handle:
        image.save(handle, kind, **settings)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(handle.getvalue()).decode()}"


def relative_address(folder: str, place: str) -> str:
    """A path below the page's own folder as an address, whatever bytes it holds."""
    return f"{quote(folder)}/{quote(os.fsencode(place))}"


def file_address(path: str) -> str:
    """A path of this machine as an address."""
    return Path(path).absolute().as_uri()
