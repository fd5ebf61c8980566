"""Pools: rows, labels and names in the documented order; every user's mistake is one clear error."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.images.dataset_files import find_idx, read_idx
from data_selection.images.pools import POOLS, load_demo, open_pool, own_pool, read_image


@pytest.fixture
def folder(tmp_path):
    """Five demo images in nested folders, with a hidden file and a text file between them."""
    images = load_demo()["train_images"]
    root = tmp_path / "my photos"
    for i, name in enumerate(("b/2.png", "b/10.PNG", "a/x.jpg", "z.bmp", "b/c/1.tif")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(root / name)
    (root / "b/.hidden.png").write_bytes(b"x")
    (root / "notes.txt").write_text("no image")
    return root


def idx_bytes(array):
    shape = b"".join(struct.pack(">I", side) for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def test_demo_rows_follow_the_file():
    demo = load_demo()
    for split, count in (("train", 10_000), ("test", 2_000)):
        pool = open_pool("DEMO", split)
        image, label, i = pool[7]
        assert (len(pool), pool.classes, i) == (count, 10, 7)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image)[..., 1], demo[f"{split}_images"][7])
        assert label == demo[f"{split}_labels"][7] == pool.labels[7]
    assert open_pool("DEMO", "val").labels == pool.labels


def test_pools_go_to_workers():
    pool = open_pool("DEMO")
    assert pickle.loads(pickle.dumps(pool))[3][1] == pool[3][1]


def test_folder_is_recursive_and_sorted_and_keeps_names(folder):
    pool = open_pool(str(folder))
    assert pool.names == ("a/x.jpg", "b/10.PNG", "b/2.png", "b/c/1.tif", "z.bmp")
    assert (pool.labels, pool.classes, pool[1][1]) == (None, None, -1)
    assert np.array_equal(np.asarray(pool[2][0])[..., 0], load_demo()["train_images"][0])


def test_folder_link_loop_ends(folder):
    (folder / "b" / "up").symlink_to(folder)
    assert len(open_pool(str(folder))) == 5


def test_text_list_keeps_its_order(folder, tmp_path):
    listed = tmp_path / "chosen.txt"
    listed.write_text("my photos/z.bmp\n\nmy photos/a/x.jpg\r\n")
    pool = open_pool(str(listed))
    assert pool.names == ("my photos/z.bmp", "my photos/a/x.jpg")
    listed.write_text("z.bmp\na/x.jpg\n")
    assert len(open_pool(str(listed), root=folder)) == 2


@pytest.mark.parametrize(
    ("text", "labels", "classes", "class_names"),
    [
        ("file,label\nz.bmp,3\na/x.jpg,0\n", [3, 0], 4, None),
        ("z.bmp,3\na/x.jpg,\n", [3, -1], 4, None),
        ("z.bmp,shoe\na/x.jpg,bag\n", [1, 0], 2, ("bag", "shoe")),
        ("z.bmp,shoe\na/x.jpg,\n", [0, -1], 1, ("shoe",)),
        ("path\nz.bmp\na/x.jpg\n", None, None, None),
        ("z.bmp,-1\na/x.jpg,-1\n", None, None, None),
    ],
)
def test_csv_labels(folder, text, labels, classes, class_names):
    (folder / "list.csv").write_text(text)
    pool = open_pool(str(folder / "list.csv"))
    assert (pool.names, pool.labels, pool.classes, pool.class_names) == (
        ("z.bmp", "a/x.jpg"), labels, classes, class_names,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("l.txt", "", "names no images"),
        ("l.txt", "z.bmp\nlost.png\n", "1 of 2 files are missing, first .*lost.png"),
        ("l.txt", "z.bmp\na/x.jpg\nz.bmp\n", r"'z.bmp' more than once \(1 repeats\)"),
        ("l.csv", "z.bmp,1,2\n", "3 columns"),
        ("l.csv", "z.bmp,-2\n", "label -2"),
    ],
)
def test_bad_lists(folder, name, text, match):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=match):
        open_pool(str(folder / name))


def test_binary_file_is_no_list(folder):
    with pytest.raises(UserError, match="is no list of image paths"):
        open_pool(str(folder / "a/x.jpg"))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("cifar-10", f"{', '.join(POOLS)}.*Did you mean CIFAR10"),
        ("demo", "Did you mean DEMO"),
        ("no/such/folder", "nor a folder of images"),
    ],
)
def test_unknown_names(name, match):
    with pytest.raises(UserError, match=match):
        open_pool(name)


def test_unknown_split_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="unknown split 'tran' of DEMO: use train, or test"):
        open_pool("DEMO", "tran")
    with pytest.raises(UserError, match="holds no images"):
        open_pool(str(tmp_path))


def fake_cifar(root, name):
    """A tiny data set in torchvision's pickled CIFAR format; 4 training and 2 test images per file."""
    from torchvision import datasets

    kind, generator = getattr(datasets, name), np.random.default_rng(0)
    folder, key = root / kind.base_folder, "labels" if name == "CIFAR10" else "fine_labels"
    folder.mkdir(parents=True)
    for lists, count in ((kind.train_list, 4), (kind.test_list, 2)):
        for file, _ in lists:
            data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
            (folder / file).write_bytes(pickle.dumps({"data": data, key: list(range(count))}))
    names = [f"class {i}" for i in range(10 if name == "CIFAR10" else 100)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))


