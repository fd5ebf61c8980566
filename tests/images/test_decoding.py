"""Images as people see them: upright, transparency over a background, deep data by its own range."""

import argparse
import struct

import numpy as np
import pytest
from PIL import Image

from data_selection.common.parsing import colour
from data_selection.images.image_files import image_size, read_image

DRAW = np.random.default_rng(0)
PICTURE = DRAW.integers(0, 256, (6, 4, 3), dtype=np.uint8)
UPRIGHT = {  # what a camera stored -> what is seen, by the EXIF standard's rows and columns
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x), 9: lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("number", UPRIGHT)
def test_images_stand_upright(tmp_path, ending, number):
    exif = Image.Exif()
    exif[0x0112] = number
    path = tmp_path / f"x.{ending}"
    Image.fromarray(PICTURE).save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(np.asarray(read_image(path)), UPRIGHT[number](PICTURE))
    assert sorted(image_size(path)) == [4, 6]


def test_deep_images_stand_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.arange(24, dtype=np.uint16).reshape(6, 4) * 170  # 12 bits in 16
    Image.fromarray(deep).save(tmp_path / "x.png", exif=exif)
    seen = np.asarray(read_image(tmp_path / "x.png"))[..., 0]
    assert np.array_equal(seen, np.rot90((deep * (255 / 4095)).round(), -1))


@pytest.mark.parametrize(("dtype", "depth"), [(np.uint8, 8), (np.uint16, 16), (np.float32, 32)])
def test_zero_is_white_where_a_tiff_says_so(tmp_path, dtype, depth):
    """A radiograph of 16 bits and its copy of 8 bits are one picture."""
    grey = np.arange(24).reshape(6, 4) * 10 + 1
    values = grey.astype(dtype) if depth == 8 else (grey * 257).astype(dtype)
    Image.fromarray(values).save(tmp_path / "x.tif")
    plain = np.asarray(read_image(tmp_path / "x.tif"))[..., 0]
    data = (tmp_path / "x.tif").read_bytes()
    at = data.index(struct.pack("<HHI", 262, 3, 1)) + 8  # PhotometricInterpretation, one short: 1, 0 is black
    (tmp_path / "x.tif").write_bytes(data[:at] + struct.pack("<H", 0) + data[at + 2 :])
    assert np.array_equal(plain, grey)
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.tif"))[..., 0], 255 - grey)


def test_damaged_exif_data_leaves_the_pixels_as_they_are(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "x.png", exif=b"Exif\0\0rubbish")
    with Image.open(tmp_path / "x.png") as image, pytest.raises(SyntaxError):
        image.getexif()
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png")), PICTURE)


def over(colours, alpha, background):
    """Colours (H, W, 3) over a background (3,), by the formula."""
    share = alpha[..., None] / 255
    return colours * share + np.array(background) * (1 - share)


@pytest.mark.parametrize(("word", "background"), [("#ffffff", (255, 255, 255)), ("#0a6400", (10, 100, 0))])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_the_background(tmp_path, mode, word, background):
    alpha = DRAW.integers(0, 256, (6, 4), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    image = Image.fromarray(PICTURE).convert(mode[:-1])
    colours = np.asarray(image.convert("RGB")).astype(float)
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    image.save(tmp_path / "x.png")
    seen = np.asarray(read_image(tmp_path / "x.png", word))
    assert np.abs(seen - over(colours, alpha, background)).max() <= 1
    assert (seen[0] == background).all()  # hidden colours do not show
    assert np.array_equal(seen[1], colours[1])


@pytest.mark.parametrize(("mode", "hidden"), [("P", 0), ("L", 0), ("RGB", (0, 0, 0)), ("P", b"\0" + b"\xff" * 255)])
def test_a_transparent_colour_gives_way_to_the_background(tmp_path, mode, hidden):
    grey = np.array([[0, 50], [200, 0]], np.uint8)
    image = Image.fromarray(grey)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    image.convert(mode).save(tmp_path / "x.png", transparency=hidden)
    seen = np.asarray(read_image(tmp_path / "x.png", "#0000ff"))
    assert seen.tolist() == [[[0, 0, 255], [50] * 3], [[200] * 3, [0, 0, 255]]]


def test_whole_images_are_what_pillow_makes_of_them(tmp_path):
    """Files without EXIF data and transparency keep their pixels to the last bit, whatever the background."""
    image = Image.fromarray(DRAW.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    opaque = image.copy()
    opaque.putalpha(255)
    for name, kind in (("x.jpg", image), ("x.png", image), ("p.png", image.convert("P")), ("a.png", opaque)):
        kind.save(tmp_path / name)
        with Image.open(tmp_path / name) as plain:
            assert np.array_equal(np.asarray(read_image(tmp_path / name, "#123456")), np.asarray(plain.convert("RGB")))


def test_colours_are_words_or_numbers():
    assert [colour(word) for word in ("white", "#FFF", "rgb(1, 2, 3)")] == ["#ffffff", "#ffffff", "#010203"]
    with pytest.raises(argparse.ArgumentTypeError, match="'whit' is no colour: use white, black, or #rrggbb"):
        colour("whit")
    with pytest.raises(argparse.ArgumentTypeError, match="'#ffffff80' is not opaque"):
        colour("#ffffff80")
