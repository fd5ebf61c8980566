"""How the trainer's flags are declared: in two spellings, on and off, or refused. Imports nothing slow."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from data_selection.common.errors import UserError
from data_selection.common.parsing import Defaults
from deit.recipes import FEW_SHOT, recipe_values

Number = TypeVar("Number", int, float)


def whole_or_auto(text: str) -> int | str:
    """A whole number, or the word auto."""
    return _or_auto(text, int, "a whole number")


def number_or_auto(text: str) -> float | str:
    """A number, or the word auto."""
    return _or_auto(text, float, "a number")


def epoch_from_one(text: str) -> int:
    """The number of an epoch, counted from 1; 0, the default of ActiveFT's release, is the first one, too."""
    try:
        return int(text) or 1
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _or_auto(text: str, kind: Callable[[str], Number], words: str) -> Number | str:
    try:
        return text if text == "auto" else kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {words} nor auto") from None


class Help(Defaults, argparse.RawDescriptionHelpFormatter):
    """Defaults are told, the flags' own and those of the recipe for a few labels; the examples keep their lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told, few = super()._get_help_string(action) or "", recipe_values(FEW_SHOT).get(action.dest, action.default)
        if few == action.default:
            return told
        words = f"{FEW_SHOT}: {told_value(few)}"
        return f"{told[:-1]}; {words})" if told.endswith("(default: %(default)s)") else f"{told} ({words})"


def told_value(value: object) -> object:
    """A value of a recipe, for --help."""
    return ("off", "on")[value] if isinstance(value, bool) else value


class Refused(argparse.Action):
    """A released flag that would do nothing here: giving it is an error that says why."""

    def __init__(self, option_strings: Sequence[str], dest: str, reason: str, **settings: Any) -> None:
        self.reason = reason
        hidden = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        super().__init__(option_strings, dest, nargs="*", **settings | hidden)

    def __call__(self, _parser: object, _namespace: object, _values: object, option_string: str | None = None) -> None:
        raise UserError(f"{option_string} is not available: {self.reason}")


class Flags:
    """A group of flags. Each of several words is understood with dashes and with underscores."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self.part = parser.add_argument_group(title)

    def add(self, name: str, *aliases: str, **settings: Any) -> None:
        """Add a flag; settings as add_argument takes them."""
        spellings = dict.fromkeys((name, f"--{name[2:].replace('-', '_')}", f"--{name[2:].replace('_', '-')}"))
        self.part.add_argument(*spellings, *aliases, **settings)

    def switch(self, name: str, default: bool, help: str) -> None:
        """Add a flag that is on or off, as --name and --no-name."""
        self.add(name, action=argparse.BooleanOptionalAction, default=default, help=help)
