"""Read an experiment's config and check every word of it. Imports nothing slow: mistakes are told at once."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_selection.common.errors import UserError, meant
from data_selection.common.paths import ROOT
from data_selection.common.yaml_files import parse_yaml
from data_selection.methods.configs import BILAF_PRESETS, Config, kind_of
from data_selection.methods.table import LABEL_FREE, METHODS, Method

TOP = ("pools", "methods", "budgets", "seeds", "evaluations", "baseline", "published")
POOL = ("train", "test", "imbalance", "budgets", "trainer")
OTHER = "other"  # of a setting by pools: those that are not named
CORES = "cores_"  # a setting of the method that chooses another one's cores begins so
KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


@dataclass(frozen=True)
class PoolSpec:
    """Feature files of a pool and its test images; imbalance: of a long-tailed cut; trainer: flags of its images."""

    name: str
    train: Path
    test: Path | None = None
    imbalance: float | None = None
    budgets: tuple[int | str, ...] = ()
    trainer: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method or an evaluation of the config, as written: the settings may differ by pool."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    pools: tuple[str, ...] | None = None  # None: all


@dataclass(frozen=True)
class Plan:
    """A config. baseline: the method that the others are compared with; published: numbers of a paper, by row."""

    path: Path
    pools: tuple[PoolSpec, ...]
    methods: tuple[Row, ...]
    budgets: tuple[int | str, ...]
    seeds: tuple[int, ...]
    evaluations: tuple[Row, ...]
    baseline: str
    published: Mapping[str, Any]


def read_plan(path: Path | str) -> Plan:
    """The Plan of a YAML file. Raises UserError where it cannot be read, or a key or value of it is not understood."""
    path = Path(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a config, such as configs/grid_frozen.yaml") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())})") from None
    known(content, TOP, f"{path}")
    for name in ("pools", "methods", "budgets", "evaluations"):
        if not content.get(name):
            raise UserError(f"{path}: {name} are missing: configs/README.md has an example")
    pools = tuple(_pool(name, spec, path) for name, spec in _mapping(content, "pools", path).items())
    budgets = _budgets(content["budgets"], path)
    places = {pool.name: [str(budget) for budget in pool.budgets or budgets] for pool in pools}
    methods = tuple(
        _row(name, spec, "method", LABEL_FREE, places, path)
        for name, spec in _mapping(content, "methods", path).items()
    )
    evaluations = tuple(
        _row(name, spec, "kind", None, places, path) for name, spec in _mapping(content, "evaluations", path).items()
    )
    baseline = content.get("baseline", "random")
    if baseline not in [row.name for row in methods] and "baseline" in content:
        told = meant(str(baseline), content["methods"])
        raise UserError(f"{path}: baseline {baseline!r} is none of the methods{told}")
    plan = Plan(
        path, pools, methods, budgets, _seeds(content.get("seeds", 5), path),
        evaluations, baseline, content.get("published") or {},
    )  # fmt: skip
    for row in methods:  # a mistake in any pool's settings ends the command here
        for pool in pools:
            for budget in pool.budgets or plan.budgets:
                method_of(row, pool.name, budget, path)
    return plan


def known(values: Any, allowed: Iterable[str], where: str) -> None:
    """Raise UserError where `values` is no mapping, or a key of it is none of the allowed ones."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold lines `key: value`, with any of {', '.join(allowed)}")
    for key in values:
        if key not in allowed:
            raise UserError(
                f"{where}: unknown key {key!r}{meant(str(key), allowed)}; allowed: {', '.join(sorted(allowed))}"
            )


def resolve(word: str) -> Path:
    """A path of a config: from where the user stands; one that is not there, from the repository."""
    path = Path(word).expanduser()
    return path if path.exists() or path.is_absolute() else ROOT / path if (ROOT / path).exists() else path


def setting(value: Any, pool: str, budget: int | str) -> Any:
    """A setting's value for a pool and budget: itself, or of a mapping the entry `POOL BUDGET`, `POOL` or `other`.

    None where a mapping has none of them: the default holds.
    """
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in (f"{pool} {budget}", pool, OTHER) if key in value), None)


def settings_of(row: Row, pool: str, budget: int | str) -> dict[str, Any]:
    """A row's settings for a pool and budget, without those that keep their default there."""
    found = {name: setting(value, pool, budget) for name, value in row.settings.items()}
    return {name: value for name, value in found.items() if value is not None}


def method_of(row: Row, pool: str, budget: int | str, path: Path) -> tuple[Method, Config]:
    """A row's method and its config for a pool and budget. Raises UserError where a setting is not understood.

    Besides the config's fields, `variant` is of bilaf's presets, `cores` the method that chooses a method's cores, and
    `cores_FIELD` a field of that method's config.
    """
    method, where = METHODS[row.kind], f"{path}: method {row.name!r}"
    given = settings_of(row, pool, budget)
    config: Config = method.config()
    for_cores: dict[str, Any] = {}
    if method.cores:
        usable = [name for name, other in LABEL_FREE.items() if not other.cores]
        default = next(name for name in usable if METHODS[name].home == method.cores)
        chooser = _one_of(given.pop("cores", default), usable, f"{where}: cores")
        for_cores = {name: given.pop(name) for name in [*given] if name.startswith(CORES)}
        own = METHODS[chooser].config()
        known(for_cores, [CORES + field.name for field in dataclasses.fields(own)], f"{where}, cores by {chooser}")
        method = dataclasses.replace(method, cores=METHODS[chooser].home)
        if for_cores:
            method = dataclasses.replace(method, cores_config=_changed(own, for_cores, where, CORES))
    if row.kind == "bilaf" and "variant" in given:
        config = BILAF_PRESETS[_one_of(given.pop("variant"), BILAF_PRESETS, f"{where}: variant")]
    fields = [field.name for field in dataclasses.fields(config)]
    extra = ["cores"] * bool(method.cores) + ["variant"] * (row.kind == "bilaf")
    known(given, ["method", "pools", *fields, *extra], where)
    return method, _changed(config, given, where)


