"""The parser of all commands: two lines for a wrong flag, the nearest right one named, `~` understood everywhere."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

BACKGROUND = "what transparent images are laid over: white, black, #rrggbb or another name of CSS"


def colour(text: str) -> str:
    """A colour as #rrggbb."""
    from PIL import ImageColor  # slow, and most commands have no use for it

    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no colour: use white, black, or #rrggbb") from None
    if alpha:
        raise argparse.ArgumentTypeError(f"{text!r} is not opaque: use white, black, or #rrggbb")
    return f"#{red:02x}{green:02x}{blue:02x}"


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults are told, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that refuses abbreviated flags: a typo must not pass for a flag."""

    words: Sequence[str] = ()  # that are parsed

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            usage="%(prog)s [flags]",
            formatter_class=settings.pop("formatter_class", Defaults),
            allow_abbrev=False, **settings,
        )  # fmt: skip

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse; a home folder's `~` is expanded where the shell leaves it, as in --weights=~/w.pth."""
        self.words = [expanded(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self.words, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and two lines, the second with what is wrong and the flag that may be meant."""
        lacks = message.startswith(("the following arguments are required", "unrecognized arguments"))
        flags = [word.split("=")[0] for word in self.words if lacks and word.startswith("--")]
        hints = [self.nearest(flag) for flag in flags if flag not in self._option_string_actions]
        hint = "".join(f"; did you mean {close}?" for close in hints if close)
        self.exit(2, f"usage: {self.prog} [flags], which --help tells\n{self.prog}: error: {message}{hint}\n")

    def nearest(self, word: str) -> str:
        """The one or two flags that are closest to a word, "" where none is."""
        return " or ".join(difflib.get_close_matches(word.split("=")[0], self._option_string_actions, 2, 0.75))


def expanded(word: str) -> str:
    """A command-line word with `~` in front, or behind the = of a flag, as the home folder."""
    flag, equals, value = word.partition("=")
    if equals and flag.startswith("--") and value.startswith("~"):
        return f"{flag}={os.path.expanduser(value)}"  # noqa: PTH111 - keeps `./`, a final slash, and what is no path
    return os.path.expanduser(word) if word.startswith("~") else word  # noqa: PTH111
