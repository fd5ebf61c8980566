"""When an experiment's outcome is written again."""

from data_selection.judging.experiments import curves
from data_selection.judging.experiments.outcome import FILES, write_outcome
from data_selection.judging.experiments.plan import read_plan
from scripts.experiments import command
from tests.support.experiments import blobs, make_config


def test_another_config_is_told_again_though_no_number_has_changed(tmp_path):
    out = tmp_path / "out"
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    first = {name: (out / name).stat().st_ino for name in FILES}
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    assert {name: (out / name).stat().st_ino for name in FILES} == first
    write_outcome(read_plan(make_config(tmp_path, baseline="k-means")), [], {}, out)
    assert "baseline: k-means" in (out / "page.html").read_text()


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
