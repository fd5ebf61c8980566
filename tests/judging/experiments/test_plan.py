"""Every word of a config is checked before any work, and the mistake is named with what may be meant."""

import pytest
import yaml

from data_selection.common.errors import UserError
from data_selection.common.paths import ROOT
from data_selection.judging.experiments.plan import method_of, read_plan, resolve, setting
from tests.support.experiments import make_config

BAD = [
    ({"budget": 3}, r"unknown key 'budget' \(did you mean budgets\?\)"),
    ({"pools": {"one": {"trian": "x.npy"}}}, r"pool 'one': unknown key 'trian' \(did you mean train\?\)"),
    ({"pools": {"one": {"test": "x.npy"}}}, r"pool 'one' needs train"),
    ({"pools": {"one": {"train": "x.npy", "imbalance": 1}}}, r"imbalance 1 must be a number above 1"),
    ({"pools": ["x.npy"]}, r"pools must hold lines `name: \{settings\}`, not \['x.npy'\]"),
    ({"methods": {"activft": None}}, r"'activft' is unknown \(did you mean activeft\?\); use one of random, "),
    ({"methods": {"a": {"method": "kmeans", "maxiter": 1}}}, r"method 'a': unknown key 'maxiter' \(did you mean max_"),
    ({"methods": {"activeft": {"temperature": -1}}}, r"method 'activeft': temperature -1 must be above 0"),
    ({"methods": {"activeft": {"temperature": "warm"}}}, r"method 'activeft': a value of .* is of the wrong type"),
    ({"methods": {"bilaf": {"cores": "bilaf"}}}, r"cores 'bilaf' must be one of random, "),
    ({"methods": {"bilaf": {"variant": "relased"}}}, r"variant 'relased' is none of paper, released"),
    ({"methods": {"random": None, "kmeans": {"max_iter": {"three": 5}}}}, r"max_iter is set for 'three', no pool"),
    ({"methods": {"random": {"pools": ["three"]}}}, r"pools \['three'\] must be a list of some of one"),
    ({"budgets": [0]}, r"budget 0 must be a number of images, or a share of the pool such as 0\.5%"),
    ({"budgets": ["ten"]}, r"budget 'ten' must be a number of images"),
    ({"seeds": "a"}, r"seeds 'a' must be their number, or a list"),
    ({"baseline": "randm"}, r"baseline 'randm' is none of the methods \(did you mean random\?\)"),
    ({"baseline": None}, r"baseline None is none of the methods"),
    ({"baseline": 5}, r"baseline 5 is none of the methods"),
    ({"pools": {"one": {"train": "x.npy", "test": None}}}, r"pool 'one': test None must be a feature file, or be left"),
    ({"methods": {}}, r"methods are missing: configs/README.md has an example"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), BAD, ids=[told[:30] for _, told in BAD])
def test_mistakes_are_told(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        read_plan(make_config(tmp_path, **changes))


def test_a_file_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml does not exist"):
        read_plan(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"bad\.yaml is no YAML"):
        read_plan(tmp_path / "bad.yaml")


def test_settings_may_differ_by_pool_and_budget(tmp_path):
    value = {"one 10%": 1, "one": 2, "other": 3}
    assert [setting(value, *place) for place in (("one", "10%"), ("one", 8), ("two", 8))] == [1, 2, 3]
    assert setting({"one": 2}, "two", 8) is None
    pools = {name: {"train": "x.npy"} for name in ("one", "two")}
    row = {"max_iter": {"one": 7}, "pools": ["one"]}
    plan = read_plan(make_config(tmp_path, pools=pools, methods={"kmeans": row}))
    assert method_of(plan.methods[0], "one", 8, plan.path)[1].max_iter == 7
    assert method_of(plan.methods[0], "two", 8, plan.path)[1].max_iter == 100
    assert plan.methods[0].pools == ("one",)


def test_bilaf_takes_its_cores_from_any_method(tmp_path):
    plan = read_plan(
        make_config(tmp_path, methods={"b": {"method": "bilaf", "cores": "kmeans", "variant": "released"}})
    )
    method, config = method_of(plan.methods[0], "one", 8, plan.path)
    assert method.cores == "kmeans.select_kmeans"
    assert config.opponent == "nearest"


def test_a_plan_is_what_the_file_says(tmp_path):
    plan = read_plan(make_config(tmp_path, seeds=[3, 5, 2**32 - 1]))
    written = yaml.safe_load(plan.path.read_text())
    assert [row.name for row in plan.methods] == list(written["methods"])
    assert [row.kind for row in plan.methods] == ["random", "fps", "kmeans"]
    assert plan.seeds == (3, 5, 2**32 - 1)
    assert plan.budgets == (8, "10%", 30)
    assert plan.baseline == "random"


def test_a_path_that_is_not_here_is_looked_for_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("configs/README.md") == ROOT / "configs" / "README.md"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "README.md").touch()
    assert resolve("configs/README.md").resolve() == tmp_path / "configs" / "README.md"
    assert str(resolve("gone/x.npy")) == "gone/x.npy"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/configs") == tmp_path / "configs"