def _one_of(value: Any, words: Iterable[str], where: str) -> str:
    words = list(words)
    if not isinstance(value, str) or value not in words:
        raise UserError(f"{where} {value!r} must be one of {', '.join(words)}{meant(str(value), words)}")
    return value


def _changed(config: Config, values: Mapping[str, Any], where: str, prefix: str = "") -> Config:
    """A config with some values of YAML, each of its field's type; their names begin with the prefix."""
    kinds = {prefix + field.name: kind_of(field) for field in dataclasses.fields(config)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        kind = kinds[name]
        if kind is float and isinstance(value, str):  # YAML takes 1e-3 for a word
            with contextlib.suppress(ValueError):
                value = float(value)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{where}: {name} must be {KINDS[kind]}, not {value!r}")
        given[name.removeprefix(prefix)] = value
    try:
        return dataclasses.replace(config, **given)
    except UserError as error:
        raise UserError(f"{where}: {prefix}{error}") from None


def _mapping(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = content[name]
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: {name} must hold lines `name: {{settings}}`, not {value!r}")
    return value


def _pool(name: str, spec: Any, path: Path) -> PoolSpec:
    where = f"{path}: pool {name!r}"
    known(spec, POOL, where)
    if not isinstance(spec.get("train"), str):
        raise UserError(f"{where} needs train: the feature file to choose from")
    if not isinstance(spec.get("test", ""), str):
        raise UserError(f"{where}: test {spec['test']!r} must be a feature file, or be left out")
    imbalance = spec.get("imbalance")
    if imbalance is not None and not (isinstance(imbalance, int | float) and imbalance > 1):
        raise UserError(f"{where}: imbalance {imbalance!r} must be a number above 1, largest class by smallest")
    trainer = spec.get("trainer") or {}
    if not isinstance(trainer, dict):
        raise UserError(f"{where}: trainer must hold lines `flag: value`, not {trainer!r}")
    return PoolSpec(
        name, resolve(spec["train"]), resolve(spec["test"]) if "test" in spec else None, imbalance,
        _budgets(spec["budgets"], path) if "budgets" in spec else (), trainer,
    )  # fmt: skip


def _row(
    name: str, spec: Any, key: str, table: Iterable[str] | None, pools: Mapping[str, Sequence[str]], path: Path
) -> Row:
    """A method's or evaluation's Row; its kind is the value of `key`, or without one its name. pools: their budgets."""
    spec = {} if spec is None else spec
    where = f"{path}: {key} {name!r}"
    if not isinstance(spec, dict):
        raise UserError(f"{where} must hold lines `setting: value`, not {spec!r}")
    kind = str(spec.get(key, name))
    if table is not None and kind not in table:
        raise UserError(f"{where}: {kind!r} is unknown{meant(kind, table)}; use one of {', '.join(table)}")
    for setting_name, value in spec.items():
        for chosen in value if isinstance(value, dict) else ():
            places = [*pools, *(f"{pool} {budget}" for pool, budgets in pools.items() for budget in budgets)]
            if chosen not in (OTHER, *places):
                raise UserError(
                    f"{where}: {setting_name} is set for {chosen!r}, no pool and no budget of one, such as "
                    f"{places[-1]!r}{meant(str(chosen), places)}"
                )
    wanted = spec.get("pools")
    if wanted is not None and not (isinstance(wanted, list) and all(one in [*pools] for one in wanted)):
        raise UserError(f"{where}: pools {wanted!r} must be a list of some of {', '.join(pools)}")
    settings = {word: value for word, value in spec.items() if word not in (key, "pools")}
    return Row(name, kind, settings, None if wanted is None else tuple(wanted))


def _budgets(value: Any, path: Path) -> tuple[int | str, ...]:
    values = value if isinstance(value, list) else [value]
    for one in values:
        whole = isinstance(one, int) and not isinstance(one, bool) and one > 0
        if not whole and not (isinstance(one, str) and one.endswith("%")):
            raise UserError(f"{path}: budget {one!r} must be a number of images, or a share of the pool such as 0.5%")
    return tuple(values)


def _seeds(value: Any, path: Path) -> tuple[int, ...]:
    values = list(range(value)) if isinstance(value, int) else value
    if not isinstance(values, list) or not values or not all(type(one) is int and 0 <= one < 2**32 for one in values):
        raise UserError(f"{path}: seeds {value!r} must be their number, or a list of whole numbers from 0")
    return tuple(values)
