"""When an experiment's outcome is written again."""

from data_selection.judging.experiments.outcome import FILES, write_outcome
from data_selection.judging.experiments.plan import read_plan
from tests.support.experiments import make_config


def test_another_config_is_told_again_though_no_number_has_changed(tmp_path):
    out = tmp_path / "out"
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    first = {name: (out / name).stat().st_ino for name in FILES}
    write_outcome(read_plan(make_config(tmp_path)), [], {}, out)
    assert {name: (out / name).stat().st_ino for name in FILES} == first
    write_outcome(read_plan(make_config(tmp_path, baseline="k-means")), [], {}, out)
    assert "baseline: k-means" in (out / "page.html").read_text()
