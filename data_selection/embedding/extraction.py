"""Pool + backbone -> feature file: batches prepared ahead, sharded over ranks, written as they arrive, resumable."""

import functools
import hashlib
import json
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_selection.common.distributed import share_error
from data_selection.common.errors import UserError
from data_selection.common.progress import open_bar
from data_selection.embedding.forward import class_tokens, memory_layout, ready
from data_selection.embedding.table_writer import MISSING, TableWriter
from data_selection.images.list_files import UNKNOWN
from data_selection.images.pools import FASHION_MEAN, FASHION_STD, IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Preprocess:
    """Resize to size x size pixels (bicubic, aspect ratio not kept), scale to 0..1, normalise per channel."""

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


PIL_ONE = 2**22  # PIL's weights are whole multiples of 1 / PIL_ONE
CPU_PIXELS = 8 * 224**2

DINO_PREPROCESS = Preprocess(224)  # the released extraction
DEMO_PREPROCESS = Preprocess(28, (FASHION_MEAN,) * 3, (FASHION_STD,) * 3)


@dataclass(frozen=True)
class Stats:
    """What an extraction did.

    images: embedded by all ranks. seconds, loading: of this rank, in all and waiting for images. rows: in the file.
    resumed: rows that an earlier start had written.
    """

    images: int
    seconds: float
    loading: float
    rows: int
    resumed: int


