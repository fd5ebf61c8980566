"""A user's mistake ends in one clear line and exit status 2; everything else keeps its traceback."""

import difflib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence

try:
    import resource
except ImportError:  # Windows, which has another limit
    resource = None  # type: ignore[assignment]

CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # for a terminal: torch's messages are bold in places


class UserError(ValueError):
    """A mistake the user can mend. Its text names the value, what is allowed and the next step."""

    def __init__(self, text: str) -> None:
        super().__init__(CODES.sub("", text))


def meant(word: str, words: Iterable[str]) -> str:
    """The known word that is closest to one that is not known, as part of an error; "" where none is close."""
    close = difflib.get_close_matches(word, list(words), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def no_more_files() -> str:
    """What to do where a process may open no further file, for a message: batches on their way from others count."""
    limit = f", {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}," if resource else ""
    return (
        f"too many open files: the limit of one process{limit} is reached; raise it (ulimit -n 4096), or load images "
        "with fewer --num_workers"
    )


def run(main: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> int:
    """Call main(argv) and return the exit status: 0, 2 for a user's mistake (one line on stderr), 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":  # a file name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(argv)
        sys.stdout.flush()
    except UserError as error:
        return _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # `... | head`: nobody reads on, and Python's own flush at exit would complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path that is missing, read-only, too long, or a full disk
        if error.errno == errno.EMFILE:
            return _say(f"error: {no_more_files()}", 2)
        return _say(f"error: {error.strerror}: {error.filename}" if error.filename else f"error: {error}", 2)
    return 0


def _say(line: str, status: int) -> int:
    sys.stderr.write(CODES.sub("", line) + "\n")
    return status
