"""Write a feature file from any number of processes: it goes on after a kill, and appears only when whole."""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from data_selection.common.feature_table import sidecar, write_sidecar
from data_selection.common.files import atomic_write, read_json, told_size
from data_selection.common.listed_names import quoted
from data_selection.common.system import lock, open_file, write_at
from data_selection.images.record import PoolRecord, save_record

MISSING, WRITTEN, SKIPPED, REUSED = 0, 1, 2, 3  # what the file `done` says of each row
SAVE_SECONDS = 10.0  # at most this much work is lost with the machine; a killed process loses less
COPY_ROWS = 4096
READY = "ready"  # within X.partial: the files of a finished extraction, X.npy the last of them
WORK = {"request.json", "table.npy", "table.images.json", "done", "lock", "stop", "kept.npy", READY}  # within it, all
LEFT_OUT = ".skipped.txt"
BESIDE = ("provenance", "classes", "names", "images")  # X.{kind}.json


def runs(rows: np.ndarray, longest: int | None = None) -> Iterator[np.ndarray]:
    """Ascending rows (n,) in pieces without a gap, of at most `longest`."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        step = max(1, longest or len(run))
        yield from (run[at : at + step] for at in range(0, len(run), step))


def put_in_place(path: Path) -> None:
    """Put the files of a finished extraction beside each other, those of an earlier one away.

    X.npy goes first and comes last, so that no table is ever beside what tells of another. After a kill it is repeated.
    """
    ready = path.with_suffix(".partial") / READY
    path.unlink(missing_ok=True)
    for name in (*(sidecar(path, kind).name for kind in BESIDE), path.with_suffix(LEFT_OUT).name):
        if (ready / name).exists():
            with (ready / name).open("rb") as source, atomic_write(path.with_name(name)) as handle:
                shutil.copyfileobj(source, handle)
        else:
            path.with_name(name).unlink(missing_ok=True)
    (ready / path.name).replace(path)


def end_publishing(path: Path) -> None:
    """End what a kill has interrupted between the last row of X.npy and its name; nothing where there is no such."""
    folder = path.with_suffix(".partial")
    if not (folder / READY / path.name).exists():
        return
    with (folder / "lock").open("a") as handle:
        try:
            lock(handle)
        except BlockingIOError:  # a process is at it
            return
        put_in_place(path)
        if os.name == "nt":  # which removes no open file
            handle.close()
        shutil.rmtree(folder)


class TableWriter:
    """The unfinished feature file X.npy, kept in the folder X.partial beside it: table.npy, done, request.json.

    Any process writes any rows, at their index; a row counts as done once it is on the disk. finish() proves that
    every row is done, and renames. A second start with an equal request finds the rows that are done.
    """

    def __init__(
        self, path: Path | str, shape: tuple[int, int], dtype: str, request: dict[str, Any], world: World
    ) -> None:
        """path: X.npy. shape: (N, columns). request: all that the values depend on, as JSON can hold it.

        Raises UserError where the folder cannot be written, the disk is too full, an unfinished file comes from
        another request (the differences are named), or another process writes it.
        """
        self.path, self.world = Path(path), world
        self.folder = self.path.with_suffix(".partial")
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.row_bytes = self.shape[1] * self.dtype.itemsize
        self.unsaved: list[tuple[int, np.ndarray]] = []  # (first row, their flags)
        self.descriptors: list[int] = []
        self.saved_at = time.monotonic()
        try:
            self.resumed = on_main(world, lambda: self._prepare(request))
            self.table, self.done = (self._open(name, os.O_RDWR) for name in ("table.npy", "done"))
        except BaseException:
            self._close()  # or the lock would outlive the failure
            raise
        self.start = os.fstat(self.table).st_size - self.shape[0] * self.row_bytes

    def _open(self, name: str, flags: int) -> int:
        self.descriptors.append(open_file(self.folder / name, flags))
        return self.descriptors[-1]

    def _prepare(self, request: dict[str, Any]) -> int:
        """Make the folder, or check the one that is there. Returns the number of rows done."""
        told, table = self.folder / "request.json", self.folder / "table.npy"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not (told.exists() and table.exists()):
            self._check_room()
        self.folder.mkdir(exist_ok=True)
        try:
            lock(self._open("lock", os.O_RDWR | os.O_CREAT))
        except BlockingIOError:
            raise UserError(f"another process is writing {self.path}: wait for it, or choose another name") from None
        request = json.loads(json.dumps(request | {"shape": self.shape, "dtype": self.dtype.name}))
        begun = told.exists() and table.exists()  # no table: a kill came between its publishing and the folder's end
        if begun:
            self._compare(request, read_json(told))
            (self.folder / "stop").unlink(missing_ok=True)
        else:
            told.unlink(missing_ok=True)  # it comes last: without it, all is made anew
        with self._disk():
            self._make(anew=not begun)
            if not begun:
                with atomic_write(told, "w") as handle:
                    json.dump(request, handle, indent=1)
        return int(np.count_nonzero(self.flags()))

    def _make(self, *, anew: bool) -> None:
        """Make table.npy and done, or where they are there bring them to their sizes.

        A machine that crashed may have cut them. A row that done lacks is missing; where the table is cut, all are.
        """
        table, done, header = self.folder / "table.npy", self.folder / "done", self._header(self.shape[0])
        size = len(header) + self.shape[0] * self.row_bytes
        anew = anew or table.stat().st_size != size
        if anew:
            with table.open("wb") as handle:
                handle.write(header)
                handle.truncate(size)
                os.fsync(handle.fileno())
        flags = b"" if anew or not done.exists() else done.read_bytes()
        if len(flags) != self.shape[0]:
            with done.open("wb") as handle:
                handle.write(flags[: self.shape[0]].ljust(self.shape[0], b"\0"))
                handle.flush()
                os.fsync(handle.fileno())

    def _header(self, rows: int) -> bytes:
        """What stands before `rows` rows in a .npy file."""
        with io.BytesIO() as handle:
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(handle, header | {"shape": (rows, self.shape[1])})
            return handle.getvalue()

    def _check_room(self) -> None:
        size, free = self.shape[0] * self.row_bytes, shutil.disk_usage(self.path.parent).free
        if free < size:
            raise UserError(f"{self.path} needs {told_size(size)}, {told_size(free)} are free in {self.path.parent}")

    def _compare(self, request: dict[str, Any], before: dict[str, Any]) -> None:
        keys = [key for key in before | request if before.get(key) != request.get(key)]
        if keys:
            differences = "; ".join(f"{key} was {before.get(key)}, now {request.get(key)}" for key in keys)
            raise UserError(
                f"{self.folder} holds an unfinished extraction by another command ({differences}): "
                "start that command again, remove the folder, or choose another --extra_name"
            )

    def flags(self) -> np.ndarray:
        """(N,) uint8: MISSING, WRITTEN, SKIPPED or REUSED for each row, as saved by all processes."""
        return np.fromfile(self.folder / "done", dtype=np.uint8)

    def write(self, first: int, block: np.ndarray, skipped: Sequence[int] = (), flag: int = WRITTEN) -> None:
        """Write block (rows, columns) at row `first`; skipped: indices of the pool within it that have no values."""
        block = np.ascontiguousarray(block, dtype=self.dtype)
        flags = np.full(len(block), flag, dtype=np.uint8)
        flags[[row - first for row in skipped]] = SKIPPED
        self._put(self.table, block.tobytes(), self.start + first * self.row_bytes)
        self.unsaved.append((first, flags))
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save()

    def stop(self) -> None:
        """Ask the other processes to stop: this one has failed, and they would work for hours before they hear it."""
        with contextlib.suppress(OSError):  # a full disk: they hear it at their end
            (self.folder / "stop").touch()

    def stopped(self) -> bool:
        """Whether some process has failed."""
        return (self.folder / "stop").exists()

    def save(self) -> None:
        """Bring this process's rows to the disk, then mark them as done: in this order, so that a mark never lies."""
        with self._disk():
            os.fsync(self.table)
        for first, flags in self.unsaved:
            self._put(self.done, flags.tobytes(), first)
        with self._disk():
            os.fsync(self.done)
        self.unsaved, self.saved_at = [], time.monotonic()

    def _put(self, descriptor: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        with self._disk():
            while view:
                count = write_at(descriptor, view, offset)
                view, offset = view[count:], offset + count

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}): the rows so far are kept in {self.folder}; "
                "mend the cause and start the same command again"
            ) from None

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # interrupted, or failed: what is there is kept for the next start
            with contextlib.suppress(UserError):  # the first error matters
                self.save()
        self._close()

    def _close(self, keep: int = 0) -> None:
        while len(self.descriptors) > keep:  # of rank 0 the lock is the first
            os.close(self.descriptors.pop())

    def finish(
        self,
        names: Sequence[str] | None = None,
        provenance: dict[str, Any] | None = None,
        files: Sequence[str] = (),
        class_names: Sequence[str] | None = None,
        record: PoolRecord | None = None,
    ) -> int:
        """Prove that every row is done, write the files beside X.npy, and give X.npy its name. Every rank calls it.

        names: N strings for X.names.json, or None. files: N strings, the names where rows were skipped and names is
        None. class_names: for X.classes.json, or None. record: of the N images, or None.
        Returns the number of rows kept.
        """
        self.save()
        self._close(keep=int(self.world.is_main))  # Windows renames no open file
        self.world.barrier()
        beside = {"provenance": provenance, "classes": None if class_names is None else list(class_names)}
        return on_main(self.world, lambda: self._publish(names, files, beside, record))

    def _publish(
        self, names: Sequence[str] | None, files: Sequence[str], beside: dict[str, Any], record: PoolRecord | None
    ) -> int:
        flags = self.flags()
        if len(flags) != self.shape[0] or (flags == MISSING).any():
            raise RuntimeError(f"{np.count_nonzero(flags == MISSING)} rows of {self.path} were never written")
        left_out = np.flatnonzero(flags == SKIPPED)
        if len(left_out) == len(flags):
            raise UserError(f"none of the {len(flags)} images could be read: nothing to write")
        finished, ready = self.folder / "table.npy", self.folder / READY
        shutil.rmtree(ready, ignore_errors=True)  # of a publishing that was killed
        ready.mkdir()
        whole = ready / self.path.name
        if len(left_out):
            kept, words = np.flatnonzero(flags != SKIPPED), names or files
            finished = self._compact(kept)
            with atomic_write(whole.with_suffix(LEFT_OUT), "w") as handle:
                handle.write("".join(f"{quoted(words[i])}\n" for i in left_out.tolist()))
            names = [words[i] for i in kept.tolist()]
        for kind, value in (beside | {"names": None if names is None else list(names)}).items():
            write_sidecar(whole, kind, value)
        save_record(whole, record and record.rows(np.flatnonzero(flags != SKIPPED).tolist()))
        finished.replace(whole)  # from here on a kill leaves the rest to the next start
        put_in_place(self.path)
        if os.name == "nt":  # which removes no open file
            self._close()
        shutil.rmtree(self.folder)
        return len(flags) - len(left_out)

    def _compact(self, kept: np.ndarray) -> Path:
        """A copy of the table without the skipped rows."""
        target = self.folder / "kept.npy"
        source = np.load(self.folder / "table.npy", mmap_mode="r")
        with self._disk(), target.open("wb") as handle:
            handle.write(self._header(len(kept)))
            for at in range(0, len(kept), COPY_ROWS):
                handle.write(source[kept[at : at + COPY_ROWS]].tobytes())
            handle.flush()
            os.fsync(handle.fileno())
        return target
