"""Finished cells on disk, one JSON line each, and who is computing which: safe from kills, full disks, other jobs."""

import fcntl
import json
import os
from collections.abc import Callable, Hashable
from operator import itemgetter
from pathlib import Path
from typing import Any

from data_selection.common.errors import UserError

Record = dict[str, Any]
FILE_LOCK = 0  # the byte of `claims` that guards results.jsonl; a claim locks another one


class Store:
    """A file of a folder, a JSON line for each record, of which `key` tells equal ones.

    One Store a process: POSIX locks of two in one process do not exclude each other.
    The system gives a killed process's claims free, so nothing has to be cleaned up; over NFS, too.
    """

    def __init__(
        self, folder: Path, name: str = "results.jsonl", key: Callable[[Record], Hashable] = itemgetter("digest")
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.key = folder, folder / name, key
        self.claims = os.open(folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)
        self.read_to, self.records = 0, dict[Any, Record]()

    def close(self) -> None:
        """Give every claim free."""
        os.close(self.claims)

    def known(self) -> dict[Any, Record]:
        """{key: record} of all finished cells, other processes' too; of a repeated key the last.

        A last line without its end belongs to a writer that was killed, or still writes, and is left out.
        Raises UserError for another line that is no record.
        """
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.read_to)
                text = handle.read()
        except FileNotFoundError:
            return self.records
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                self.records[self.key(record)] = record
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path} has a line that is no record: {line[:60]!r}: remove it") from None
        self.read_to += len(whole)
        return self.records

    def append(self, record: Record) -> None:
        """Add a finished cell; when this returns it is on the disk.

        Half a line that a killed writer left is removed first. Raises OSError where the disk is full; the file then
        ends as it did before.
        """
        line = json.dumps(record).encode() + b"\n"
        fcntl.lockf(self.claims, fcntl.LOCK_EX, 1, FILE_LOCK)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                end = self._mend(handle)
                try:
                    self._write(handle, line, end)
                except OSError as error:
                    os.ftruncate(handle, end)
                    raise OSError(error.errno, error.strerror, str(self.path)) from error
            finally:
                os.close(handle)
        finally:
            fcntl.lockf(self.claims, fcntl.LOCK_UN, 1, FILE_LOCK)

    def _mend(self, handle: int) -> int:
        """Cut off half a last line. Returns the file's length."""
        size = end = os.fstat(handle).st_size
        while end and os.pread(handle, 1, end - 1) != b"\n":
            block = os.pread(handle, min(end, 1 << 16), end - min(end, 1 << 16))
            end = end - len(block) + block.rfind(b"\n") + 1
        if end < size:
            os.ftruncate(handle, end)
        return end

    @staticmethod
    def _write(handle: int, line: bytes, at: int) -> None:
        while line:
            done = os.pwrite(handle, line, at)
            line, at = line[done:], at + done
        os.fsync(handle)

    def claim(self, digest: str) -> bool:
        """Whether this process may compute what a hex digest names: no other one has claimed it and lives."""
        try:
            fcntl.lockf(self.claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place(digest))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, digest: str) -> None:
        """Give a claim back."""
        fcntl.lockf(self.claims, fcntl.LOCK_UN, 1, place(digest))


def place(digest: str) -> int:
    """The byte that stands for a hex digest: one of 2^60, never FILE_LOCK."""
    return 1 + int(digest[:15], 16)
