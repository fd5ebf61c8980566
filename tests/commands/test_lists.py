"""The commands take lists of images that were known before, by name, and never replace them."""

import json

import numpy as np
import pytest

from data_selection.commands.any_method import main_select
from data_selection.commands.bilaf import main_bilaf
from data_selection.common.errors import UserError
from data_selection.common.feature_table import save_features
from data_selection.images.record import PoolRecord, save_record

NAMES = [f"{i:02}.png" for i in range(40)]


@pytest.fixture
def pool(tmp_path):
    """Features of 40 named images with a record."""
    path = tmp_path / "P_train.npy"
    save_features(path, np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), names=NAMES)
    save_record(path, PoolRecord(tuple(f"h{i}" for i in range(40)), tuple(NAMES)))
    return path


def choose(pool, *words, name="new.json", budget=5):
    flags = [
        "--features",
        pool,
        "--method",
        "random",
        "--budget",
        budget,
        "--output_dir",
        pool.parent,
        "--device",
        "cpu",
    ]
    main_select([str(word) for word in (*flags, *(["--filename", name] if name else []), *words)])
    return json.loads((pool.parent / (name or "P_train_random_sampleNum_5.json")).read_text())


@pytest.mark.parametrize("flag", ["--labelled", "--excluded"])
def test_lists_of_all_kinds_at_once_are_left_alone(pool, tmp_path, flag):
    first = choose(pool, name="one.json", budget=10)
    others = [i for i in range(40) if i not in first]
    (tmp_path / "names.txt").write_text("".join(f"{NAMES[i]}\n" for i in others[:10]))
    (tmp_path / "labels.csv").write_text("file;label\n" + "".join(f"train/{NAMES[i]};cat\n" for i in others[10:20]))
    lists = [tmp_path / name for name in ("one.json", "names.txt", "labels.csv")]
    assert sorted(choose(pool, flag, *lists, budget=10)) == others[20:]


def test_a_list_remembers_its_images_wherever_they_lie(pool, tmp_path):
    first = choose(pool, name="one.json", budget=10)
    told = json.loads((tmp_path / "one.provenance.json").read_text())["images"]
    assert told == {"name": [NAMES[i] for i in first], "hash": [f"h{i}" for i in first]}
    grown = tmp_path / "G_train.npy"  # one more image that sorts first, and all others renamed
    save_features(grown, np.random.default_rng(1).normal(size=(41, 4)).astype(np.float32),
                  names=["0.png", *(f"x{name}" for name in NAMES)])  # fmt: skip
    save_record(grown, PoolRecord(("new", *(f"h{i}" for i in range(40))), ("0.png", *(f"x{name}" for name in NAMES))))
    rest = choose(grown, "--labelled", tmp_path / "one.json", budget=31)
    assert sorted(rest) == sorted(set(range(41)) - {i + 1 for i in first})


def test_images_that_are_gone_stop_the_command_or_are_left_out(pool, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("gone.png\n00.png\n")
    with pytest.raises(UserError, match=r"names\.txt: 1 of 2 images are not in .*P_train\.npy: 'gone\.png'"):
        choose(pool, "--labelled", tmp_path / "names.txt")
    assert 0 not in choose(pool, "--labelled", tmp_path / "names.txt", "--missing", "skip", budget=39)
    assert "'gone.png'; left out" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--labelled", "--excluded"])
def test_a_list_to_choose_by_is_never_replaced(pool, tmp_path, flag):
    first = choose(pool, name=None)
    path = tmp_path / "P_train_random_sampleNum_5.json"
    with pytest.raises(UserError, match=r"P_train_random_sampleNum_5\.json is one of the lists to choose by"):
        choose(pool, flag, path, "--overwrite", name=path.name)
    choose(pool, flag, path, name=None)  # what is not given is another name
    assert json.loads(path.read_text()) == first
    names = path.with_suffix(".txt").read_bytes()
    with pytest.raises(UserError, match=r"P_train_random_sampleNum_5\.txt is one of the lists to choose by"):
        choose(pool, flag, path.with_suffix(".txt"), "--overwrite", name=path.name)
    assert path.with_suffix(".txt").read_bytes() == names
    others = [file for file in tmp_path.glob(f"P_train_random*_{flag[2:]}_5_????????.json")]
    assert len(others) == 1
    assert not set(json.loads(others[0].read_text())) & set(first)


def test_the_cores_are_never_replaced(pool, tmp_path):
    cores = tmp_path / "Density_10_from_ActiveFT5.json"
    cores.write_text("[1, 9, 17, 25, 33]")
    words = [
        "--features",
        pool,
        "--indices_file_name",
        cores,
        "--budget",
        10,
        "--output_dir",
        tmp_path,
        "--device",
        "cpu",
    ]
    with pytest.raises(UserError, match=r"Density_10_from_ActiveFT5\.json is one of the lists to choose by"):
        main_bilaf("density_cluster", list(map(str, words)))
    assert cores.read_text() == "[1, 9, 17, 25, 33]"
