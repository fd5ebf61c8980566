"""Named recipes and configurations: YAML files of flags, which the command line wins over. Imports nothing slow."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_selection.common.errors import UserError, meant
from data_selection.common.paths import ROOT
from data_selection.common.yaml_files import parse_yaml

FOLDER = ROOT / "configs" / "recipes"
FEW_SHOT = "few-shot"
PAPERS = ("CIFAR10", "CIFAR100", "IMNET", "INAT", "INAT19", "CUB2011")  # data sets with a paper's recipe


def recipe_names() -> list[str]:
    """The recipes that have a name, each a file of configs/recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def recipe_values(name: str) -> Mapping[str, Any]:
    """{flag as the parser stores it: value} of a recipe that has a name."""
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key.replace("-", "_"): value for key, value in values.items()}


def recipe_file(word: str, data_set: str) -> Path:
    """The file of --recipe: a name, a path, or `auto`: `paper` where a paper trains on the data set, else `few-shot`.

    Raises UserError for a word that is neither.
    """
    if word == "auto":
        word = "paper" if data_set.removesuffix("SUBSET") in PAPERS else FEW_SHOT
    named = FOLDER / f"{word}.yaml"
    if named.is_file():
        return named
    if Path(word).is_file():
        return Path(word)
    names = recipe_names()
    raise UserError(f"--recipe {word!r} is neither a file nor one of {', '.join(names)}{meant(word, names)}")


def config_tokens(
    path: Path | str, parser: argparse.ArgumentParser, flag: str = "--config", barred: Sequence[str] = ("config",)
) -> list[str]:
    """A YAML file of flags as command-line words, so that types and choices are checked as if typed.

    flag: how the errors call the file. barred: flags that such a file cannot set.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{flag} {path} cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{flag} {path} must hold lines `flag: value`")
    return flag_tokens(values, parser, f"{flag} {path}", barred)


def flag_tokens(
    values: Mapping[str, Any], parser: argparse.ArgumentParser, where: str, barred: Sequence[str] = ()
) -> list[str]:
    """Flags and their values as command-line words; None leaves a flag out. where: how the errors begin.

    Raises UserError for a flag that is unknown or barred, and for a value that it does not take.
    """
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    words = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in flags or name in barred:
            raise UserError(f"{where}: unknown key {key!r}{meant(name, flags)}")
        action, option = flags[name], flags[name].option_strings[0]
        if isinstance(value, bool) != (action.nargs == 0):
            raise UserError(f"{where}: {key} must be " + ("true or false" if action.nargs == 0 else "a value"))
        if action.nargs != 0 and value is not None and (wanted := misfit(action, value)):
            raise UserError(f"{where}: {key} must be {wanted}, not {value!r}")
        if action.nargs == 0:
            if value or isinstance(action, argparse.BooleanOptionalAction):
                words.append(option if value else f"--no-{option[2:]}")
        elif value is not None:
            words += [option, *map(str, value)] if isinstance(value, list) else [f"{option}={value}"]
    return words


def misfit(action: argparse.Action, value: Any) -> str:
    """What a flag takes, in words, where `value` of a YAML file is something else; "" where it fits."""
    values = value if isinstance(value, list) else [value]
    if isinstance(value, dict) or (isinstance(value, list) and action.nargs is None):
        return "a value"
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        return f"{action.nargs} values"
    try:
        kind: Any = action.type or str
        read = [kind(str(one)) for one in values]
    except (ValueError, argparse.ArgumentTypeError):
        name = getattr(action.type, "__name__", "value").replace("_", " ")
        return {"int": "a whole number", "float": "a number"}.get(name, name)
    return "" if action.choices is None or set(read) <= set(action.choices) else f"one of {', '.join(action.choices)}"
