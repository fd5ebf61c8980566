"""Write a file so that it is whole or absent, by one process at a time; hash one."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from data_selection.common.errors import UserError
from data_selection.common.system import lock


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`, rename it to `path` when the block ends, remove it when the block fails.

    The folder is created. Text is UTF-8. Raises OSError, which names the path, where it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    except OSError as error:
        raise named(error, path) from None
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~current_umask())  # mkstemp makes 0600, which colleagues could not read
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk: the system names no file
            raise named(error, path) from error
        raise


def named(error: OSError, path: Path) -> OSError:
    """The same error of a file that the user knows, in place of a temporary one or none."""
    return OSError(error.errno or errno.EIO, error.strerror or str(error), str(path))


@contextlib.contextmanager
def one_at_a_time(path: Path | str, say: Callable[[str], object]) -> Iterator[None]:
    """Keep other processes that ask for the same path out of the block; waits for one that is in it, and says so.

    What was read before it may have changed. X.lock beside the file is there meanwhile.
    """
    guard = Path(path).with_suffix(".lock")
    while True:
        with guard.open("a") as handle:
            try:
                lock(handle)
            except BlockingIOError:
                say(f"another process is making {path}: waiting for it")
                lock(handle, wait=True)
            try:
                if not os.path.samestat(os.fstat(handle.fileno()), guard.stat()):
                    continue  # another process has removed this one, and a third may hold the next
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows removes no open file
                    guard.unlink()
            return


def current_umask() -> int:
    """The process's file mode mask; reading it means setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    return file_digest(path, "sha256")


def file_digest(path: Path | str, algorithm: str) -> str:
    """Hex digest of a file's bytes by any algorithm of hashlib, read in blocks."""
    digest = hashlib.new(algorithm)
    with Path(path).open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path | str) -> Path:
    """Make the folder of an output file and check, before the work, that the file can be written. Returns the path.

    Raises OSError (PermissionError, NotADirectoryError, ...) where it can't; a folder of that name counts too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder, not a file to write", str(path))
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise named(error, path) from None


def check_own_table(path: Path | str, title: str) -> None:
    """Raise UserError where a file is there whose first line is not `title`: it would be lost. An empty one may go."""
    with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as handle:
        first = handle.readline(4096).strip()
        if first not in (b"", title.encode()):
            raise UserError(f"{path} is there and is no table of {title}: it would be lost; name another file")


def plain(text: str) -> str:
    """A text as part of a file's name: what is no letter, digit, - or _ becomes _."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in text)


def told_size(count: float) -> str:
    """A number of bytes in words, three digits at least: 54.0 kB, 1.23 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f} {unit}"
    return f"{count:.0f} bytes"


def read_json(path: Path | str) -> Any:
    """Parse a JSON file. Raises UserError where it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error})") from None
