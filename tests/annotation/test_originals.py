"""Chosen images as links and copies, and what a page shows of them; the pool is never changed."""

import base64
import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from data_selection.annotation.originals import LARGE, THUMBNAIL, made_places, places, put, relative_address, show
from data_selection.common.errors import UserError
from data_selection.images.image_files import read_image


@pytest.fixture
def pool(tmp_path):
    """Paths of three images, one in a folder of its own."""
    files = [tmp_path / "pool" / name for name in ("a.png", "b/a.png", "c.jpg")]
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 40 * i, dtype=np.uint8)).save(file)
        file.chmod(0o444)
    return [str(file) for file in files]


NAMES = ["a.png", "b/a.png", "c.jpg"]


def test_no_place_leads_out_or_hides_another():
    names = ["x/y.png", "/etc/passwd", "../../up.png", "x/../../up.png", "X/Y.png", "x", "2_up.png", "ok.png"]
    found = places(names)
    assert found[0] == "x/y.png"
    assert found[-1] == "ok.png"
    assert len({place.lower() for place in found}) == len(names)
    assert all(".." not in place.split("/") and not place.startswith("/") for place in found)
    assert "x" not in found  # it is a folder


def test_a_made_up_place_is_not_the_name_of_an_image_that_comes_later():
    names = ["/x/a.png", "0_a.png", "b.png"]
    assert places(names) == ["_0_a.png", "0_a.png", "b.png"]
    assert made_places(names) == {"_0_a.png": "/x/a.png"}


def test_a_made_up_place_is_no_longer_than_a_file_system_takes(pool, tmp_path):
    names = [f"/{folder}/{'é' * 125}{rest}" for folder in "ab" for rest in (".png", "x.png")]  # 254 and 255 bytes
    found = places([*names, "1_" + "é" * 124 + ".png"])  # which the third would be called otherwise
    assert all(len(os.fsencode(place)) <= 255 for place in found)
    assert all(place.endswith(".png") for place in found)
    assert len(set(found)) == 5
    put(tmp_path / "out", names, pool[:1] * 4, "link")
    assert made_places(names).keys() == {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(("first", "then"), [("link", "copy"), ("copy", "link"), ("copy", "copy"), ("link", "link")])
def test_links_and_copies_replace_each_other_and_leave_the_pool_alone(pool, tmp_path, first, then):
    before = [open(path, "rb").read() for path in pool]  # noqa: PTH123, SIM115
    out = tmp_path / "out"
    for how in (first, then):
        put(out, NAMES, pool, how)
        for name, path, content in zip(NAMES, pool, before, strict=True):
            assert (out / name).is_symlink() == (how == "link")
            assert (out / name).read_bytes() == content
            assert open(path, "rb").read() == content  # noqa: PTH123, SIM115
    if then == "copy":
        assert all((out / name).stat().st_mode & 0o777 == 0o644 for name in NAMES)
        (out / "a.png").write_bytes(before[0])  # a copy can be written to, though the original cannot
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["a.png", "a.png", "c.jpg"]


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_picture_of_the_users_own_in_place_of_a_chosen_one_is_not_replaced(pool, tmp_path, how):
    out = tmp_path / "out"
    put(out, NAMES, pool, how)
    (out / "a.png").unlink()
    (out / "c.jpg").unlink()
    for mine in (b"mine", bytes((tmp_path / "pool" / "a.png").stat().st_size)):  # of another size, and of the same one
        (out / "a.png").write_bytes(mine)
        with pytest.raises(UserError, match=r"1 files in .*out are not the chosen images, .*a\.png; move them"):
            put(out, NAMES, pool, how)
        assert (out / "a.png").read_bytes() == mine
        assert not (out / "c.jpg").exists()


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.EPERM, "no link can be made in .*: use --images copy"), (errno.ENOSPC, r"\[Errno 28\] [^>]*out.a\.png.$")],
)
def test_copies_are_advised_where_links_are_not_made_but_not_where_the_disk_is_full(
    pool, tmp_path, monkeypatch, code, says
):
    def fails(self, target):
        raise OSError(code, os.strerror(code), target, None, self)

    monkeypatch.setattr(Path, "symlink_to", fails)
    with pytest.raises((UserError, OSError), match=says):
        put(tmp_path / "out", ["a.png"], pool[:1], "link")


