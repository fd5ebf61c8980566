"""What a plan tells before it is computed: the time, by that of finished cells, and copies among the test images."""

import json
import os
import types

import numpy as np
import pytest

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, save_features, sidecar
from data_selection.images.record import PoolRecord, save_record
from scripts.experiments import command
from scripts.experiments.forecast import forecast, told
from tests.support.experiments import make_config


def cell(name, chosen, budget=10, method="kmeans", kind="probe", pool="one", **judged):
    return types.SimpleNamespace(
        pool=pool, evaluation=kind, method=method, asked=str(budget), budget=budget, seed=0, digest=name,
        list_digest=chosen, chosen={"method": method}, judged={"kind": kind} | judged,
    )  # fmt: skip


def test_a_list_takes_its_time_once_and_by_its_size():
    done = [cell("a", "first"), cell("b", "first", kind="knn")]
    todo = [cell("c", "second", 40), cell("d", "second", 40, kind="knn"), cell("e", "first", kind="smoothed"),
            cell("f", "third", method="random"), cell("g", "fourth", pool="two")]  # fmt: skip
    records = {"a": {"seconds_choosing": 20, "seconds": 3}, "b": {"seconds_choosing": 20, "seconds": 1}}
    *lines, first, second, third, fourth = forecast([*done, *todo, todo[0]], records, jobs=2).splitlines()
    assert [line.rpartition("  ")[2] for line in lines[:-1]] == ["done"] * 2 + ["to do"] * 6
    assert lines[2] == "one, probe, kmeans, 40 (40), seed 0  to do"
    # the second list takes four times what the first one took, and is judged twice; the third one's choice is unknown
    assert lines[-1] == "8 cells, 5 to do: 44 seconds by what finished ones took"
    assert [first, second, third, fourth] == [
        f"  and 1 times {what}, of which none is finished yet"
        for what in ("smoothed in one", "choosing by random in one", "choosing by kmeans in two", "probe in two")
    ]


def test_a_training_is_told_by_its_own_kind_in_proportion_to_its_labels():
    def training(name, budget, mode):
        return cell(name, name, budget, kind="trainer", flags={"mode": mode})

    done = [training("a", 100, "few-shot"), training("b", 100, "few-shot"), training("c", 100, "few-shot")]
    records = {"abc"[i]: {"seconds_choosing": 0, "seconds": seconds} for i, seconds in enumerate((100, 180, 200))}
    todo = [training("d", 100, "few-shot"), training("e", 1000, "few-shot"), training("f", 100, "self-train")]
    *_, time, unknown = forecast([*done, *todo], records, jobs=1).splitlines()
    assert time == "6 cells, 3 to do: 33.0 minutes by what finished ones took"  # 180 and 1,800 seconds
    assert unknown == "  and 1 times trainer in one, of which none is finished yet"
    done = [training("a", 50, "few-shot"), training("b", 1000, "few-shot")]
    *_, time = forecast([*done, training("d", 400, "few-shot")], records, jobs=1).splitlines()
    assert time == "3 cells, 1 to do: 1.2 minutes by what finished ones took"  # 180 for 1,000: nearer by their ratio


def test_without_a_finished_cell_no_time_is_told_and_none_is_left_of_a_finished_plan():
    assert "\n1 cells, 1 to do: nothing measured yet\n" in forecast([cell("a", "first")], {}, jobs=1)
    records = {"a": {"seconds_choosing": 20, "seconds": 3}}
    assert forecast([cell("a", "first")], records, jobs=1).endswith(
        "1 cells, 0 to do: 0 seconds by what finished ones took"
    )


def test_a_time_is_told_by_the_largest_unit_that_gives_one():
    assert [told(seconds) for seconds in (0.4, 59, 60, 3599, 3600, 86399, 86400, 200_000)] == [
        "0 seconds", "59 seconds", "1.0 minutes", "60.0 minutes", "1.0 hours", "24.0 hours", "1.0 days", "2.3 days",
    ]  # fmt: skip


def test_jobs_share_the_cores_of_the_process(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert [command.threads_each(jobs) for jobs in (1, 2, 4, 6, 9)] == [6, 3, 1, 1, 1]


@pytest.mark.parametrize("other", [0, None], ids=["done", "at work"])
@pytest.mark.parametrize(
    ("status", "told"),
    [
        (2, r"a job ended with 2, as told above: finished cells are kept"),
        (
            -9,
            r"a job was killed by signal 9 \(is memory short\?\); start again, with fewer --jobs where memory is short",
        ),
        (-15, r"a job was killed by signal 15; start again"),
    ],
)
def test_a_job_that_a_signal_ends_has_told_nothing_above(status, told, other, monkeypatch):
    nothing, left = (lambda: None), [status, other]

    def process(**_):
        code = left.pop()
        return types.SimpleNamespace(
            exitcode=code, is_alive=lambda: code is None, start=nothing, terminate=nothing, join=nothing
        )

    monkeypatch.setattr(command.multiprocessing, "get_context", lambda _: types.SimpleNamespace(Process=process))
    with pytest.raises(UserError, match=f"^{told}"):
        command.watch_jobs(types.SimpleNamespace(jobs=2), nothing)


def test_copies_among_the_test_images_are_warned_of(tmp_path, capsys):
    words = [str(make_config(tmp_path)), "--output_dir", str(tmp_path / "out"), "--dry-run"]
    command.main(words)
    assert "warning" not in capsys.readouterr().out
    table = load_features(tmp_path / "one_test.npy")
    save_features(tmp_path / "one_test.npy", table.features, np.where(np.arange(len(table)) == 4, 9, table.labels))
    command.main(words)
    assert "\nwarning: pool one: 1 classes of its test images have no image in it: 9; are" in capsys.readouterr().out
    sidecar(tmp_path / "one_test.npy", "classes").write_text(json.dumps([*"abcdefghi", "j"]))
    command.main(words)
    assert "one_test.npy names them: 0 is taken for a, the last of 10 for j; " in capsys.readouterr().out
    for part, first, step in (("train", 0, 1), ("test", 7, 1000)):  # the first test image is the pool's eighth
        path = tmp_path / f"one_{part}.npy"
        save_record(path, PoolRecord(tuple(f"{first + step * row:032x}" for row in range(len(load_features(path))))))
    command.main(words)
    said = capsys.readouterr().out
    assert "\nwarning: pool one: 1 of its " in said
    assert " test images are copies of images in it, and make every accuracy look better than it is: 0\n" in said


def test_two_pools_of_one_name_are_refused(tmp_path):
    words = [str(make_config(tmp_path)), "--output_dir", str(tmp_path / "out"), "--dry-run"]
    files = [str(tmp_path / f"one_{part}.npy") for part in ("train", "test")]
    with pytest.raises(UserError, match="--pool has a name twice, of a, b, a: give each pool its own"):
        command.main([*words, *(word for name in "aba" for word in ("--pool", name, *files))])
