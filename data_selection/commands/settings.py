"""Flags made from the fields of the methods' configs, for every selection command. Imports nothing slow."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_selection.common.errors import UserError
from data_selection.methods.configs import SPEED, AnyConfig, Config, kind_of


def texts(kind: type[Config]) -> dict[str, str]:
    """What the docstring of a config says of each field: `a: text. b, c: text`, to the end of the paragraph.

    Fields that its own docstring leaves out are looked for in that of the class that it extends.
    """
    names = "|".join(field.name for field in dataclasses.fields(kind))
    found: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(base.__doc__ or "")):
            parts = re.split(rf"(?:^|(?<=\s))((?:{names})(?:, (?:{names}))*):\s", paragraph)
            for several, text in zip(parts[1::2], parts[2::2], strict=True):
                found |= dict.fromkeys(several.split(", "), " ".join(text.split()).rstrip("."))
    return found


def add_settings(
    parser: argparse._ActionsContainer,
    configs: Mapping[str, Config],
    *,
    flags: Mapping[str, Sequence[str]] = {},
    choices: Mapping[str, Sequence[str]] = {},
    without: Collection[str] = (),
) -> None:
    """A flag for every field of some configs, except those in `without`; one that is not typed leaves no attribute.

    configs: {the word for it in the help: a config with the defaults to be told}. flags: {field: its words}, where
    they are not --FIELD. choices: {field: allowed values}. The attribute is called as the field is.
    """
    fields: dict[str, dict[str, tuple[str, Any]]] = {}  # field -> {word: (text, default)}
    kinds: dict[str, type] = {}
    for word, config in configs.items():
        said = texts(type(config))
        for field in dataclasses.fields(config):
            fields.setdefault(field.name, {})[word] = (said[field.name], getattr(config, field.name))
            if kinds.setdefault(field.name, kind_of(field)) is not kind_of(field):
                raise TypeError(f"{word}: {field.name} is of another type than in other methods")
    for name, uses in fields.items():
        if name not in without:
            kind: dict[str, Any] = {"type": kinds[name], "choices": choices.get(name)}
            if kinds[name] is bool:
                kind = {"action": argparse.BooleanOptionalAction}
            parser.add_argument(
                *flags.get(name, (f"--{name}",)),
                dest=name,
                default=argparse.SUPPRESS,
                help=help_of(uses, configs),
                **kind,
            )


def help_of(uses: Mapping[str, tuple[str, Any]], words: Collection[str]) -> str:
    """The help of a flag: {word: (text, default)}, equal texts told once; after their words where not all have it."""
    said = []
    for text in dict.fromkeys(text for text, _ in uses.values()):
        defaults = {word: default for word, (other, default) in uses.items() if other == text}
        several = len(set(map(repr, defaults.values()))) > 1
        each = ", ".join(f"{word} {default}" for word, default in defaults.items())
        usual = each if several else next(iter(defaults.values()))
        front = "" if len(defaults) == len(words) else f"{', '.join(defaults)}: "
        said.append(f"{front}{text} (default: {usual})")
    return "; ".join(said).replace("%", "%%")


def given(args: argparse.Namespace, configs: Collection[Config]) -> dict[str, Any]:
    """{field: value} of the flags that add_settings made and the user typed, in the order of the fields."""
    names = dict.fromkeys(field.name for config in configs for field in dataclasses.fields(config))
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def replaced(
    config: AnyConfig,
    method: str,
    values: Mapping[str, Any],
    others: Mapping[str, Config] = {},
    flags: Mapping[str, Sequence[str]] = {},
) -> AnyConfig:
    """The method's config with the typed values put in. Raises UserError for a value that it has no field for.

    others: {method: config}, to tell what has one. flags: as for add_settings.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    for name in values:
        if name not in fields:
            homes = [
                other for other, some in others.items() if name in {field.name for field in dataclasses.fields(some)}
            ]
            word = flags.get(name, (f"--{name}",))[0]
            raise UserError(f"{word} is for {', '.join(homes)}; method {method} has no such setting: drop it")
    return dataclasses.replace(config, **values)


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a default file name tells of typed values: those that can change the list, yes or no for a switch."""
    words = {True: "yes", False: "no"}
    return {
        name: words[value] if isinstance(value, bool) else value for name, value in values.items() if name not in SPEED
    }
