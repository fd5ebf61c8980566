"""The chosen images as people find them: links or copies in a folder, addresses for a page, thumbnails."""

import base64
import contextlib
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from PIL import Image

from data_selection.common.errors import UserError
from data_selection.common.progress import OpenBar, open_bar
from data_selection.images.image_files import DEEP, head, read_small

HOW = ("link", "copy", "none")
BROWSERS_OPEN = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif")
BROWSERS_SHOW = {
    "JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "AVIF": "avif",
}  # fmt: skip
THUMBNAIL, LARGE = 176, 1280  # longest sides in pixels: in the sheet, and of what browsers cannot show themselves
TINY = 64  # up to this side an image is its own thumbnail, kept to the bit
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
            place = f"{number}_{path.name}"
            while place.lower() in taken or place.lower() in wanted:
                place = f"_{place}"
        result.append(place)
        taken |= {place.lower(), *(parent.as_posix().lower() for parent in PurePosixPath(place).parents)}
    return result


def made_places(names: Sequence[str]) -> dict[str, str]:
    """{place: name} of the images that places() gives a made one."""
    pairs = zip(places(names), names, strict=True)
    return {place: name for place, name in pairs if place != PurePosixPath(name).as_posix()}


def put(folder: Path, names: Sequence[str], paths: Sequence[str], how: str) -> None:
    """Put the images into a folder as links or copies; those that are there stay.

    Raises UserError where the system makes no links; OSError where the folder cannot be written.
    """
    for place, path in zip(places(names), paths, strict=True):
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            link(target, os.path.abspath(path))  # noqa: PTH100 - a link to a link stays one
        elif target.is_symlink() or not target.exists() or target.stat().st_size != Path(path).stat().st_size:
            copy(target, path)


def link(target: Path, path: str) -> None:
    """Make a symbolic link, in place of what is there."""
    if target.is_symlink() and os.readlink(target) == path:  # noqa: PTH115 - Path would tidy what is to be compared
        return
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(path)
    except OSError as error:
        if error.errno is not None and Path(path).exists() and os.access(target.parent, os.W_OK):
            raise UserError(f"no link can be made in {target.parent} ({error.strerror}): use --images copy") from None
        raise


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
    with open_bar(progress, len(paths), "thumbnails", "image") as bar, ThreadPoolExecutor(THREADS) as threads:
        result = []
        for shown in threads.map(functools.partial(show_one, embed=embed), paths, addresses):
            result.append(shown)
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
