"""Pool + backbone -> feature file: sharded over ranks, written as the features arrive, resumable."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from data_selection.common.distributed import World, on_main, share_error
from data_selection.common.errors import UserError
from data_selection.common.feature_table import check_labels as check_column
from data_selection.common.kinds import Log
from data_selection.common.precision import full_float32
from data_selection.common.progress import Bar, OpenBar, open_bar
from data_selection.embedding.forward import class_tokens, memory_layout, ready
from data_selection.embedding.image_batches import Images, Transform, View, batches, to_input
from data_selection.embedding.preprocessing import DINO_PREPROCESS, Preprocess
from data_selection.embedding.reuse import Known, look, still, take_over
from data_selection.embedding.table_writer import MISSING, REUSED, TableWriter, runs
from data_selection.images.list_files import UNKNOWN
from data_selection.images.pools import Pool
from data_selection.images.record import list_digest

Embed = Callable[[nn.Module, torch.Tensor], torch.Tensor]
Embedded = tuple[torch.Tensor, torch.cuda.Event | None]  # features on the CPU, and what says when they are there

CPU_PIXELS = 8 * 224**2


@dataclass(frozen=True)
class Stats:
    """What an extraction did.

    images: embedded by all ranks. seconds, loading: of this rank, in all and waiting for images. rows: in the file.
    resumed: rows that an earlier start had written. reused: rows taken from an earlier file; all of them: it is left.
    """

    images: int
    seconds: float
    loading: float
    rows: int
    resumed: int
    reused: int = 0


def images_at_once(batch_size: int, size: int, device: torch.device) -> int:
    """Images of size x size pixels in one forward pass: the batch, on a CPU what its caches have room for."""
    return min(batch_size, max(1, CPU_PIXELS // size**2)) if device.type == "cpu" else batch_size


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a layer frees for the next one: saves up to a third of the time on a CPU.

    It would give that back to the system and get it again page by page. It keeps twice the largest block it has seen
    freed, of at most 32 MiB; this one is just below, and is never written.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


@full_float32()
def extract(
    pool: Pool,
    model: nn.Module,
    path: Path | str,
    *,
    world: World,
    preprocess: Preprocess = DINO_PREPROCESS,
    transform: Transform | None = None,
    embed: Embed = class_tokens,
    batch_size: int = 128,
    num_workers: int = 0,
    amp_dtype: torch.dtype | None = None,
    compiled: bool = False,
    dtype: str = "float32",
    on_error: str = "stop",
    request: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    progress: OpenBar | None = None,
    log: Log = print,
) -> Stats:
    """Embed every image of pool and write the feature file `path` (released layout: D columns, then the label or -1).

    embed: gives (B, D) features. transform: to a float tensor, instead of preprocess. amp_dtype: None, torch.bfloat16
    or torch.float16. compiled: run embed through torch.compile. on_error: `stop`, or `skip` to leave out images that
    cannot be read (listed in X.skipped.txt; rows then count the kept images, X.names.json says which). request: what
    else the values depend on (weights, ...), compared before an interrupted extraction goes on.
    Batch k has the rows from k * batch_size on of those that are to be made, whatever the number of ranks: every rank
    fills its own batches of the same file.
    Rows of images that an earlier file or unfinished work of the same backbone and pixels has are taken over.
    Raises UserError where an image cannot be read, features are not finite, or the file cannot be written.
    """
    keep_freed_memory()
    pool = copy.copy(pool)
    pool.background = preprocess.background
    layout, model = memory_layout(model), ready(model, world.device, amp_dtype, compiled)
    at_once = images_at_once(batch_size, preprocess.size, world.device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        if images.dtype == torch.uint8:
            images = to_input(images, preprocess, world.device)
        images = images.to(world.device, non_blocking=True, memory_format=layout)
        return embed(model, images).float()

    @torch.inference_mode()
    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(world.device.type, amp_dtype, enabled=amp_dtype is not None):
            return torch.cat([forward(part) for part in images.split(at_once)])

    blank = Image.new("RGB", (preprocess.size, preprocess.size))  # image 0 of the pool may be one that cannot be read
    first = (transform or View(preprocess))(blank)[None]
    shape = (len(pool), run(first).shape[1] + 1)
    embed = torch.compile(embed) if compiled else embed  # not before: it compiles for every batch size it meets
    check_labels(pool.labels, dtype)
    prepared = preprocess.record() if transform is None else str(transform)
    which = {"names_digest": list_digest(pool.names), "labels_digest": list_digest(pool.labels)}
    which |= {"classes_digest": list_digest(pool.class_names)} if pool.class_names else {}
    how = {"preprocess": prepared, "amp": str(amp_dtype), "compiled": compiled, "on_error": on_error}
    request = (request or {}) | which | how
    known: list[Known] = []  # on rank 0 alone: a record of a large pool is large
    wanted = json.loads(json.dumps(request | {"dtype": dtype}))

    def whole_already() -> bool:
        known.append(look(Path(path), wanted, pool, progress, log))
        return known[0].there

    if on_main(world, whole_already):
        return Stats(0, 0.0, 0.0, len(pool), 0, len(pool))
    with TableWriter(path, shape, dtype, known[0].request if known else request, world) as writer:
        if writer.resumed:
            log(f"going on: {writer.resumed} of {len(pool)} rows are in {writer.folder}")
        reused = on_main(world, lambda: take_over(writer, known[0], pool.labels))
        flags = writer.flags()
        world.barrier()  # every rank has read the flags before one changes them
        new = np.flatnonzero(flags != REUSED).tolist()  # batches are those of an unbroken run, to the last bit
        parts = [new[at : at + batch_size] for at in range(0, len(new), batch_size)]
        parts = [rows for rows in parts if (flags[rows] == MISSING).any()]
        images, parts = sum(map(len, parts)), parts[world.rank :: world.size]
        source = batches(pool, parts, preprocess, transform, num_workers, world.device)
        started = time.monotonic()
        with open_bar(progress, sum(map(len, parts)), "extract", "image") as bar:
            error: UserError | None = None
            try:
                loading = _fill(writer, source, parts, run, pool.labels, on_error, bar, log)
            except UserError as caught:
                error = caught
                writer.stop()
            share_error(world, error)
        seconds = time.monotonic() - started
        record = still(known[0].record, pool, log) if known else None
        count = writer.finish(pool.names, provenance, pool.paths, pool.class_names, record)
    return Stats(images, seconds, loading, count, writer.resumed, reused)


def _fill(
    writer: TableWriter,
    source: Iterator[Images],
    parts: Iterable[list[int]],
    run: Callable[[torch.Tensor], torch.Tensor],
    labels: Sequence[int] | None,
    on_error: str,
    bar: Bar,
    log: Log,
) -> float:
    """Embed and write the batches of source. Returns the seconds spent waiting for images."""
    loading = 0.0
    pending: tuple[list[int], list[int], Embedded | None] | None = None
    for rows in parts:
        if writer.stopped():
            break
        before = time.monotonic()
        images, errors = next(source)
        loading += time.monotonic() - before
        bad = [(row, text) for row, text in zip(rows, errors, strict=True) if text]
        if bad and on_error == "stop":
            raise UserError(f"{bad[0][1]}: mend or remove it, or leave such images out with --on_error skip")
        for _, text in bad:
            log(f"left out: {text}")
        embedded = None if images is None else _to_host(run(images))
        if pending:  # written while the device works on the next batch
            _write(writer, labels, *pending)
        pending = (rows, [row for row, _ in bad], embedded)
        bar.update(len(rows))
    if pending:
        _write(writer, labels, *pending)
    return loading


def _to_host(features: torch.Tensor) -> Embedded:
    """Features on the CPU; the copy does not wait."""
    if features.device.type == "cpu":
        return features, None
    copy = features.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(features.device))  # not the current device's, which may be another GPU
    return copy, event


def _write(
    writer: TableWriter, labels: Sequence[int] | None, rows: list[int], bad: list[int], embedded: Embedded | None
) -> None:
    block = np.zeros((len(rows), writer.shape[1]), dtype=writer.dtype)
    block[:, -1] = UNKNOWN if labels is None else [labels[row] for row in rows]
    if embedded is not None:
        features, event = embedded
        if event is not None:
            event.synchronize()
        good = [place for place, row in enumerate(rows) if row not in bad]
        with np.errstate(over="ignore"):  # reported below
            block[good, :-1] = features.numpy()
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the features of image {rows[int(np.argmin(finite))]} are not finite in {writer.dtype.name}: "
            "try --amp off and --dtype float32, or check the weights"
        )
    at = 0
    for part in runs(np.array(rows)):
        writer.write(int(part[0]), block[at : at + len(part)], [row for row in bad if part[0] <= row <= part[-1]])
        at += len(part)


def check_labels(labels: Sequence[int] | None, dtype: str) -> None:
    """Raise UserError where the labels do not fit the file's type: float16 is exact up to 2,048, float32 to 2^24."""
    hint = "use --dtype float32" if dtype == "float16" else "use --dtype float64, or number the classes from 0"
    check_column(np.asarray(labels or [UNKNOWN]), np.dtype(dtype), dtype, hint)
