"""Image files as RGB pixels, whatever their format and depth; a damaged one is an error that names it."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from data_selection.common.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: Path | str) -> Image.Image:
    """An image file in RGB: the first frame of an animation, deep grey scaled (see shades), transparency dropped.

    Raises UserError, naming the file, where it is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # convert() would clip at 0 and 255
                return Image.fromarray(shades(np.asarray(image))).convert("RGB")
            if image.mode == "P" and "transparency" in image.info:  # the direct way warns and drops it just the same
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders of damaged files raise whatever they come upon
        raise UserError(f"image {path} cannot be read ({type(error).__name__}: {error})") from None


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
