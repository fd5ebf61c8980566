"""Every subject of scripts/benchmark.py is there and answers --help."""

import mmap
import sys
import types

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.methods.table import LABEL_FREE
from scripts import benchmark
from scripts.benchmarks import activeft, bilaf, methods, rivals


@pytest.mark.parametrize("subject", benchmark.SUBJECTS)
def test_every_subject_answers_help(subject, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([subject, "--help"])
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out


def test_without_the_library_to_compare_with_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skactiveml", None)
    with pytest.raises(UserError, match="pip install scikit-activeml"):
        benchmark.main(["rivals"])


def test_the_rivals_pool_and_settings_suit_every_method_of_ours(monkeypatch):
    monkeypatch.setattr(rivals.resource, "setrlimit", lambda *_: None)  # this process goes on
    monkeypatch.setattr(rivals.torch, "set_num_threads", lambda _: None)
    for name in rivals.OURS:
        ids, seconds, _ = rivals.choose(("ours", name, 300, 10, 1, 1.0))
        assert len(set(ids) - {rivals.FIRST}) == 10
        assert seconds > 0


@pytest.mark.parametrize("words", [
    ["activeft", "--device", "cuda:99"], ["bilaf", "--device", "cuda:99"], ["bilaf", "--runs", "0"],
    ["extraction", "--rounds", "0"],
])  # fmt: skip
def test_mistakes_are_no_tracebacks(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.raises((UserError, SystemExit)) as ended:
        benchmark.main(words)
    assert words[2] in str(ended.value) or f"argument {words[1]}: " in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_rival_that_lacks_memory_costs_its_cell_alone(monkeypatch, capsys, error):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr(rivals.resource, "setrlimit", lambda *_: None)  # this process goes on
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setitem(rivals.METHODS, "fps", types.SimpleNamespace(select=lacking, config=lambda: None))
    assert rivals.choose(("ours", "fps", 300, 10, 1, 1.0))[0] == []
    monkeypatch.setitem(sys.modules, "skactiveml", sys)
    found = iter([([], 1.0, 2.0), ([3], 4.0, 5.0)])
    monkeypatch.setattr(rivals, "in_fresh_process", lambda *_: next(found))
    rivals.main(["--methods", "fps"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "5000",
        "fps",
        "-",
        "out of memory",
        "4.00",
        "5",
        "",
    ]


def test_every_method_is_timed_or_says_why_not(monkeypatch):
    monkeypatch.setattr(methods.torch, "set_num_threads", lambda _: None)
    for name in LABEL_FREE:
        seconds, _, why = methods.choose((name, 300, 10, 1, "cpu"))
        assert seconds > 0
        assert why == ""
    assert methods.choose(("kmeans", 5, 10, 1, "cpu"))[0] is None
    seconds, peak, why = methods.choose(("kmeans", 5, 10, 1, "cpu"))
    assert "10" in why
    assert methods.told(seconds, peak, why) == (why, "-")
    assert methods.told(1.25, 70.4, "") == ("1.2", "70")


def test_memory_that_was_freed_before_hides_none_of_what_a_choice_takes():
    """As that in which the pool was made."""
    freed = np.ones(60_000_000 // 8)
    del freed
    before = activeft.anew()
    with mmap.mmap(-1, 40_000_000) as taken:  # new pages: an array may be given what an earlier test has freed
        for place in range(0, len(taken), mmap.PAGESIZE):
            taken[place] = 1
        assert 30 < activeft.high_water() - before < 60


@pytest.mark.parametrize("module", [methods, rivals, bilaf])
def test_every_benchmark_of_memory_begins_anew(monkeypatch, module):
    class BegunError(Exception):
        pass

    def begun(*_):
        raise BegunError

    monkeypatch.setattr(rivals.resource, "setrlimit", lambda *_: None)  # this process goes on
    monkeypatch.setattr(methods.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(module, "anew", begun)
    flags = bilaf.build_parser().parse_args([])
    work = {
        methods: lambda: methods.choose(("random", 30, 3, 1, "cpu")),
        rivals: lambda: rivals.choose(("ours", "fps", 30, 3, 1, 1.0)),
        bilaf: lambda: bilaf.row(np.ones((9, 4), np.float32), 2, 4, "paper", False, flags),
    }
    with pytest.raises(BegunError):
        work[module]()


def test_the_methods_are_measured_on_the_device_and_told_one_by_one(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(methods, "pick_device", lambda name: f"the {name}")
    monkeypatch.setattr(methods, "in_fresh_process", lambda work, request: asked.append(request) or (1.0, 2.0, ""))
    methods.main(
        ["--methods", "random", "fps", "--rows", "30", "--budget", "3", "--threads", "1", "--device", "cuda:1"]
    )
    assert asked == [(name, 30, 3, 1, "the cuda:1") for name in ("random", "fps")]
    assert capsys.readouterr().err == "random 1.0 2\nfps 1.0 2\n"
