"""Ranks that are threads of this process: what several of them do together, without the seconds that processes take."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from data_selection.common.distributed import World


@dataclass(frozen=True)
class ThreadWorld(World):
    """A World whose ranks meet at a barrier; box holds what they hand to each other."""

    meeting: threading.Barrier
    box: dict

    def barrier(self):
        self.meeting.wait(60)

    def broadcast_object(self, value):
        if self.is_main:
            self.box["value"] = value
        self.barrier()
        result = self.box["value"]
        self.barrier()
        return result

    def gather(self, value):
        self.box[self.rank] = value
        self.barrier()
        values = [self.box[rank] for rank in range(self.size)]
        self.barrier()
        return values

    def least(self, value):
        return min(self.gather(value))

    def sum_(self, tensor):
        self.box[self.rank] = tensor.clone()
        self.barrier()
        tensor.copy_(sum(self.box[rank] for rank in range(self.size)))
        self.barrier()
        return tensor

    def begin_sum(self, tensor):
        self.sum_(tensor)
        return lambda: None


def on_ranks(size, function):
    """[function(world) of each rank]."""
    meeting, box = threading.Barrier(size), {}
    worlds = [ThreadWorld(rank, size, torch.device("cpu"), meeting, box) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(function, worlds))
