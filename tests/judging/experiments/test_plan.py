"""Every word of a config is checked before any work, and the mistake is named with what may be meant."""

import pytest
import yaml

from data_selection.common.errors import UserError
from data_selection.common.paths import ROOT
from data_selection.judging.experiments.plan import method_of, read_plan, resolve, setting
from data_selection.methods.configs import ActiveFTConfig
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
    ({"methods": {"activeft": {"temperature": "warm"}}}, r"'activeft': temperature must be a number, not 'warm'"),
    ({"methods": {"activeft": {"max_iter": 10.5}}}, r"'activeft': max_iter must be a whole number, not 10\.5"),
    ({"methods": {"activeft": {"max_iter": True}}}, r"'activeft': max_iter must be a whole number, not True"),
    ({"methods": {"bilaf": {"normalised": "no"}}}, r"'bilaf': normalised must be true or false, not 'no'"),
    ({"methods": {"activeft": {"init": 5}}}, r"'activeft': init must be a word, not 5"),
    ({"methods": {"bilaf": {"cores_max_iter": "x"}}}, r"'bilaf': cores_max_iter must be a whole number, not 'x'"),
    ({"methods": {"bilaf": {"cores_lr": -1.0}}}, r"'bilaf': cores_lr -1\.0 must be above 0"),
    ({"methods": {"bilaf": {"cores_maxiter": 5}}}, r"cores by activeft: unknown key 'cores_maxiter' \(did you mean co"),
    ({"methods": {"kmeans": {"cores_max_iter": 5}}}, r"method 'kmeans': unknown key 'cores_max_iter'"),
    ({"methods": {"bilaf": {"cores": ["random"]}}}, r"cores \['random'\] must be one of random, "),
    ({"methods": {"bilaf": {"variant": ["paper"]}}}, r"variant \['paper'\] must be one of paper, released"),
    ({"methods": {"random": {"pools": [["one"]]}}}, r"pools \[\['one'\]\] must be a list of some of one"),
    ({"methods": {"kmeans": {"max_iter": {"one 9": 5}}}}, r"set for 'one 9', no pool and no budget of one, such as 'o"),
    ({"methods": {"bilaf": {"cores": "bilaf"}}}, r"cores 'bilaf' must be one of random, "),
    ({"methods": {"bilaf": {"variant": "relased"}}}, r"variant 'relased' must be one of paper, .*mean released"),
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


def test_a_name_that_stands_twice_is_refused_instead_of_forgotten(tmp_path):
    path = make_config(tmp_path)
    path.write_text(path.read_text().replace("  fps:", "  random:", 1))
    with pytest.raises(UserError, match=r"grid\.yaml is no YAML \(the key 'random' stands there twice in .* line \d+"):
        read_plan(path)


def test_numbers_as_yaml_gives_them_are_numbers(tmp_path):
    """It takes 1e-3 for a word, and 1 for a whole number."""
    settings = {"lr": "1e-3", "temperature": 1, "batch_size": {"one 8": 5}, "max_iter": {"one 8": 3, "other": 4}}
    plan = read_plan(make_config(tmp_path, methods={"activeft": settings}))
    found = method_of(plan.methods[0], "one", 8, plan.path)[1]
    assert (found.lr, found.temperature, found.batch_size) == (0.001, 1, 5)
    other = method_of(plan.methods[0], "one", "10%", plan.path)[1]
    assert (found.max_iter, other.max_iter, other.batch_size) == (3, 4, None)


def test_a_setting_names_the_budgets_of_its_own_pool(tmp_path):
    pools = {"one": {"train": "x.npy", "budgets": [5, "2%"]}, "two": {"train": "x.npy"}}
    for key, known in (("one 5", True), ("one 2%", True), ("one 8", False), ("two 8", True), ("two 5", False)):
        path = make_config(tmp_path, pools=pools, methods={"kmeans": {"max_iter": {key: 3}}})
        if known:
            read_plan(path)
        else:
            with pytest.raises(UserError, match=f"max_iter is set for '{key}', no pool and no budget of one"):
                read_plan(path)


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
    assert method.cores_config is None
    cores = {"cores_max_iter": 7, "cores_batch_size": {"two": 5}}
    pools = {name: {"train": "x.npy"} for name in ("one", "two")}
    plan = read_plan(make_config(tmp_path, pools=pools, methods={"bilaf": cores}))
    for pool, size in (("one", None), ("two", 5)):
        found = method_of(plan.methods[0], pool, 8, plan.path)[0]
        assert found.cores == "activeft.select_activeft"
        assert found.cores_config == ActiveFTConfig(max_iter=7, batch_size=size)
        assert found.select.keywords["cores"].keywords == {"config": found.cores_config}


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