def images_at_once(batch_size, size, device):
    """Images of size x size pixels in one forward pass: the batch, on a CPU what its caches have room for."""
    return min(batch_size, max(1, CPU_PIXELS // size**2)) if device.type == "cpu" else batch_size


def keep_freed_memory():
    """Let glibc keep the memory that a layer frees for the next one: saves up to a third of the time on a CPU.

    It would give that back to the system and get it again page by page. It keeps twice the largest block it has seen
    freed, of at most 32 MiB; this one is just below, and is never written.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8)


def to_input(images, preprocess, device):
    """Model input (B, 3, size, size) float32 on device, of uint8 images (B, H, W), (B, H, W, 3) or (B, 3, H, W)."""
    images = images.to(device, non_blocking=True)
    if images.ndim == 3:
        images = images[:, None]  # (B, 1, H, W): grey is resized once, then repeated
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    images = resize(images, preprocess.size)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return images.float().mul(1 / (255 * std)).sub_(mean / std)  # mul makes three channels of one


def resize(images, size):
    """uint8 images (B, C, S, S) -> (B, C, size, size) uint8, bit-equal to PIL's bicubic resize of square images.

    PIL filters rows, rounds to grey levels, then filters columns, with weights rounded to 22 bits; float64 holds the
    products of such weights and grey levels, and their sums, exactly, on any device.
    """
    if images.shape[-1] == size:
        return images
    weights = bicubic_weights(images.shape[-1], size).to(images.device)  # (size, S)
    x = images.double()
    for right in (True, False):
        x = x @ weights.T if right else weights @ x
        x.add_(0.5).floor_().clamp_(0, 255)  # in place: the largest array there is on the way
    return x.to(torch.uint8)


@functools.lru_cache(maxsize=8)
def bicubic_weights(old, new):
    """PIL's filter as a (new, old) float64 matrix."""
    eye = torch.eye(old, dtype=torch.float64)[None, None]
    # antialias selects PIL's kernel (a = -0.5, wider when shrinking); the other axis keeps its size, so it is untouched
    return (F.interpolate(eye, (new, old), mode="bicubic", antialias=True)[0, 0] * PIL_ONE).round() / PIL_ONE


class Decoded(Dataset):
    """Image i as (tensor, "") or (None, error text): an error that crosses processes as an exception loses its form."""

    def __init__(self, pool, prepare):
        self.pool, self.prepare = pool, prepare

    def __len__(self):
        return len(self.pool)

    def __getitem__(self, i):
        try:
            return self.prepare(self.pool.image(i)), ""
        except UserError as error:
            return None, str(error)


@dataclass(frozen=True)
class ResizePIL:
    """PIL image -> (3, size, size) uint8 tensor."""

    size: int

    def __call__(self, image):
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def collate(items):
    """(tensor of the images that could be read or None, error texts: "" where it could)."""
    images = [image for image, _ in items if image is not None]
    return torch.stack(images) if images else None, [text for _, text in items]


def batches(pool, ranges, preprocess, transform, num_workers, device):
    """Yield (images, error texts) for each range of rows; images are uint8, or transform's floats."""
    if pool.arrays is not None and transform is None and pool.arrays.shape[1] == pool.arrays.shape[2]:
        for rows in ranges:
            images = torch.from_numpy(pool.arrays[rows.start : rows.stop])
            yield images.pin_memory() if device.type == "cuda" else images, [""] * len(rows)
        return
    loader = DataLoader(
        Decoded(pool, transform or ResizePIL(preprocess.size)), batch_sampler=ranges, collate_fn=collate,
        num_workers=num_workers, pin_memory=device.type == "cuda", prefetch_factor=4 if num_workers else None,
    )  # fmt: skip
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loading process died ({str(error).splitlines()[0]}): the rows so far are kept; if memory ran out, "
            "start again with fewer --num_workers or a smaller --batch_size_per_gpu"
        ) from None


def extract(
    pool, model, path, *, world, preprocess=DINO_PREPROCESS, transform=None, embed=class_tokens, batch_size=128,
    num_workers=0, amp_dtype=None, compiled=False, dtype="float32", on_error="stop", request=None, provenance=None,
    progress=None, log=print,
):  # fmt: skip
    """Embed every image of pool and write the feature file `path` (released layout: D columns, then the label or -1).

    embed(model, images) -> (B, D). transform: of a PIL image to a float tensor, instead of preprocess. amp_dtype:
    None, torch.bfloat16 or torch.float16. compiled: run embed through torch.compile. on_error: `stop`, or `skip` to
    leave out images that cannot be read (listed in X.skipped.txt; rows then count the kept images, X.names.json says
    which). request: what else the values depend on (weights, ...), compared before an interrupted extraction goes on.
    Batch k is rows k * batch_size onwards, whatever the number of ranks: every rank fills its own batches of the same
    file. Returns Stats.
    Raises UserError where an image cannot be read, features are not finite, or the file cannot be written.
    """
    keep_freed_memory()
    layout, model = memory_layout(model), ready(model, world.device, amp_dtype, compiled)
    at_once = images_at_once(batch_size, preprocess.size, world.device)

    def forward(images):
        if images.dtype == torch.uint8:
            images = to_input(images, preprocess, world.device)
        images = images.to(world.device, non_blocking=True, memory_format=layout)
        return embed(model, images).float()

    @torch.inference_mode()
    def run(images):
        with torch.autocast(world.device.type, amp_dtype, enabled=amp_dtype is not None):
            return torch.cat([forward(part) for part in images.split(at_once)])

    blank = Image.new("RGB", (preprocess.size, preprocess.size))  # image 0 of the pool may be one that cannot be read
    first = (transform or ResizePIL(preprocess.size))(blank)[None]
    shape = (len(pool), run(first).shape[1] + 1)
    embed = torch.compile(embed) if compiled else embed  # not before: it compiles for every batch size it meets
    check_labels(pool.labels, dtype)
    prepared = asdict(preprocess) if transform is None else str(transform)
    rows = {"names_digest": _digest(pool.names), "labels_digest": _digest(pool.labels)}
    how = {"preprocess": prepared, "amp": str(amp_dtype), "compiled": compiled, "on_error": on_error}
    request = (request or {}) | rows | how
    with TableWriter(path, shape, dtype, request, world) as writer:
        if writer.resumed:
            log(f"going on: {writer.resumed} of {len(pool)} rows are in {writer.folder}")
        missing = writer.flags() == MISSING
        world.barrier()  # every rank has read the flags before one changes them
        ranges = [range(at, min(at + batch_size, len(pool))) for at in range(0, len(pool), batch_size)]
        ranges = [rows for rows in ranges if missing[rows.start : rows.stop].any()]
        images, ranges = sum(map(len, ranges)), ranges[world.rank :: world.size]
        source = batches(pool, ranges, preprocess, transform, num_workers, world.device)
        started = time.monotonic()
        with open_bar(progress, sum(map(len, ranges)), "extract", "image") as bar:
            error = None
            try:
                loading = _fill(writer, source, ranges, run, pool.labels, on_error, bar, log)
            except UserError as caught:
                error = caught
                writer.stop()
            share_error(world, error)
        seconds = time.monotonic() - started
        rows = writer.finish(pool.names, provenance, files=pool.paths)
    return Stats(images, seconds, loading, rows, writer.resumed)


def _digest(values):
    """A short digest of a list, or None: tells an unfinished file's images from those of a folder that has changed."""
    if values is None:
        return None
    digest = hashlib.sha256()
    for at in range(0, len(values), 1024):  # in pieces: one text of all would take memory that grows with the pool
        digest.update(json.dumps(values[at : at + 1024]).encode())
    return digest.hexdigest()[:16]


def _fill(writer, source, ranges, run, labels, on_error, bar, log):
    """Embed and write the batches of source. Returns the seconds spent waiting for images."""
    loading, pending = 0.0, None
    source = iter(source)
    for rows in ranges:
        if writer.stopped():
            break
        before = time.monotonic()
        images, errors = next(source)
        loading += time.monotonic() - before
        bad = [(row, text) for row, text in zip(rows, errors) if text]
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


def _to_host(features):
    """(features on the CPU, event that says when they are there); the copy does not wait."""
    if features.device.type == "cpu":
        return features, None
    copy = features.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


def _write(writer, labels, rows, bad, embedded):
    block = np.zeros((len(rows), writer.shape[1]), dtype=writer.dtype)
    block[:, -1] = UNKNOWN if labels is None else labels[rows.start : rows.stop]
    if embedded is not None:
        features, event = embedded
        if event is not None:
            event.synchronize()
        good = [row - rows.start for row in rows if row not in bad]
        with np.errstate(over="ignore"):  # reported below
            block[good, :-1] = features.numpy()
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the features of image {rows[int(np.argmin(finite))]} are not finite in {writer.dtype.name}: "
            "try --amp off and --dtype float32, or check the weights"
        )
    writer.write(rows.start, block, bad)


def check_labels(labels, dtype):
    """Raise UserError where the labels do not fit the file's float type: float16 is exact up to 2,048 only."""
    largest = max(labels or [0])
    if int(np.dtype(dtype).type(largest)) != largest:
        raise UserError(f"labels up to {largest} do not fit {dtype} exactly: use --dtype float32")
