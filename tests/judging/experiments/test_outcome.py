"""When an experiment's outcome is written again."""

from html import escape as escape_html

import pytest

from data_selection.common.errors import UserError
from data_selection.common.files import sha256
from data_selection.judging.experiments import curves, outcome
from data_selection.judging.experiments.cells import Kind
from data_selection.judging.experiments.outcome import FILES, NOTHING, PICTURES, check_ours, write_outcome
from data_selection.judging.experiments.plan import read_plan
from data_selection.judging.experiments.tables import escape
from scripts.experiments import command, trainer
from tests.support.experiments import blobs, make_config


def test_another_config_is_told_again_though_no_number_has_changed(tmp_path):
    out = tmp_path / "out"
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    files = sorted({*FILES, "outcome.json"} - {*PICTURES})  # without a number there is nothing to draw
    assert (out / "table.md").read_text() == NOTHING
    first = {path.name: path.stat().st_ino for path in out.iterdir()}
    assert sorted(first) == files
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    assert {name: (out / name).stat().st_ino for name in files} == first
    write_outcome(read_plan(make_config(tmp_path, baseline="k-means")), [], {}, out)
    assert "baseline: k-means" in (out / "page.html").read_text()


@pytest.mark.parametrize("name", ["table.md", "page.html", "outcome.json"])
def test_files_of_other_work_are_not_replaced(name, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('["mine"]')
    words = [str(make_config(tmp_path, methods={"random": None}, budgets=[8], seeds=1)), "--output_dir", str(out)]
    with pytest.raises(UserError, match=rf"{name} is there and is no outcome of an experiment: it would be lost; name"):
        command.main([*words, "--device", "cpu"])
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_text() == '["mine"]'


def test_a_start_after_a_kill_amid_the_files_takes_them_for_its_own(tmp_path, monkeypatch):
    out, real = tmp_path / "out", outcome.atomic_write

    def killed(path):
        if path.name == "page.html":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(outcome, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    assert (out / "table.md").exists()
    monkeypatch.setattr(outcome, "atomic_write", real)
    check_ours(out)
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    assert (out / "page.html").exists()


def test_other_pools_have_a_folder_of_their_own_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curves, "draw_curves", lambda entries, baseline: {"png": b"", "svg": b""})
    config = make_config(tmp_path, methods={"random": None}, budgets=[8], seeds=1, evaluations={"knn": {}})
    command.main([config.name, "--device", "cpu"])
    before = (tmp_path / "outputs" / "grid" / "table.md").read_bytes()
    command.main([config.name, "--device", "cpu", "--pool", "my pets", "one_train.npy", "one_test.npy"])
    assert (tmp_path / "outputs" / "grid" / "table.md").read_bytes() == before
    assert "**my pets, knn" in (tmp_path / "outputs" / "grid_my_pets" / "table.md").read_text()


def test_the_page_tells_the_feature_files_that_its_numbers_are_of(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "draw_curves", lambda entries, baseline: {"png": b"", "svg": b""})
    config = make_config(tmp_path, methods={"random": None}, budgets=[8], seeds=1, evaluations={"knn": {}})
    files = {part: tmp_path / f"<{part}>.npy" for part in ("train", "test")}
    for seed, path in enumerate(files.values()):
        blobs(path, 60, seed)
    words = [str(config), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    command.main([*words, "--pool", "other", *map(str, files.values())])
    page = (tmp_path / "out" / "page.html").read_text()
    told = ", ".join(f"{path} {sha256(path)}" for path in files.values())
    assert f"<li>other: {escape_html(told)}</li>" in page
    moved = files["train"].rename(tmp_path / "moved.npy")
    command.main([*words, "--pool", "other", str(moved), str(files["test"])])  # the same numbers
    assert f"<li>other: {moved} " in (tmp_path / "out" / "page.html").read_text()


def test_signs_that_latex_prints_as_others_are_written_as_mathematics():
    assert escape("a_b < 1 % | ± > ~") == r"a\_b $<$ 1 \% $|$ $\pm$ $>$ \textasciitilde{}"


def test_a_score_that_no_run_gives_is_told_and_rows_of_other_pools_are_refused(tmp_path, capsys, monkeypatch):
    kind = Kind(("last", "graph"), False, lambda settings, *_: settings, lambda _: {"last": 50.0, "graph": None})
    monkeypatch.setattr(trainer, "TRAINER", kind)
    evaluations = {"graph": {"kind": "trainer", "score": "graph"}}
    config = make_config(tmp_path, methods={"random": None}, budgets=[8], seeds=2, evaluations=evaluations)
    words = [str(config), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    command.main(words)
    said = capsys.readouterr().out
    assert (
        "warning: 2 finished cells are in no table: graph asks for the score 'graph', which its runs do not give\n"
        in said
    )
    assert NOTHING in said
    assert not any((tmp_path / "out" / name).exists() for name in PICTURES)
    make_config(tmp_path, methods={"random": {"pools": ["one"]}}, evaluations=evaluations)
    other = ["--pool", "two", str(tmp_path / "one_train.npy"), str(tmp_path / "one_test.npy")]
    with pytest.raises(
        UserError, match=r"no method is for pool two: every one has pools: of its own; name it there, or"
    ):
        command.main([*words, *other])


def test_one_pool_asked_for_leaves_the_others_in_the_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(curves, "draw_curves", lambda entries, baseline: {"png": b"", "svg": b""})
    make_config(tmp_path)
    blobs(tmp_path / "two.npy", 40, 2)
    one, test = (str(tmp_path / f"one_{part}.npy") for part in ("train", "test"))
    pools = {"one": {"train": one, "test": test}, "two": {"train": str(tmp_path / "two.npy"), "test": test}}
    config = make_config(
        tmp_path, pools=pools, methods={"random": None}, budgets=[8], seeds=1, evaluations={"5-NN": {"kind": "knn"}}
    )

    def run(*only):
        command.main([str(config), "--output_dir", str(tmp_path / "out"), "--device", "cpu", *only])
        csv = (tmp_path / "out" / "table.csv").read_text()
        return capsys.readouterr().out, sorted({line.split(",")[0] for line in csv.splitlines()[1:]})

    run()
    whole = (tmp_path / "out" / "table.csv").read_text()
    told, held = run("--only", "two")
    assert "1 cells, 0 of them to compute" in told
    assert "**two, 5-NN" in told
    assert "**one, 5-NN" not in told
    assert (held, (tmp_path / "out" / "table.csv").read_text()) == (["one", "two"], whole)
    (tmp_path / "two.npy").unlink()
    told, held = run("--only", "one")
    assert "pool two is not in the files: feature file" in told
    assert held == ["one"]
