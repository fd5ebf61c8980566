"""Extraction ends with what the pool held; selection takes one of several equal images."""

import json

import numpy as np
import pytest
from PIL import Image

from data_selection.commands.activeft import main_activeft
from data_selection.commands.any_method import main_select
from data_selection.commands.bilaf import main_bilaf
from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features, sidecar
from data_selection.images.inventory import inventory
from data_selection.images.pools import Pool
from data_selection.images.record import PoolRecord, load_record, save_record

DRAW = np.random.default_rng(0)


def paint(path, width=20, height=20, grey=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = DRAW.integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(pixels if grey is None else np.full_like(pixels, grey)).save(path)


def extract(folder, *flags):
    words = ["--dataset", folder, "--arch", "demo_vit", "--output_dir", folder.parent / "out", "--num_workers", 0]
    main_extract([str(word) for word in (*words, "--amp", "off", "--device", "cpu", *flags)])
    return folder.parent / "out" / "pool_train.npy"


def told(capsys):
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("inventory: ")]
    return line.removeprefix("inventory: ").split("; ")


def test_extraction_ends_with_an_inventory(tmp_path, capsys):
    folder = tmp_path / "pool"
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        paint(folder / name)
    paint(folder / "tiny.png", 30, 15)
    paint(folder / "long.png", 20, 201)
    paint(folder / "@eaDir" / "a.png")
    (folder / "bad.png").write_bytes(b"none")
    for name, copy in (("b.png", "b2.png"), ("b.png", "z/b.png"), ("d.png", "new\nline.png")):
        (folder / copy).parent.mkdir(exist_ok=True)
        (folder / copy).write_bytes((folder / name).read_bytes())
    path = extract(folder, "--on_error", "skip")
    assert told(capsys) == [
        "10 images read, 0 reused", "left out: 1 cannot be read, 1 in folders @eaDir", "exact copies: 3 in 2 groups",
        "under 16 pixels a side: 1, first 'tiny.png'", "over 10 times as long as wide: 1, first 'long.png'",
    ]  # fmt: skip
    file = path.with_name("pool_train.duplicates.txt")
    assert file.read_text() == 'b.png\nb2.png\nz/b.png\n\nd.png\n"new\\nline.png"\n'
    for name in ("b2.png", "z/b.png", "new\nline.png", "bad.png", "long.png"):
        (folder / name).unlink()
    paint(folder / "f.png")
    extract(folder, "--on_error", "skip")
    assert told(capsys) == [
        "1 images read, 6 reused", "left out: 1 in folders @eaDir", "exact copies: none",
        "under 16 pixels a side: 1, first 'tiny.png'",
    ]  # fmt: skip
    assert not file.exists()
    extract(folder)
    assert told(capsys)[0] == "0 images read, 7 reused"


def test_images_in_memory_are_counted_too():
    pool, record = Pool(arrays=np.zeros((3, 8, 90), np.uint8)), PoolRecord(("a", "b", "a"))
    assert inventory(pool, 3, 0, [[0, 2]], record) == (
        "inventory: 3 images read, 0 reused; left out: none; exact copies: 1 in 1 groups; "
        "under 16 pixels a side: 3; over 10 times as long as wide: 3"
    )


def test_an_image_whose_size_is_not_known_is_not_unusual():
    pool, record = Pool(paths=["a", "b"]), PoolRecord(("h", "i"), ("a", "b"), widths=(0, 12), heights=(0, 20))
    assert inventory(pool, 2, 0, [], record).endswith("exact copies: none; under 16 pixels a side: 1, first 'b'")


def test_an_image_at_the_bounds_is_not_unusual():
    pool, record = Pool(paths=["a", "b"]), PoolRecord(("h", "i"), ("a", "b"), widths=(16, 15), heights=(160, 160))
    assert inventory(pool, 2, 0, [], record).endswith(
        "under 16 pixels a side: 1, first 'b'; over 10 times as long as wide: 1, first 'b'"
    )