def test_a_link_follows_an_image_that_has_moved(pool, tmp_path):
    for path in pool[:2]:
        put(tmp_path / "out", ["a.png"], [path], "link")
        assert str((tmp_path / "out" / "a.png").readlink()) == path


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_page_shows_thumbnails_and_the_images_where_asked(pool, tmp_path):
    large = np.random.default_rng(0).integers(0, 255, (200, 2000, 3), dtype=np.uint8)
    for name in ("wide.png", "wide.tif"):
        Image.fromarray(large).save(tmp_path / name)
    paths = [*pool, str(tmp_path / "wide.png"), str(tmp_path / "wide.tif")]
    addresses = [relative_address("images", f"{i}") for i in range(5)]
    shown = show(paths, addresses)
    assert [(one.width, one.height) for one in shown] == [(30, 20)] * 3 + [(2000, 200)] * 2
    assert np.array_equal(
        np.asarray(decoded(shown[1].thumbnail).convert("RGB")), np.full((20, 30, 3), 40)
    )  # to the bit
    assert max(decoded(shown[3].thumbnail).size) == THUMBNAIL
    assert [one.address for one in shown[:4]] == addresses[:4]
    assert max(decoded(shown[4].address).size) == LARGE  # a browser shows no TIFF
    embedded = show(paths[:1], addresses[:1], embed=True)[0]
    assert np.array_equal(np.asarray(decoded(embedded.address)), np.asarray(Image.open(paths[0])))


def test_what_a_browser_would_show_otherwise_than_the_model_sees_it_is_a_jpeg_in_the_page(tmp_path):
    deep = np.tile(np.linspace(0, 4095, 200), (100, 1)).astype(np.uint16)  # 12 bits, as of X-rays
    plain = Image.fromarray((deep // 16).astype(np.uint8))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    plain.save(tmp_path / "scan.jpg", "TIFF")
    plain.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[plain])  # as cameras write, a JPEG in front
    plain.save(tmp_path / "other.jpg", "PNG")
    names = ["deep.png", "scan.jpg", "photo.jpg", "other.jpg"]
    shown = show([str(tmp_path / name) for name in names], names)
    assert [one.address for one in shown[2:]] == names[2:]
    for name, one in zip(names[:2], shown, strict=False):
        difference = np.asarray(decoded(one.address).convert("RGB"), int) - np.asarray(read_image(tmp_path / name), int)
        assert np.abs(difference).max() < 8
    assert show([str(tmp_path / "other.jpg")], ["a"], embed=True)[0].address.startswith("data:image/png;")


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_large_jpeg_is_decoded_small_and_its_size_is_told(tmp_path, monkeypatch, turn):
    across, down = np.meshgrid(np.linspace(0, 255, 3000), np.linspace(0, 255, 2000))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    image = Image.fromarray(np.stack([across, down, 255 - across], 2).astype(np.uint8))
    image.save(tmp_path / "large.jpg", quality=95, exif=exif)
    decoded_sizes, real = [], Image.Image.thumbnail
    monkeypatch.setattr(
        Image.Image, "thumbnail", lambda self, *_, **__: (decoded_sizes.append(max(self.size)), real(self, *_, **__))
    )
    (shown,) = show([str(tmp_path / "large.jpg")], ["a"])
    assert (shown.width, shown.height) == ((2000, 3000) if turn > 4 else (3000, 2000))
    assert decoded_sizes == [750]  # a quarter: an eighth has too few pixels
    small = decoded(shown.thumbnail).convert("RGB")
    whole = ImageOps.exif_transpose(Image.open(tmp_path / "large.jpg")).resize(small.size)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 4


def test_an_address_holds_any_name():
    assert relative_address("images", 'a b/"c"#?%.png') == "images/a%20b/%22c%22%23%3F%25.png"
    assert relative_address("images", "\udcff.png") == "images/%FF.png"