@pytest.mark.parametrize(("name", "count", "classes"), [("CIFAR10", 20, 10), ("CIFAR100", 4, 100)])
def test_cifar_rows_are_torchvisions(tmp_path, monkeypatch, name, count, classes):
    from torchvision import datasets

    fake_cifar(tmp_path, name)
    monkeypatch.setattr(getattr(datasets, name), "_check_integrity", lambda self: True)
    monkeypatch.setitem(getattr(datasets, name).meta, "md5", None)
    pool = open_pool(name, root=tmp_path)
    source = getattr(datasets, name)(tmp_path)
    assert (len(pool), pool.classes, pool.labels) == (count, classes, source.targets)
    assert np.array_equal(np.asarray(pool[3][0]), np.asarray(source[3][0]))
    assert len(open_pool(name, "test", tmp_path)) == 2


def test_cifar_without_network_says_what_to_fetch(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"fetch http://127.0.0.1:9/cifar-10-python.tar.gz .*put it into"):
        open_pool("CIFAR10", root=tmp_path)


def test_imagenet_order_is_imagefolders(tmp_path):
    from torchvision.datasets import ImageFolder

    for i, name in enumerate(("n02/b.JPEG", "n02/a.JPEG", "n01/c.JPEG")):
        (tmp_path / "ImageNet/train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (i, 0, 0)).save(tmp_path / "ImageNet/train" / name)
    pool = open_pool("ImageNet", root=tmp_path)
    assert list(zip(pool.paths, pool.labels, strict=True)) == ImageFolder(tmp_path / "ImageNet/train").samples
    assert (pool.labels, pool.classes, pool.names) == ([0, 1, 1], 2, None)
    with pytest.raises(UserError, match="ImageNet/val: link it there"):
        open_pool("ImageNet", "val", tmp_path)


def test_fashion_mnist_from_raw_files(tmp_path):
    demo = load_demo()
    for part, split in (("train", "train"), ("t10k", "test")):
        images, labels = demo[f"{split}_images"][:3], demo[f"{split}_labels"][:3].astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    pool = open_pool("FashionMNIST", "test", tmp_path)
    assert np.array_equal(pool.arrays, demo["test_images"][:3])
    assert pool.labels == demo["test_labels"][:3].tolist()


def test_idx_files(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    whole = idx_bytes(array)
    for name, data in (("plain", whole), ("packed.gz", gzip.compress(whole))):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_idx(find_idx(tmp_path, name.removesuffix(".gz"))), array)
    for data, name, match in (
        (whole[:-1], "short", "holds 39 bytes, 40 are needed"), (b"", "empty", "no idx file"),
        (b"\x00\x00\x0d\x01" + bytes(8), "floats", "no idx file of bytes"), (whole, "text.gz", "no gzip file"),
        (gzip.compress(whole)[:-9], "cut.gz", "truncated"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=match):
            read_idx(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        read_idx(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither none nor none\.gz"):
        find_idx(tmp_path, "none")


def test_unusual_images_are_read(tmp_path):
    grey = load_demo()["train_images"][0]
    shades = np.arange(0, 28 * 28 * 64, 64, dtype=np.uint16).reshape(28, 28)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    deep = np.asarray(read_image(tmp_path / "deep.png"))[..., 0]
    assert np.abs(deep - shades / 257).max() <= 0.5
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png", transparency=0)
    shown = np.asarray(read_image(tmp_path / "palette.png"))[..., 0]
    assert np.array_equal(shown, np.where(grey == 0, 255, grey))  # transparent: over white
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    frames = [Image.fromarray(grey), Image.new("L", (28, 28), 9)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(np.asarray(read_image(tmp_path / "moving.gif"))[..., 0], grey)
    for name, size in (("cmyk.jpg", (28, 28)), ("dot.png", (1, 1))):
        assert (read_image(tmp_path / name).mode, read_image(tmp_path / name).size) == ("RGB", size)


def test_damaged_images_are_named(folder):
    whole = (folder / "a/x.jpg").read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"plain text"):
        (folder / "a/x.jpg").write_bytes(data)
        with pytest.raises(UserError, match=r"a/x.jpg cannot be read"):
            open_pool(str(folder))[0]


def test_a_decompression_bomb_is_refused(folder, monkeypatch):
    """A small file that unpacks to gigabytes; the limit is PIL's own."""
    Image.new("L", (400, 300)).save(folder / "z.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    pool = open_pool(str(folder))
    with pytest.raises(UserError, match=r"z.bmp cannot be read \(DecompressionBombError"):
        pool.image(len(pool) - 1)


def test_a_folder_of_splits_is_no_pool(folder):
    for name in ("val", "train", "other"):
        (folder / name).mkdir()
    with pytest.raises(UserError, match=r"my photos holds train/ and val/, not one pool: give .*my photos/train$"):
        open_pool(str(folder))
    (folder / "val").rmdir()
    assert len(open_pool(str(folder))) == 5  # `train` may be a class
    only = folder.parent / "only"
    (only / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds train/, not one pool"):
        open_pool(str(only))


@pytest.mark.parametrize("held", ["valid", "validation", "Val", "VAL", "Test", "testing", "eval", "dev"])
def test_a_held_out_folder_of_any_name_is_refused(tmp_path, held):
    for name in (f"photos/train/a/{held}.png", f"photos/{held}/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    message = rf"photos holds train/ and {held}/, not one pool: give .*photos/train$"
    for folder in ("photos", "."):  # as well one level deeper
        with pytest.raises(UserError, match=message):
            open_pool(str(tmp_path / folder))
    assert len(open_pool(str(tmp_path / "photos" / held))) == 1


def test_a_flag_is_named_where_the_command_has_it(tmp_path):
    (tmp_path / "l.txt").write_text("gone.png\n")
    with pytest.raises(UserError, match=rf"relative paths start from {tmp_path} \(--data_path sets another folder\)"):
        open_pool(str(tmp_path / "l.txt"))
    with pytest.raises(UserError, match=f"relative paths start from {tmp_path}") as told:
        own_pool(tmp_path / "l.txt")
    assert "--" not in str(told.value)
