"""Public data sets: rows, labels and names in the documented order, from tiny files of the real layout."""

import hashlib
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_selection.commands.any_method import main_select
from data_selection.commands.bilaf import main_bilaf
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features
from data_selection.images import dataset_files, pools
from data_selection.images.dataset_files import imbalanced_rows
from data_selection.images.pools import POOLS, Pool, open_pool


def save_image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (shade, 0, 0)).save(path, format="PNG")  # named .jpg: the content decides


CUB_IMAGES = ("002.Gull/b.jpg", "001.Albatross/z.jpg", "001.Albatross/a.jpg", "002.Gull/c.jpg")


@pytest.fixture
def cub(tmp_path):
    """A folder with CUB_200_2011 of four images; 1, 2 and 4 are for training."""
    folder = tmp_path / "CUB_200_2011"
    for i, name in enumerate(CUB_IMAGES):
        save_image(folder / "images" / name, shade=i)
    tables = {"images": CUB_IMAGES, "image_class_labels": (2, 1, 1, 2), "train_test_split": (1, 1, 0, 1)}
    for name, values in tables.items():
        (folder / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, 1)))
    return tmp_path


def test_cub_rows_follow_the_archives_split(cub):
    train, test = (open_pool("CUB2011", split, cub) for split in ("train", "test"))
    assert train.names == ("002.Gull/b.jpg", "001.Albatross/z.jpg", "002.Gull/c.jpg")
    assert (train.labels, train.classes, train.class_names) == ([1, 0, 1], 2, ("001.Albatross", "002.Gull"))
    assert (test.names, test.labels, test.class_names) == (("001.Albatross/a.jpg",), [0], train.class_names)
    assert [pool[i][0].getpixel((0, 0))[0] for pool in (train, test) for i in range(len(pool))] == [0, 1, 3, 2]


def test_cub_that_is_not_whole(cub):
    (cub / "CUB_200_2011/images" / CUB_IMAGES[0]).unlink()
    with pytest.raises(UserError, match=r"CUB-200-2011: 1 of 3 files are missing, first .*002.Gull/b.jpg"):
        open_pool("CUB2011", root=cub)
    with (cub / "CUB_200_2011/train_test_split.txt").open("a") as table:
        table.write("5 1\n")
    with pytest.raises(UserError, match="list different images"):
        open_pool("CUB2011", root=cub)
    (cub / "CUB_200_2011/images.txt").unlink()
    with pytest.raises(UserError, match=r"CUB-200-2011 needs .*images.txt: unpack"):
        open_pool("CUB2011", root=cub)


def test_cub_is_unpacked_once_and_whole(cub, tmp_path, monkeypatch):
    root = tmp_path / "fresh"
    root.mkdir()
    archive = root / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cub / "CUB_200_2011", "CUB_200_2011")
    with pytest.raises(UserError, match="another digest than md5:97eceeb196236b17998738112f37df78"):
        open_pool("CUB2011", root=root)
    monkeypatch.setattr(dataset_files, "CUB_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(open_pool("CUB2011", root=root)) == 3
    archive.unlink()
    assert len(open_pool("CUB2011", root=root)) == 3
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "CUB_200_2011.tgz").write_bytes(b"no archive")
    monkeypatch.setattr(dataset_files, "CUB_MD5", hashlib.md5(b"no archive").hexdigest())
    with pytest.raises(UserError, match="cannot unpack"):
        open_pool("CUB2011", root=cut)
    assert [entry.name for entry in cut.iterdir()] == ["CUB_200_2011.tgz"]


def test_cub_without_network_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_files, "CUB_URL", "http://127.0.0.1:9/CUB_200_2011.tgz?download=1")
    with pytest.raises(UserError, match=r"cannot fetch http://.*put it at .*/CUB_200_2011.tgz"):
        open_pool("CUB2011", root=tmp_path)


@pytest.mark.parametrize(("ratio", "total", "last"), [(10, 19573, 50), (50, 12608, 10), (100, 10847, 5)])
def test_long_tail_quotas(ratio, total, last):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    rows = imbalanced_rows(labels, ratio)
    counts = np.bincount(labels[rows])
    assert (len(rows), counts[0], counts[99]) == (total, 500, last)
    assert np.array_equal(labels[rows], np.sort(labels[rows]))
    for label in (0, 50, 99):  # the first ones of each class
        assert rows[labels[rows] == label].tolist() == np.flatnonzero(labels == label)[: counts[label]].tolist()
    if ratio == 100:
        assert counts[[0, 1, 2, 50, 98, 99]].tolist() == [500, 477, 455, 48, 5, 5]


