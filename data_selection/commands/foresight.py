"""What choosing images will take, told before the work: from a trial on a few images of the pool."""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_selection.annotation.originals import show_one
from data_selection.commands.run_extract import Ready
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.files import read_json, told_size
from data_selection.embedding.extraction import images_at_once
from data_selection.embedding.image_batches import View, to_input
from data_selection.embedding.reuse import differences
from data_selection.images.pools import Pool
from data_selection.images.record import known_files, load_record
from data_selection.methods.configs import Config
from data_selection.methods.configs_design import CUT, FacilityConfig, UncertaintyHerdingConfig

TRIED = 8  # images
BATCH = 128  # images that extraction embeds at a time, at most
LARGE, APART = 4_000, 4  # rows of the larger made-up pool on which the choice is tried, and that over the smaller's
PAGE_BYTES = 8_000  # of an image's thumbnail and words in the page, at most on average


@dataclass(frozen=True)
class Foresight:
    """What is to come. seconds: to embed, to choose, to write the page. memory, disk: bytes. new: images to embed."""

    new: int
    width: int
    embed: float
    choose: float
    page: float
    memory: float
    disk: float

    def told(self, images: int, budget: int, method: str) -> str:
        known = images - self.new
        words = f"{self.new} images to embed{f' ({known} known)' if known else ''}: {told_time(self.embed)}"
        return (
            f"{words}; {budget} of {images} chosen by {method}: {told_time(self.choose)}; the page: "
            f"{told_time(self.page)}; about {told_size(self.memory)} of memory and {told_size(self.disk)} of disk"
        )


def told_time(seconds: float) -> str:
    """A time ahead in words."""
    if seconds < 1.5:
        return "about a second" if seconds > 0.1 else "no time"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def foresee(
    ready: Ready, budget: int, select: Callable[..., torch.Tensor], images: str, embed: bool, enough: int | None
) -> Foresight:
    """Try a few images and a small choice. select: a method, as choose_images calls it; images, embed: its flags.

    enough: as rows_looked_at says.
    """
    pool, count = ready.pool, len(ready.pool)
    places = np.unique(np.linspace(0, count - 1, TRIED).astype(int)).tolist()
    decoding, forward, width = try_images(ready, places)
    page, size = try_page(pool, places)
    new = not_known(ready)
    embedding = new * (max(decoding / ready.workers, forward) if ready.workers else decoding + forward)
    choosing = try_choice(select, count, budget, width, enough)
    table = 4.0 * count * (width + 1)
    disk = table + budget * (PAGE_BYTES + (size if images == "copy" else 0) + (4 / 3 * size if embed else 0))
    memory = peak_memory() + 2 * table + budget * PAGE_BYTES * 3
    return Foresight(new, width, embedding, choosing, budget * page, memory, disk)


def check_disk(out: Path, needed: float) -> None:
    """Raise UserError where the disk of a folder to be made is too full."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{out} needs {told_size(needed)}, {told_size(free)} are free there: choose another --out, or make room"
        )


def try_images(ready: Ready, places: Sequence[int]) -> tuple[float, float, int]:
    """(seconds to decode an image, seconds to embed one, dimensions of its features)."""
    view, decoded, times, began = View(ready.preprocess), [], [], time.monotonic()
    for place in places:
        with contextlib.suppress(UserError):  # told when its turn comes
            decoded.append(view(ready.pool.image(place)))
    decoding = (time.monotonic() - began) / max(1, len(places))
    device = ready.world.device
    batch = torch.stack(decoded or [torch.zeros(3, ready.preprocess.size, ready.preprocess.size, dtype=torch.uint8)])
    count = images_at_once(BATCH, ready.preprocess.size, device)
    batch = batch.repeat(-(-count // len(batch)), 1, 1, 1)[:count]
    model = ready.model.eval().to(device)
    with torch.inference_mode(), torch.autocast(device.type, ready.amp, enabled=ready.amp is not None):
        for _ in range(3):  # the first one also loads libraries
            began = time.monotonic()
            width = ready.embed(model, to_input(batch, ready.preprocess, device)).cpu().shape[1]
            times.append(time.monotonic() - began)
    return decoding, min(times) / count, width


def try_page(pool: Pool, places: Sequence[int]) -> tuple[float, float]:
    """(seconds for the thumbnail of an image, bytes of one)."""
    sizes, began = [], time.monotonic()
    for place in places:
        with contextlib.suppress(UserError, OSError):
            show_one(pool.paths[place], "", embed=False)
            sizes.append(Path(pool.paths[place]).stat().st_size)
    return (time.monotonic() - began) / len(places), float(np.mean(sizes)) if sizes else 0.0


def rows_looked_at(config: Config, budget: int) -> int | None:
    """Rows beyond which a method takes no longer, since it looks at a random part of the pool; None: it looks at all.

    That is so where both the rows to be covered and those to choose among are limited.
    """
    if not isinstance(config, (FacilityConfig, UncertaintyHerdingConfig)):
        return None
    return max(config.clients, config.candidates, CUT * budget)


def try_choice(
    select: Callable[..., torch.Tensor], count: int, budget: int, width: int, enough: int | None = None
) -> float:
    """Seconds of a method on (count, width) features: by two small pools, of which the same number is chosen.

    enough: rows beyond which it takes no longer, None: there is no such number.
    """
    draw = torch.Generator().manual_seed(0)
    large = max(1, min(LARGE, count // 2))
    small = max(1, large // APART)
    some = max(1, min(budget, small // 4))
    times = []
    for rows in (small, small, large):  # the first one loads libraries
        began = time.monotonic()
        with contextlib.suppress(UserError):  # too few for the method
            select(torch.randn(rows, width, generator=draw), some)
        times.append(time.monotonic() - began)
    return grown(times[1], times[2], small, large, min(count, enough or count)) * budget / some


def grown(before: float, after: float, small: int, large: int, count: int) -> float:
    """Seconds for `count` rows where `small` took `before` and `large` took `after`.

    On a line, for a start costs the same with any number; steeper growth goes on by its power, the square at most.
    """
    if large <= small or before <= 0 or after <= before:
        return after * max(1.0, count / large)
    power = math.log(after / before) / math.log(large / small)
    if power <= 1:
        return after + (after - before) / (large - small) * (count - large)
    return after * (count / large) ** min(power, 2.0)


def not_known(ready: Ready) -> int:
    """How many images no finished or unfinished feature file has yet; by name, size and time, without reading them.

    Rows of another backbone or of other pixels count for nothing.
    """
    pool, path = ready.pool, ready.path
    if not path.exists():
        done = path.with_suffix(".partial") / "done"
        return len(pool) - (int(np.count_nonzero(np.fromfile(done, dtype=np.uint8))) if done.exists() else 0)
    try:
        if differences(read_json(sidecar(path, "provenance")), ready.provenance, files=True):
            return len(pool)
        known = known_files(load_record(path, len(load_features(path))))
    except (UserError, OSError):  # damaged: made anew
        return len(pool)
    new = 0
    for name, file in zip(pool.names or (), pool.paths, strict=True):
        with contextlib.suppress(OSError):
            found = Path(file).stat()
            new += (name, found.st_size, found.st_mtime_ns) not in known
    return new


def peak_memory() -> float:
    """Bytes of memory that this process has used at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
