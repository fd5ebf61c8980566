"""Image files as RGB pixels, whatever their format and depth; a damaged one is an error that names it."""

import functools
import importlib
import math
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, features

from data_selection.common.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
CODECS = {".jp2": "jpg_2000", ".avif": "avif"}  # what Pillow must have been built with to read these
HEIF = (".heic", ".heif")  # Pillow reads them where the package pillow-heif is installed
IMAGE_LIKE = (*EXTENSIONS, *CODECS, *HEIF)
WHITE = "#ffffff"
DEEP = ("I", "F")  # what the modes begin with of images whose values are no bytes
PHOTOMETRIC = 262  # the tag of a TIFF file that says what its values mean: by 0 it is white that is 0
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = tuple(TURNS[number] for number in (5, 6, 7, 8))


def read_image(path: Path | str, background: str = WHITE) -> Image.Image:
    """An image file in RGB as people see it: upright by its EXIF orientation, transparency laid over a background.

    Of an animation the first frame; deep grey scaled (see shades, is_negative). background: a colour as #rrggbb. Raises
    UserError, naming the file, where it is missing or cannot be decoded.
    """
    return read_small(path, None, background)[0]


def read_small(path: Path | str, least: int | None, background: str = WHITE) -> tuple[Image.Image, tuple[int, int]]:
    """(an image as read_image gives it, the width and height of the whole one).

    least: a JPEG may be decoded at half, quarter or an eighth of its size, several times faster, as long as both sides
    keep so many pixels; None: whole.
    """
    if str(path).lower().endswith(HEIF):
        reads_heif()
    try:
        with Image.open(path) as image:
            whole = image.size
            reduced = least is not None and image.draft(None, (least, least)) is not None
            image.load()  # first: only then does a TIFF file know whether it still has to be turned
            turn = orientation(image)
            seen = flat(image, background)
            turned = seen if turn is None else seen.transpose(turn)
            width, height = whole if reduced else image.size
            return turned, (height, width) if turn in SIDEWAYS else (width, height)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise whatever they come upon
        raise UserError(f"image {path} cannot be read ({type(error).__name__}: {error})") from None


def orientation(image: Image.Image) -> Image.Transpose | None:
    """How a loaded image must be turned to stand upright; None where it stands, or where its EXIF data is damaged."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - whatever the reader of the EXIF data raises: the pixels are sound
        return None


def flat(image: Image.Image, background: str) -> Image.Image:
    """A loaded image in RGB without transparency."""
    if image.mode.startswith(DEEP):  # convert() would clip at 0 and 255
        grey = shades(np.asarray(image))
        return Image.fromarray(255 - grey if is_negative(image) else grey).convert("RGB")
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a deep TIFF file (WhiteIsZero), as radiographs have it: Pillow turns only others over."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF file alone
    return bool(tags.get(PHOTOMETRIC) == 0)


def readable() -> tuple[str, ...]:
    """The endings of image files that the installed Pillow reads."""
    built = features.get_supported()
    more = [ending for ending, codec in CODECS.items() if codec in built]
    return (*EXTENSIONS, *more, *(HEIF if reads_heif() else ()))


@functools.cache
def reads_heif() -> bool:
    """Whether the package that reads HEIF for Pillow is installed; it is then put to use."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) by the head of an image file, maybe the other way round; (0, 0) where that cannot be read."""
    return head(path)[2]


def head(path: Path | str) -> tuple[str, str, tuple[int, int]]:
    """(Pillow's name of the format, its mode, image_size) by what an image file holds; "" where it cannot be read."""
    if str(path).lower().endswith(HEIF):
        reads_heif()
    try:
        with Image.open(path) as image:
            return image.format or "", image.mode, image.size
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return "", "", (0, 0)


def shades(grey: np.ndarray) -> np.ndarray:
    """Deep grey (H, W), whole numbers or floats, as uint8: 0 stays black, and the brightest depth is white.

    The depth is the smallest that holds the image: 4, 8, 12, 16, ... bits, or for values up to 1 a power of 16.
    Values below 0 come with one from minus the depth. So 12 bits in a file of 16, or floats of any unit, do not come
    out all black or all white. Raises ValueError where a value is not finite.
    """
    grey = grey.astype(np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("it holds NaN or infinity")
    depth, top = 1.0, float(np.abs(grey).max(initial=0))
    if top > 1:
        depth = 16.0 ** math.ceil(math.log(top + 1, 16) - 1e-9) - 1
    elif top:
        depth = 16.0 ** -min(60, math.floor(-math.log(top, 16) + 1e-9))
    if grey.min(initial=0) < 0:
        grey, depth = grey + depth, 2 * depth
    return (grey * (255 / depth)).round().clip(0, 255).astype(np.uint8)