def test_a_long_tail_of_one_class_is_told():
    with pytest.raises(UserError, match="imbalance 10 is between classes, and there is 1: leave it out"):
        imbalanced_rows(np.zeros(5, int), 10, 1, 5)


def test_long_tail_maps_back_to_cifar100(monkeypatch):
    labels = np.random.default_rng(1).integers(0, 100, 20_000)
    arrays = np.arange(20_000, dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2)  # an image of its own for each row
    whole = Pool(arrays=arrays, labels=labels, classes=100, class_names=tuple(map(str, range(100))))
    monkeypatch.setattr(pools, "_build_cifar", lambda name, root, train: whole)
    pool = open_pool("CIFAR100LT_IR100")
    assert (pool.classes, pool.class_names) == (100, whole.class_names)
    for i in (0, 1000, len(pool) - 1):
        row = int(pool.names[i])
        assert np.array_equal(pool.arrays[i], whole.arrays[row])
        assert pool.labels[i] == labels[row]
    assert open_pool("CIFAR100LT_IR100", "test") is whole


def test_ade20k_is_sorted_and_named_by_stems(tmp_path):
    for part, name in (("training", "t_2"), ("training", "t_1"), ("training", "t_10"), ("validation", "v_1")):
        save_image(tmp_path / "ADE20K/ADEChallengeData2016/images" / part / f"{name}.jpg")
    pool = open_pool("ADE20K", root=tmp_path)
    assert (pool.names, pool.labels, pool[0][1]) == (("t_1", "t_10", "t_2"), None, -1)
    assert open_pool("ADE20K", "val", tmp_path / "ADE20K").names == ("v_1",)
    with pytest.raises(UserError, match=r"ADE20K is needed as images in .*images/training: unpack"):
        open_pool("ADE20K", root=tmp_path / "nowhere")


def fake_voc(root):
    for year, part, ids in (
        ("2007", "trainval", "000012 000005"), ("2012", "trainval", "2008_000008 2008_000002"), ("2007", "test", "1"),
    ):  # fmt: skip
        lists = root / f"VOCdevkit/VOC{year}/ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text(ids.replace(" ", "\n") + "\n")
        for name in ids.split():
            save_image(root / f"VOCdevkit/VOC{year}/JPEGImages/{name}.jpg")


def test_voc_is_2007_then_2012(tmp_path):
    fake_voc(tmp_path)
    pool = open_pool("PascalVOC", root=tmp_path)
    assert pool.names == ("000012", "000005", "2008_000008", "2008_000002")
    assert pool[3][0].size == (5, 4)
    assert open_pool("PascalVOC", "test", tmp_path).names == ("1",)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg").unlink()
    with pytest.raises(UserError, match="PascalVOC: 1 of 4 files are missing"):
        open_pool("PascalVOC", root=tmp_path)
    with pytest.raises(UserError, match=r"PascalVOC needs .*VOC2007/ImageSets/Main/trainval.txt"):
        open_pool("PascalVOC", root=tmp_path / "nowhere")


@pytest.mark.parametrize(("pool", "files"), [("ADE20K", [""]), ("PascalVOC", ["_VOC2007", "_VOC2012"])])
def test_selections_are_written_as_name_lists(tmp_path, capsys, pool, files):
    generator = np.random.default_rng(0)
    names = [f"{i:06}" for i in range(30, 0, -1)] + [f"2008_{i:06}" for i in range(30, 0, -1)]
    path = tmp_path / f"{pool}_train.npy"
    save_features(path, generator.normal(size=(60, 8)), names=names, provenance={"pool": {"name": pool}})
    main_select(["--features", str(path), "--budget", "20", "--method", "random", "--output_dir", str(tmp_path)])
    stem = f"{pool}_train_random_sampleNum_20"
    flags = ["--dataset", pool, "--features_inputs", str(path), "--indices_file_name", str(tmp_path / f"{stem}.json")]
    main_bilaf("density_cluster", [*flags, "--budget", "25", "--output_dir", str(tmp_path)])
    for written in (stem, "Density_25_from_ActiveFT20"):
        ids = json.loads((tmp_path / f"{written}.json").read_text())
        lists = [(tmp_path / f"{written}{end}.txt").read_text().split() for end in files]
        chosen = [load_features(path).names[i] for i in ids]
        assert lists == ([chosen] if len(files) == 1 else [
            sorted(name for name in chosen if ("_" in name) == late) for late in (False, True)
        ])  # fmt: skip
    assert f"their names, one a line, in {tmp_path / stem}{files[0]}.txt" in capsys.readouterr().out


def test_every_public_set_is_a_row():
    assert {"CUB2011", "CIFAR100LT_IR10", "CIFAR100LT_IR50", "CIFAR100LT_IR100", "ADE20K", "PascalVOC"} < set(POOLS)
