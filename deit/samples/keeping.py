"""How many of a run's images a process keeps in memory, and which."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from data_selection.common.distributed import World
from data_selection.images.pools import Pool
from deit.samples.batches import Batch, Plain

CACHE_BYTES = 2 << 30  # `--cache auto` keeps so much: all images of a run, on a card of its own or on a machine


class Room:
    """Bytes that are left for images which nobody has asked to keep; the same on every process, so that all agree.

    The processes of a machine share its memory; each has a card of its own.
    """

    def __init__(self, world: World | None = None) -> None:
        self.left = CACHE_BYTES
        if world is not None and world.device.type == "cpu":
            self.left //= int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
        if world is not None:
            self.left = world.least(self.left)  # machines may have more processes or fewer

    def take(self, count: int) -> bool:
        """Whether `count` bytes are left; they are not any longer then."""
        enough = count <= self.left
        self.left -= count * enough
        return enough


@dataclass(frozen=True)
class Share:
    """Every size-th of `count` images from `rank` on, all that this process evaluates of them."""

    held: Plain
    count: int
    rank: int
    size: int

    def __len__(self) -> int:
        return self.count

    def plain(self, indices: range, batch: int) -> Iterator[Batch]:
        """Yield (images, labels) of `indices`, which must be this process's: range(rank, count, size)."""
        if indices != range(self.rank, self.count, self.size):
            raise IndexError(f"{indices} of the images of process {self.rank} of {self.size}")
        return self.held.plain(range(len(indices)), batch)


def fits(pool: Pool, ids: Sequence[int], batched: bool, room: Room) -> bool:
    """Whether decoding `ids` once saves time and room, which it takes then, has the bytes that files' headers tell."""
    if pool.arrays is not None:
        height, width = pool.arrays.shape[1:3]  # held in memory as it is
        return batched and room.take(3 * height * width * len(ids))
    needed = 0
    for i in ids:
        try:
            with Image.open(pool.paths[i]) as image:
                width, height = image.size
        except Exception:  # noqa: BLE001 - whatever a decoder raises: reading the image tells it with the file's name
            width, height = pool.image(i).size
        needed += 3 * width * height
        if needed > room.left:
            return False
    return room.take(needed)
