"""The output folder: one run at a time writes there, and what an earlier run left does not pass for the new one's."""

import contextlib
import errno
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write
from data_selection.common.kinds import Log
from data_selection.common.system import lock as take_lock
from deit.runs.checkpoints import training_state
from deit.runs.kinds import Numbers, State
from deit.runs.predictions import OF_POOL
from deit.runs.saving import BEST, NEWEST, PREVIOUS

LOCK = ".running"
RESULTS = ("result.json", OF_POOL)  # what only a run that has ended leaves
ASKED = "cross_validation.csv"  # what models said of labels that they had not seen
LASTING = (NEWEST, PREVIOUS, BEST, *RESULTS)
FILES = (
    *LASTING,
    ASKED,
    "args.yaml",
    "log.txt",
    "nonfinite_batch.json",
    "soft_targets_*.npy",
    "smoothed_pool.npz",
    "tensorboard",
)


@contextlib.contextmanager
def claimed(folder: Path | str, world: World) -> Iterator[None]:
    """Make the output folder ("": none) this run's own inside the block; rank 0 does it.

    A folder that was made for the run and is empty in the end, since the start was refused, is removed. Raises
    UserError where it cannot be written, or another run is writing there.
    """
    if not folder:
        yield
        return
    path = Path(folder)
    made = [parent for parent in (path, *path.parents) if world.is_main and not parent.exists()]  # innermost first
    box: list[IO[str]] = []
    try:
        on_main(world, lambda: box.append(lock(path)))
        yield
    finally:
        if box:
            with contextlib.suppress(PermissionError):  # Windows removes no open file: an empty one without lock stays
                (path / LOCK).unlink(missing_ok=True)
            box[0].close()
        with contextlib.suppress(OSError):  # not empty: the run has begun
            for parent in made:
                parent.rmdir()


def lock(folder: Path) -> IO[str]:
    """Create the folder and lock it. The lock ends with this process, however that ends: none is ever stale.

    A POSIX record lock: not inherited by processes that load images, and known to other machines on a network disk.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        while True:
            handle = path.open("a+", encoding="utf-8")
            with unlockable_disks():
                take_lock(handle, record=True)
            if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                break
            handle.close()  # its owner has removed it since it was opened
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
    except BlockingIOError:
        owner = path.read_text(encoding="utf-8").strip() if path.exists() else "which has just ended"
        raise UserError(
            f"--output_dir {folder} is in use by another run ({owner}): wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be written ({error.strerror}): choose another folder") from None
    return handle


@contextlib.contextmanager
def unlockable_disks() -> Iterator[None]:
    """Let network disks that know no locks do without."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def make_room(folder: Path | None, source: Path | str, state: State | None, log: Log, *, auto_resume: bool) -> None:
    """Set aside what another run has left in the folder (None: nothing to do), before this one writes.

    source, state: of starting_point. A run that continues a checkpoint of the folder keeps its own files, but no result
    and no checkpoint from after it. What a run with --auto-resume had begun without a checkpoint is written anew.
    """
    if folder is None:
        return
    if state is not None and is_own(source, folder):
        newer = () if Path(source).name in (NEWEST, PREVIOUS) else (NEWEST, PREVIOUS)
        found, whose = existing(folder, (*RESULTS, *newer)), "results of a later epoch"
    else:
        found, whose = existing(folder, FILES), "an earlier run"
        if auto_resume and not existing(folder, LASTING):
            return
    if found:
        target = next(path for n in itertools.count(1) if not (path := folder / f"earlier_{n}").exists())
        target.mkdir()
        for path in found:
            path.rename(target / path.name)
        hint = " (--auto-resume continues a run)" if state is None else ""
        log(f"{folder} holds {whose}: {len(found)} files are set aside in {target}{hint}")


def existing(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder that match one of the patterns."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def is_own(source: Path | str, folder: Path | str) -> bool:
    """Whether a checkpoint lies in the output folder."""
    return Path(source).resolve().parent == Path(folder).resolve()


def best_so_far(folder: Path | None, source: Path | str, state: State, log: Log) -> Numbers | None:
    """The numbers of the best epoch of the run that a checkpoint continues, where its weights are, or get, in folder.

    They lie beside the checkpoint, or are its own. None where they are lost: the best is then sought from here on.
    """
    best: Numbers | None = state.get("best")
    if best is None or folder is None:
        return best
    files = [path for path in (Path(source).parent / BEST, Path(source)) if epoch_of(path) == best["epoch"]]
    if not files:
        log(f"no {BEST} of epoch {best['epoch']} is beside {source}: the best is sought among the epochs after it")
        return None
    if files[0].resolve() != (folder / BEST).resolve():
        with files[0].open("rb") as source_file, atomic_write(folder / BEST) as handle:
            shutil.copyfileobj(source_file, handle)
    return best


def epoch_of(path: Path) -> int | None:
    """The epoch of a checkpoint, None where there is none that can be continued."""
    try:
        state = training_state(path) if path.exists() else None
    except UserError:
        return None
    return None if state is None or state.get("sofar") else int(state["epoch"])  # else of no epoch's end
