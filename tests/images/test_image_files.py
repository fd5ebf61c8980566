"""Image files of every depth and format: different pictures stay different, a damaged file is named."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image, features

from data_selection.common.errors import UserError
from data_selection.images import image_files
from data_selection.images.image_files import read_image, shades

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
PICTURES = [RAMP * 0.3, RAMP, RAMP.T * 0.7, np.full((8, 8), 0.5)]


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, 1), (np.float32, 1e-3), (np.float32, 1.1), (np.float32, 3e4), (np.float32, -1),
     (np.int32, 200), (np.int32, 70_000), (np.int32, 2e9), (np.int32, -5000), (np.uint16, 65_535), (np.uint16, 200)],
)  # fmt: skip
def test_different_deep_pictures_differ(tmp_path, dtype, scale):
    seen = []
    for i, picture in enumerate(PICTURES):
        Image.fromarray((picture * scale).astype(dtype)).save(tmp_path / f"{i}.tif")
        image = read_image(tmp_path / f"{i}.tif")
        assert image.mode == "RGB"
        seen.append(np.asarray(image)[..., 0])
    assert len({image.tobytes() for image in seen}) == len(PICTURES)
    for image in seen[:3]:
        assert len(np.unique(image)) > 8  # neither all black nor all white
    order = PICTURES[1].ravel() if scale > 0 else -PICTURES[1].ravel()
    assert (np.diff(seen[1].ravel().astype(int)[np.argsort(order, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(
    ("value", "shade"),
    [(0, 0), (15, 255), (255, 255), (100, 100), (4095, 255), (65535, 255), (25700, 100), (2**32 - 1, 255), (1, 255),
     (0.5, 128), (0.0625, 255), (-255, 0)],
)  # fmt: skip
def test_the_depth_is_the_smallest_that_holds_the_image(value, shade):
    assert shades(np.array([[value, 0]], np.float64))[0, 0] == shade


def test_values_that_are_no_numbers_are_refused(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(UserError, match=r"nan\.tif cannot be read \(ValueError: it holds NaN"):
        read_image(tmp_path / "nan.tif")


def encoded():
    """(format, bytes) of a picture in every format that the installed Pillow can write and read."""
    Image.init()
    grey = Image.fromarray((RAMP * 255).astype(np.uint8)).resize((64, 64))
    for name in sorted(set(Image.SAVE) & set(Image.OPEN) - {"EPS", "WMF"}):  # these two run other programs
        for mode in ("RGB", "P", "L", "1"):
            buffer = io.BytesIO()
            try:
                grey.convert(mode).save(buffer, format=name)
            except (OSError, ValueError, KeyError):
                continue
            yield name, buffer.getvalue()
            break


def damaged(data, draw):
    """Truncated, with wrong bytes, and with garbage behind the head."""
    for part in (0.02, 0.2, 0.5, 0.9):
        yield data[: max(1, int(part * len(data)))]
    for _ in range(12):
        wrong = bytearray(data)
        for _ in range(draw.choice((1, 4, 40))):
            wrong[draw.randrange(min(len(wrong), draw.choice((32, 128, 4096))))] = draw.randrange(256)
        yield bytes(wrong)
    yield data[:16] + draw.randbytes(200)


def test_damaged_files_of_every_format_are_read_or_named(tmp_path, monkeypatch):
    """Whatever a decoder raises; many a damaged file still gives a picture."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    path, draw, named = tmp_path / "x.jpg", random.Random(0), set()
    formats = dict(encoded())
    assert {"JPEG", "PNG", "TIFF", "GIF", "BMP"} <= set(formats)
    assert {"WEBP"} <= set(formats) or not features.check("webp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in formats.items():
            for broken in damaged(data, draw):
                path.write_bytes(broken)
                try:
                    read_image(path)
                except UserError as error:  # any other one fails the test
                    named.add((name, "x.jpg cannot be read" in str(error)))
    assert len(named) > 10
    assert all(told for _, told in named)


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, AttributeError, TypeError, KeyError])
def test_any_error_of_a_decoder_names_the_file(monkeypatch, kind):
    def fail(path):
        raise kind("inside")

    monkeypatch.setattr(image_files.Image, "open", fail)
    with pytest.raises(UserError, match=rf"image a\.jpg cannot be read \({kind.__name__}: .*inside"):
        read_image("a.jpg")


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_what_is_no_fault_of_the_file_is_passed_on(monkeypatch, kind):
    def fail(path):
        raise kind

    monkeypatch.setattr(image_files.Image, "open", fail)
    with pytest.raises(kind):
        read_image("a.jpg")


def test_the_size_of_a_heif_asks_for_its_reader_and_no_other(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(image_files, "reads_heif", lambda: asked.append(1))
    Image.new("RGB", (5, 3)).save(tmp_path / "x.png")
    assert image_files.image_size(tmp_path / "x.png") == (5, 3)
    assert not asked
    assert image_files.image_size(tmp_path / "x.HEIC") == (0, 0)
    assert asked == [1]
