"""Every field of every method's config is a flag that reaches the method, with a text, told by the file name."""

import dataclasses
import importlib
import json

import pytest

from data_selection.commands import any_method
from data_selection.commands.settings import add_settings, kind_of, texts, told
from data_selection.common.errors import UserError
from data_selection.common.parsing import Parser
from data_selection.methods.configs import BILAF_PRESETS, ActiveFTConfig, BiLAFConfig, KMeansConfig
from data_selection.methods.configs_clusters import TypiClustConfig
from data_selection.methods.table import LABEL_FREE, METHODS
from tests.support.selection_commands import Command, make_table, words

FIELDS = [(name, field.name) for name in LABEL_FREE for field in dataclasses.fields(METHODS[name].config)]
WORDS = {  # of fields whose values are words: one that is not the default
    "distance": "cosine", "init": "fps", "scheduler": "cosine", "objective": "paper", "neighbours": "position",
    "ring_start": "nearest", "ring_end": "whole", "rounding": "kept", "opponent": "nearest", "intra": "class",
    "removal": "class", "budget_rule": "smallest",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("features"))


@pytest.fixture
def pick(table, tmp_path):
    return Command(any_method.main_select, {"features": table[0], "budget": 10, "device": "cpu"}, tmp_path)


class StoppedError(Exception):
    """Carries what a method is asked."""


def other_value(method, name):
    """A value of a field that is not the default, and is allowed."""
    (field,) = [field for field in dataclasses.fields(METHODS[method].config) if field.name == name]
    if kind_of(field) is bool:
        return not field.default
    if kind_of(field) is str:
        return WORDS[name]
    return {int: 2, float: 0.5}[kind_of(field)] if name != "penalty" else 1.5


@pytest.mark.parametrize(("method", "name"), FIELDS, ids="-".join)
def test_every_field_is_a_flag(pick, method, name, monkeypatch):
    module, _, function = METHODS[method].home.rpartition(".")

    def stop(*_, config, **__):
        raise StoppedError(config)

    monkeypatch.setattr(importlib.import_module(f"data_selection.methods.{module}"), function, stop)
    value = other_value(method, name)
    flag = f"no-{name}" if value is False else name
    with pytest.raises(StoppedError) as reached:
        pick(method=method, **{flag: True if isinstance(value, bool) else value})
    assert reached.value.args == (dataclasses.replace(METHODS[method].config(), **{name: value}),)


@pytest.mark.parametrize("method", METHODS)
def test_every_field_has_a_text(method):
    kind = METHODS[method].config
    said = texts(kind)
    assert set(said) == {field.name for field in dataclasses.fields(kind)}
    assert all(len(text) > 5 for text in said.values())


def test_texts_are_those_of_the_docstrings():
    said = texts(TypiClustConfig)
    assert said["nearest"] == "images whose mean distance says how typical an image is"
    assert said["max_iter"] == texts(KMeansConfig)["max_iter"] == "Lloyd or minibatch epochs"
    assert texts(BiLAFConfig)["penalty"] == "of an opponent met again (delta)"  # the paragraph ends there
    assert texts(ActiveFTConfig)["lr"] == "Adam's learning rate"


def test_help_tells_equal_texts_once_and_whose_a_flag_is():
    @dataclasses.dataclass(frozen=True)
    class First:
        """A.

        size: how large, in %. alone: a text.
        """

        size: int = 1
        alone: float | None = None

    @dataclasses.dataclass(frozen=True)
    class Second:
        """size: how large, in %."""

        size: int = 2

    parser = Parser()
    add_settings(parser, {"first": First(), "second": Second()}, flags={"alone": ("--only",)})
    told = {action.dest: action.help for action in parser._actions}
    assert told["size"] == "how large, in %% (default: first 1, second 2)"
    assert told["alone"] == "first: a text (default: None)"
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(["--only", "2", "--size", "3"])) == {"alone": 2.0, "size": 3}
    with pytest.raises(TypeError, match="third: size is of another type"):
        add_settings(Parser(), {"first": First(), "third": dataclasses.make_dataclass(
            "Third", [("size", str, "x")], namespace={"__doc__": "size: a word."})()})  # fmt: skip


def test_a_setting_of_another_method_is_refused(pick):
    with pytest.raises(UserError, match=r"--max_iter is for kmeans, .*activeft; method random has no such setting"):
        pick(method="random", max_iter=3)
    with pytest.raises(UserError, match="distance 'near' is unknown: use one of euclidean"):
        pick(method="fps", distance="near")


def test_the_file_name_tells_what_was_set(pick, tmp_path):
    flags = {"output_dir": tmp_path, "method": "bilaf", "cores": 4, "variant": "released", "nested": True}
    pick.main(words(pick.base | flags | {"max_memory": 0.5}))
    (made,) = [path for path in tmp_path.glob("*.json") if "provenance" not in path.name]
    assert made.name == "POOL_train_bilaf_sampleNum_10_variant_released_cores_4_nested_yes.json"
    settings = json.loads(made.with_name(f"{made.stem}.provenance.json").read_text())["config"]
    assert settings == dataclasses.asdict(
        dataclasses.replace(BILAF_PRESETS["released"], core_number=4, nested=True, max_memory=0.5)
    )
    assert told({"a": False, "slice": 3}) == {"a": "no"}


@pytest.mark.parametrize("method", ["typiclust", "probcover", "herding", "zcore", "fps"])
def test_lists_with_an_order_are_written_in_it(pick, table, method):
    config = {"zcore": {"draws": 300}}.get(method, {})
    kind = METHODS[method]
    wanted = kind.select(table[1], 10, config=kind.config(**config)).tolist()
    assert wanted != sorted(wanted)
    assert pick(method=method, **config) == wanted
