"""What is found in a folder, and what is left out and counted."""

import os
import sys
import types

import pytest
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.images import image_files
from data_selection.images.image_files import readable, reads_heif
from data_selection.images.label_files import labelled_folder
from data_selection.images.pools import open_pool


@pytest.fixture
def heif(monkeypatch):
    """A function that installs the package for HEIF, or none."""

    def install(there):
        package = types.SimpleNamespace(register_heif_opener=lambda: None) if there else None
        monkeypatch.setitem(sys.modules, "pillow_heif", package)  # None: importing it fails
        reads_heif.cache_clear()

    yield install
    reads_heif.cache_clear()


@pytest.fixture
def folder(tmp_path):
    files = (
        "a.jpg", "b.JFIF", "c.avif", "d.heic", "e.jp2", "notes.txt", "raw.dng", ".hidden.jpg", "cats/f.png",
        "@eaDir/a.jpg", "cats/@eaDir/f.png/SYNO.jpg", "__MACOSX/._a.jpg", "__MACOSX/info", ".ipynb_checkpoints/a.jpg",
        ".thumbs/a.jpg", "$RECYCLE.BIN/S-1/a.jpg", "#recycle/a.jpg", "#recycle/b.jpg",
    )  # fmt: skip
    for name in files:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "images"


def test_junk_is_left_out_and_counted(folder, heif, monkeypatch):
    heif(False)
    monkeypatch.setattr(image_files.features, "get_supported", lambda: ["jpg", "avif"])
    pool = open_pool(str(folder))
    assert pool.names == ("a.jpg", "b.JFIF", "c.avif", "cats/f.png")
    assert pool.left_out == {
        ".heic, not read by the installed Pillow": 1, ".jp2, not read by the installed Pillow": 1, "hidden": 2,
        "in folders @eaDir": 2, "in folders __MACOSX": 1, "in folders .ipynb_checkpoints": 1,
        "in folders $RECYCLE.BIN": 1, "in folders #recycle": 2, "no images by their endings": 2,
    }  # fmt: skip


def test_what_is_installed_is_read(folder, heif, monkeypatch):
    heif(True)
    monkeypatch.setattr(image_files.features, "get_supported", lambda: ["jpg", "avif", "jpg_2000"])
    assert open_pool(str(folder)).names == ("a.jpg", "b.JFIF", "c.avif", "cats/f.png", "d.heic", "e.jp2")
    assert not [why for why in open_pool(str(folder)).left_out if "not read" in why]


def test_the_installed_pillow_reads_what_it_says(tmp_path):
    for ending in readable():
        if ending not in (*image_files.HEIF, ".pgm"):
            Image.new("RGB", (20, 20), (200, 10, 10)).save(tmp_path / f"x{ending}")
            red = image_files.read_image(tmp_path / f"x{ending}").getpixel((9, 9))
            assert red[0] > 150 > red[1], ending


def test_a_folder_of_unread_images_says_so(tmp_path, heif):
    heif(False)
    (tmp_path / "x.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no images .*left out: 1 \.heic, not read by the installed Pillow"):
        open_pool(str(tmp_path))


def test_junk_beside_a_split_is_no_class(tmp_path):
    for name in ("train/a/x.png", "@eaDir/x.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="holds train/, not one pool"):
        open_pool(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_called_like_an_image_is_left_out_and_a_link_to_nothing_is_not(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")  # whoever opens it waits for somebody to write
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "to_pipe.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "to_nothing.png").symlink_to(tmp_path / "nothing.png")  # told when it is read, as any that is lost
    pool = open_pool(str(tmp_path))
    assert pool.names == ("a.png", "link.png", "to_nothing.png")
    assert pool.left_out == {"no files, but pipes or devices": 2}


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Its images would be missing without a word."""
    for name in ("a", "locked"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):  # a superuser's tests may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"folder .*locked cannot be read \(Permission denied\): allow it to be read"):
        open_pool(str(tmp_path))


def test_a_folder_that_links_give_another_name_is_there_by_both(tmp_path):
    """Either may be a class: torchvision's ImageFolder has both, too."""
    for name in ("pool/cat/1.png", "pool/dog/1.png", "x/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    folder = tmp_path / "pool"
    (folder / "all_cats").symlink_to(folder / "cat")
    (folder / "A").symlink_to(tmp_path / "x")
    (folder / "B").symlink_to(tmp_path / "x")
    for back in ("dog/up", "dog/same"):  # these would never end
        (folder / back).symlink_to(folder if back == "dog/up" else folder / "dog")
    (tmp_path / "x/round").symlink_to(tmp_path / "x")
    pool = open_pool(str(folder))
    assert pool.names == ("A/1.png", "B/1.png", "all_cats/1.png", "cat/1.png", "dog/1.png")
    assert labelled_folder(folder, None).class_names == ("A", "B", "all_cats", "cat", "dog")


def test_a_class_folder_that_is_a_link_to_nothing_is_counted_as_one(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cat").symlink_to(tmp_path / "nowhere")
    assert open_pool(str(tmp_path)).left_out == {"links to nothing": 1, "no images by their endings": 1}
