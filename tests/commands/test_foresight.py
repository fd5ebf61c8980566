"""What comes before a choice: its time, told from two small ones, and the class names."""

import os
import types
from pathlib import Path

import numpy as np
import pytest

from data_selection.commands import foresight, run_choose
from data_selection.common.errors import UserError
from data_selection.common.feature_table import save_features
from data_selection.images.pools import open_pool
from data_selection.images.record import record_pool, save_record
from data_selection.methods.configs import KMeansConfig
from data_selection.methods.configs_design import FacilityConfig
from tests.support.trainer_runs import write_images

LAWS = {
    "a start and the same for each": lambda rows, budget: budget * (0.002 + 1e-6 * rows),
    "each image with each": lambda rows, budget: budget * 1e-9 * rows**2,
    "between": lambda rows, budget: budget * 1e-7 * rows**1.5,
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize(("count", "budget"), [(60_000, 200), (50_000, 5_000), (3_000, 100)])
def test_the_time_of_a_choice_is_told_from_two_small_ones(monkeypatch, law, count, budget):
    clock, asked = [0.0], []

    def select(features, some):
        asked.append((len(features), some))
        clock[0] += law(len(features), some)

    monkeypatch.setattr(foresight.time, "monotonic", lambda: clock[0])
    told = foresight.try_choice(select, count, budget, 2)
    assert told == pytest.approx(law(count, budget), rel=0.01)
    assert max(rows for rows, _ in asked) <= min(4_000, count // 2)


def test_a_choice_that_takes_as_long_on_more_rows_grows_with_the_largest():
    assert foresight.grown(2.0, 2.0, 1000, 4000, 40_000) == 20  # nothing is known of how it grows
    assert foresight.grown(2.0, 8.0, 1000, 4000, 40_000) == 80
    assert foresight.grown(2.0, 2.0, 1000, 4000, 400) == 2  # a start costs the same


def test_rows_that_a_method_does_not_look_at_take_no_time(monkeypatch):
    """Facility location covers 10,000 random rows by 10,000, or by five for each to choose."""
    law, clock = LAWS["each image with each"], [0.0]

    def select(features, some):
        clock[0] += law(len(features), some)

    monkeypatch.setattr(foresight.time, "monotonic", lambda: clock[0])
    few, many = FacilityConfig(), FacilityConfig(clients=70_000)
    for config, budget, rows in (
        (few, 100, 10_000),
        (few, 3_000, 15_000),
        (many, 100, 60_000),
        (KMeansConfig(), 100, 60_000),
    ):
        enough = foresight.rows_looked_at(config, budget)
        told = foresight.try_choice(select, 60_000, budget, 2, enough)
        assert told == pytest.approx(law(rows, budget), rel=0.01)


def test_a_method_that_refuses_the_small_pools_is_told_as_nothing(monkeypatch):
    def select(features, some):
        raise foresight.UserError("too few")

    monkeypatch.setattr(foresight.time, "monotonic", lambda: 5.0)
    assert foresight.try_choice(select, 60_000, 200, 2) == 0


def test_class_names_come_from_words_or_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("b\na, c\n\nb\n")
    assert run_choose.class_words(str(tmp_path / "names.txt")) == ["b", "a, c"]
    assert run_choose.class_words("b, a,,b") == ["b", "a"]
    assert run_choose.class_words("cat") == ["cat"]
    for missing in ("nmaes.txt", "classes.csv", str(tmp_path / "names")):
        with pytest.raises(UserError, match=r"--classes .* does not exist: give a text file"):
            run_choose.class_words(missing)
    assert run_choose.class_words(["x", " "]) == ["x"]
    assert run_choose.class_words("e\u0301te\u0301,\u00e9t\u00e9") == ["\u00e9t\u00e9"]  # as labels are read


def test_a_disk_that_is_too_full_is_told_before_the_work(tmp_path, monkeypatch):
    asked = []
    usage = types.SimpleNamespace(free=2e6)
    monkeypatch.setattr(foresight.shutil, "disk_usage", lambda path: asked.append(path) or usage)
    foresight.check_disk(tmp_path / "a" / "b", 2e6)
    with pytest.raises(UserError, match=r"b needs 3\.00 MB, 2\.00 MB are free there: choose another --out, or make"):
        foresight.check_disk(tmp_path / "a" / "b", 3e6)
    assert asked == [tmp_path] * 2


def test_images_are_known_by_name_size_and_time(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        write_images(tmp_path / "pool", [name])
    pool, path = open_pool(str(tmp_path / "pool")), tmp_path / "x.npy"
    ready = types.SimpleNamespace(pool=pool, path=path, provenance={})
    assert foresight.not_known(ready) == 4
    save_features(path, np.eye(4), names=pool.names, provenance={})
    save_record(path, record_pool(pool))
    assert foresight.not_known(ready) == 0
    first, second, third, _ = map(Path, pool.paths)
    os.utime(first, ns=(1, 1))
    before = second.stat().st_mtime_ns
    second.write_bytes(second.read_bytes() + b"0")
    os.utime(second, ns=(before, before))
    assert foresight.not_known(ready) == 2
    third.rename(tmp_path / "pool" / "e.png")
    ready.pool = open_pool(str(tmp_path / "pool"))
    assert foresight.not_known(ready) == 3
