"""What operating systems do in their own ways: cores, locks on files, writing at a place. Imports nothing slow."""

import contextlib
import importlib
import os
import time
from typing import IO, Any


def module(name: str) -> Any:
    """A module of the standard library that some systems lack, None there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = module("fcntl"), module("msvcrt")
FAR = 1 << 30  # the byte that Windows locks: nobody could read a locked one, and files may be shorter
RETRY = 0.1  # seconds
KILLED = 9  # the signal of a system that is short of memory; Windows has no name for it


def cores() -> int:
    """CPU cores for each process of this machine: those that it may run on, where the system tells, else all."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def ended(status: int) -> str:
    """How a process ended, in words, by its exit status: a negative one is the signal that killed it without a word."""
    short = " (is memory short?)" if status == -KILLED else ""
    return f"ended with {status}" if status >= 0 else f"was killed by signal {-status}{short}"


def lock(file: IO[Any] | int, *, wait: bool = False, record: bool = False) -> None:
    """Lock an open file (or its descriptor) for this process; the lock ends when the file is closed, or the process.

    wait: for whoever has it; without, BlockingIOError is raised then. record: a POSIX record lock, which child
    processes do not inherit, and which network disks know. A system that knows no locks does without.
    """
    if fcntl is not None:
        take = fcntl.lockf if record else fcntl.flock
        take(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    elif msvcrt is not None:
        descriptor = file if isinstance(file, int) else file.fileno()
        while not locked_byte(descriptor):
            if not wait:
                raise BlockingIOError(11, "another process has the lock")
            time.sleep(RETRY)


def locked_byte(descriptor: int) -> bool:
    """Whether Windows gives the lock of a file."""
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, FAR, os.SEEK_SET)
        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            return True
        return False
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """os.open for bytes: Windows would change ends of lines."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Write bytes at a place of a file. Returns how many were written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)