def test_classes_are_counted_and_those_that_look_alike_told():
    words = ("CAT", "Cat", "cat", "cat ", "dog", "fox")
    pool, record = Pool(paths=["a"], labels=[1], class_names=words), PoolRecord(("h",), ("a",))
    assert inventory(pool, 1, 0, [], record).endswith(
        "exact copies: none; classes: 6 (CAT, Cat, cat, cat  and 2 more); classes that may be meant for one: 'CAT' and "
        "'Cat' and 'cat' and 'cat ' (mend the labels if so)"
    )
    pool.class_names = ("cat", "no_label")
    assert inventory(pool, 1, 0, [], record).endswith(
        "classes: 2 (cat, no_label); classes whose names say that there is no label: 'no_label' (take their images out "
        "if so)"
    )
    pool.class_names = ("cat", "dog")
    assert inventory(pool, 1, 0, [], record).endswith("; classes: 2 (cat, dog)")


def test_sizes_are_measured_once(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        paint(tmp_path / "pool" / name, 30, 25)
    path = extract(tmp_path / "pool")
    record = load_record(path, 2)
    assert (record.widths, record.heights) == ((30, 30), (25, 25))
    whole = json.loads(sidecar(path, "images").read_text())
    sidecar(path, "images").write_text(json.dumps({k: v for k, v in whole.items() if k not in ("width", "height")}))
    assert load_record(path, 2).widths is None  # a record of before they were kept
    extract(tmp_path / "pool")
    assert load_record(path, 2) == record
    monkeypatch.setattr("data_selection.images.record.image_size", None)
    extract(tmp_path / "pool")


@pytest.mark.parametrize("kind", ["RGBA", "rotated"])
def test_rows_of_other_pixels_are_made_anew_and_it_is_said_why(tmp_path, capsys, kind):
    folder = tmp_path / "pool"
    paint(folder / "a.png")
    image = Image.fromarray(DRAW.integers(0, 256, (30, 20, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "b.png") if kind == "RGBA" else image.convert("RGB").save(folder / "b.png", exif=exif)
    path = extract(folder)
    white = load_features(path).features.copy()
    beside = json.loads(sidecar(path, "provenance").read_text())
    assert (beside["preprocess"]["background"], beside["preprocess"]["exif"]) == ("#ffffff", True)
    extract(folder, "--background", "black")
    assert f"no row of {path} is reused: background was #ffffff, now #000000" in capsys.readouterr().out
    black = load_features(path).features
    assert np.array_equal(white[0], black[0])
    assert np.array_equal(white[1], black[1]) == (kind != "RGBA")
    beside = json.loads(sidecar(path, "provenance").read_text())
    for key in ("background", "exif"):
        del beside["preprocess"][key]
    sidecar(path, "provenance").write_text(json.dumps(beside))
    assert len(load_features(path)) == 2  # made before: still read
    extract(folder)
    said = capsys.readouterr().out
    assert "background was not recorded, now #ffffff; exif was not recorded, now True" in said
    assert np.array_equal(load_features(path).features, white)


def test_a_pool_in_memory_does_not_care_for_background_and_exif(tmp_path, capsys):
    words = ["--dataset", "DEMO", "--split", "test", "--output_dir", str(tmp_path), "--amp", "off"]
    main_extract(words)
    file = tmp_path / "DEMO_test.provenance.json"
    beside = json.loads(file.read_text())
    del beside["preprocess"]["background"], beside["preprocess"]["exif"]
    file.write_text(json.dumps(beside))
    main_extract(words)
    assert "is already there: 2000 rows" in capsys.readouterr().out


@pytest.fixture
def pool(tmp_path):
    """20 images: 0, 1 and 2 are one, 5 and 9, 12 and 13."""
    path, hashes = tmp_path / "P_train.npy", [f"h{i}" for i in range(20)]
    for row, same in ((1, 0), (2, 0), (9, 5), (13, 12)):
        hashes[row] = hashes[same]
    hashes[17] = hashes[18] = ""  # not known: equal to nothing
    save_features(path, DRAW.normal(size=(20, 4)).astype(np.float32), names=[f"{i:02}.png" for i in range(20)])
    save_record(path, PoolRecord(tuple(hashes), tuple(f"{i:02}.png" for i in range(20))))
    return path


def choose(pool, main, *words, **flags):
    flags = {"output_dir": pool.parent, "device": "cpu"} | flags
    main([str(word) for word in (*(f"--{n}={v}" for n, v in flags.items()), *words)])
    newest = max(pool.parent.glob("*[!e].json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


RANDOM = {"method": "random", "filename": "new.json"}


def test_one_of_equal_images_is_chosen(pool, tmp_path, capsys):
    everything = set(range(20)) - {1, 2, 9, 13}
    assert set(choose(pool, main_select, features=pool, budget=16, **RANDOM)) == everything
    assert "set aside: 4 exact copies of other images (--keep-duplicates" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"a budget of 17 is too large: .* 4 are exact copies of others, which leaves 16"
    ):
        choose(pool, main_select, "--overwrite", features=pool, budget=17, **RANDOM)

    def activeft(argv):
        main_activeft("activeft_cifar", argv)

    chosen = choose(pool, activeft, features=pool, budget=16, max_iter=2, filename="a.json")
    assert set(chosen) == everything
    assert set(
        choose(pool, activeft, "--keep-duplicates", features=pool, budget=20, max_iter=2, filename="b.json")
    ) == set(range(20))
    assert '"keep_duplicates": "yes"' in (tmp_path / "b.provenance.json").read_text()
    assert "keep_duplicates" not in json.loads((tmp_path / "a.provenance.json").read_text())


@pytest.mark.parametrize("flag", ["--labelled", "--excluded"])
def test_no_copy_of_a_known_image_is_chosen(pool, tmp_path, flag):
    (tmp_path / "known.txt").write_text("02.png\n12.png\n")
    chosen = choose(pool, main_select, flag, tmp_path / "known.txt", features=pool, budget=14, **RANDOM)
    assert set(chosen) == set(range(20)) - {0, 1, 2, 9, 12, 13}
    kept = choose(
        pool, main_select, flag, tmp_path / "known.txt", "--keep-duplicates", "--overwrite", features=pool, budget=18,
        **RANDOM,
    )  # fmt: skip
    assert set(kept) == set(range(20)) - {2, 12}


@pytest.mark.parametrize("keep", [(), ("--keep-duplicates",)])
def test_cores_have_no_copies_around_them(pool, tmp_path, keep):
    (tmp_path / "cores.json").write_text("[3, 9, 1]")
    chosen = choose(pool, lambda argv: main_bilaf("density_cluster", argv), *keep, "--remove_percentage", 0,
                    features_inputs=pool, indices_file_name=tmp_path / "cores.json", budget=10)  # fmt: skip
    copies = {0, 2, 5, 13} & set(chosen)
    assert bool(copies) == bool(keep)
    assert {3, 9, 1} < set(chosen)


def test_equal_images_of_several_classes_are_told(tmp_path, capsys):
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        paint(tmp_path / "pool" / name)
    (tmp_path / "pool/all_cats").symlink_to(tmp_path / "pool/cat")
    (tmp_path / "pool/dog/d.png").symlink_to(tmp_path / "pool/dog/c.png")  # of one class
    (tmp_path / "pool/all.png").write_bytes(b"none")  # has no row
    (tmp_path / "l.csv").write_text(
        "file,label\nall_cats/a.png,x\ncat/a.png,y\nall_cats/b.png,x\ndog/c.png,y\ndog/d.png,y\n"
    )
    extract(tmp_path / "pool", "--on_error", "skip", "--labels", tmp_path / "l.csv")
    assert told(capsys)[2:4] == [
        "exact copies: 3 in 3 groups",
        "equal images of several classes: 1 groups, first 'all_cats/a.png' and 'cat/a.png'",
    ]
    (tmp_path / "pool/all.png").unlink()
    extract(tmp_path / "pool", "--labels", "folders")
    assert told(capsys)[3:] == [
        "equal images of several classes: 2 groups, first 'all_cats/a.png' and 'cat/a.png'",
        "classes: 3 (all_cats, cat, dog)",
    ]
