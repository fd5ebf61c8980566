"""Budgets, names, and files that are checked when read and whole when written."""

import json
import re
import subprocess

import numpy as np
import pytest

from data_selection.common import subset_files
from data_selection.common.errors import UserError, run
from data_selection.common.feature_table import load_features, save_features, sidecar
from data_selection.common.files import atomic_write, check_writable, told_size
from data_selection.common.subset_files import (
    budget_from_percent,
    describe,
    load_subset,
    save_subset,
)
from data_selection.common.subset_names import (
    activeft_name,
    bilaf_name,
    default_folder,
    output_path,
    setting_word,
    shortened,
    with_settings,
)
from data_selection.methods.configs import ActiveFTConfig


@pytest.mark.parametrize(
    ("pool_size", "percent", "budget"),
    # the first three are those where the released programs' floating point loses one
    [(50_000, 0.29, 145), (50_000, 0.57, 285), (50_000, 2.01, 1005), (50_000, "2", 1000), (50_000, 100, 50_000),
     (1_281_167, 0.5, 6405), (1_281_167, 1, 12_811), (1_281_167, 2, 25_623), (1_281_167, 5, 64_058)],
)  # fmt: skip
def test_percent_is_exact(pool_size, percent, budget):
    assert budget_from_percent(pool_size, percent) == budget


@pytest.mark.parametrize("percent", [0, -1, 100.01, 0.0001, "nan", "inf", "1e5000", "-1e5000", "1e-5000", "1e999999"])
def test_percent_that_makes_no_budget_is_refused(percent):
    with pytest.raises(UserError, match=r"at least 0\.1 % and at most 100 %"):
        budget_from_percent(1000, percent)


def test_percent_must_be_a_number():
    with pytest.raises(UserError, match="'two' is not a number"):
        budget_from_percent(1000, "two")


def test_subset_round_trip_is_the_released_format(tmp_path):
    path = tmp_path / "new" / "s.json"
    save_subset(path, [5, 1, 3], {"method": "x"})
    assert path.read_text() == "[5, 1, 3]"
    assert load_subset(path, 6).tolist() == [5, 1, 3]
    assert json.loads(sidecar(path, "provenance").read_text()) == {"method": "x"}
    save_subset(path, [5, 1, 3], order="sorted")
    assert path.read_text() == "[1, 3, 5]"
    assert not sidecar(path, "provenance").exists()  # one of an older list would lie


@pytest.mark.parametrize(
    ("text", "match"),
    [("[1, 2", "no valid JSON"), ("[" * 99_999, "no valid JSON"), ("{}", "JSON list"),
     ("[]", "non-empty"), ("[1.5]", "whole numbers"),
     ("[true]", "whole numbers"), ("[1, 1]", "repeated"), ("[10]", r"outside the pool's 0\.\.9"), ("[-1]", "id -1"),
     ("[100000000000000000000]", r"id 100000000000000000000 is outside the pool's 0\.\.9")],
)  # fmt: skip
def test_bad_subset_files_are_refused(tmp_path, text, match):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        load_subset(path, 10)


def test_missing_subset_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_subset(tmp_path / "s.json", 10)


def test_default_names():
    name = "P_train_ActiveFT_euclidean_temp_0.07_lr_0.001000_scheduler_none{}_iter_300_sampleNum_30{}.json"
    assert activeft_name("P_train", ActiveFTConfig(), 30) == name.format("", "")
    assert activeft_name("P_train", ActiveFTConfig(balance=0.5), 30, seed=4) == name.format("_br_0.50", "_seed_4")
    fine = activeft_name("P_train", ActiveFTConfig(temperature=0.005, init="fps", objective="paper"), 30)
    assert "_temp_0.005_" in fine  # two decimals would say 0.01
    assert fine.endswith("_sampleNum_30_init_fps_objective_paper.json")
    other = activeft_name("P_train", ActiveFTConfig(), 30, 4, {"batch_size": 40, "threshold": 0.1})
    assert other == name.format("", "_batch_size_40_threshold_0.1_seed_4")
    assert bilaf_name(1000, 250) == "Density_1000_from_ActiveFT250.json"
    assert bilaf_name(1000, 250, 2) == "Density_1000_from_ActiveFT250_seed_2.json"
    assert default_folder("features/CIFAR10_train.npy").parts[-2:] == ("subsets", "CIFAR10")
    assert default_folder("x/mine.npy").parts[-2:] == ("subsets", "mine")


def test_names_tell_lists_and_long_settings_by_digests():
    lists = [setting_word(value) for value in ([1, 2, 3], (1, 2, 4), [1, 2])]
    assert [word.split("_")[0] for word in lists] == ["3", "3", "2"]
    assert len({word.split("_")[1] for word in lists}) == 3
    assert setting_word([1, 2, 3]) == setting_word((1, 2, 3)) == "3_a36b1f2c"
    assert [setting_word(value) for value in (0.5, True, False, "k-means++")] == ["0.5", "yes", "no", "k-means++"]
    for text in ("a/b", "a b", "x" * 25):
        assert re.fullmatch("[0-9a-f]{8}", setting_word(text))
    name = with_settings("P_random_sampleNum_5_seed_1.json", {"labelled": "3_a36b1f2c"})
    assert name == "P_random_sampleNum_5_seed_1_labelled_3_a36b1f2c.json"
    assert shortened(name) == name
    assert shortened("caf\udce9.json") == "caf\udce9.json"  # of a pool whose name is no UTF-8
    long = [shortened(f"{'é' * 120}_{end}.json") for end in "ab"]
    assert long[0] != long[1]
    assert all(len(text.encode()) <= 200 and text.endswith(".json") for text in long)


def test_provenance_names_the_feature_file(tmp_path):
    path = tmp_path / "P_train.npy"
    save_features(path, [[1.0, 2.0], [3.0, 4.0]], provenance={"backbone": "b"})
    record = describe(load_features(path), method="m", config={"a": 1}, seed=3, budget=1, command=["c"])
    assert record["features"]["shape"] == [2, 2]
    assert record["features"]["provenance"] == {"backbone": "b"}
    assert len(record["features"]["sha256"]) == 64
    assert record["seed"] == 3
    assert set(record["versions"]) == {"python", "torch", "numpy", "commit"}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("old")

    def interrupted():
        with atomic_write(path, "w") as handle:
            handle.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["s.json"]


def test_an_error_names_the_file_and_not_its_temporary_one(tmp_path):
    path = tmp_path / f"{'x' * 250}.csv"  # its temporary file's name would be too long

    def write():
        with atomic_write(path, "w"):
            pass

    with pytest.raises(OSError, match="too long") as error:
        write()
    assert error.value.filename == str(path)


def test_a_subset_may_not_take_the_provenance_of_a_feature_file(tmp_path):
    save_features(tmp_path / "P_train.npy", [[1.0, 2.0]])
    with pytest.raises(UserError, match=r"share its provenance file with .*P_train\.npy"):
        output_path(tmp_path, "P_train.json")
    assert output_path(tmp_path / "new", "P_train.json").parent.is_dir()


def test_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file" / "s.json")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("9 requested and 3 written")])
def test_a_full_disk_names_the_file(tmp_path, capsys, error):
    def full(_):
        with atomic_write(tmp_path / "s.json", "w"):
            raise error

    assert run(full) == 2
    assert f"{error.strerror or error}: {tmp_path}/s.json\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes_are_told_in_fitting_units():
    assert [told_size(count) for count in (100, 54_040, 2.5e6, 1.234e9)] == [
        "100 bytes",
        "54.0 kB",
        "2.50 MB",
        "1.23 GB",
    ]


def test_the_commit_is_that_of_the_checkout_and_marked_where_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(subset_files, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert subset_files.commit() is None  # a download, without git's files

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    found = subset_files.commit()
    assert git("rev-parse", "HEAD").startswith(found)
    assert len(found) == 12
    (tmp_path / "a.txt").write_text("2")
    assert subset_files.commit() == f"{found}-dirty"
    monkeypatch.setenv("PATH", "")
    assert subset_files.commit() is None  # no git here


def test_the_names_of_two_years_lie_in_two_files(tmp_path):
    save_features(
        tmp_path / "v.npy", np.eye(2, dtype=np.float32), names=["a", "b"], provenance={"pool": {"name": "PascalVOC"}}
    )
    files = subset_files.names_files(tmp_path / "s.json", load_features(tmp_path / "v.npy", label_column=False))
    assert [path.name for path in files] == ["s_VOC2007.txt", "s_VOC2012.txt"]
