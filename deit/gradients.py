"""All gradients in one buffer, and their sum over the processes, which runs while the backward pass goes on."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from data_selection.common.distributed import World

BUCKET = 25 * 2**20  # bytes that are summed at once
AHEAD = 16  # numbers before the gradients: loss, asked and nothing, so that the gradients begin at 64 bytes


class FlatGradients:
    """All gradients as views of one buffer: zeroed and clipped in one operation each, summed in a few.

    whole: `loss` and `asked` (to stop), which so are summed with the gradients, and `buffer`, the gradients.
    The buffer is cut into buckets, the last parameters first, as a backward pass reaches them. On several processes a
    bucket is summed as soon as its gradients are there, in the last pass of a step. Every process sums the same buckets
    in the same order, also one without images in this step or whose pass spares some parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.world = world
        first = self.parameters[0]
        sizes = [parameter.numel() for parameter in self.parameters]
        self.whole = torch.zeros(AHEAD + sum(sizes), dtype=first.dtype, device=first.device)
        self.loss, self.asked, self.buffer = self.whole[0], self.whole[1], self.whole[AHEAD:]
        for parameter, view in zip(self.parameters, self.buffer.split(sizes), strict=True):
            # in the parameter's own order in memory (channels_last), as autograd would lay it out
            parameter.grad = view.as_strided(parameter.shape, parameter.stride(), view.storage_offset())
        self.buckets, members = bucketed(sizes, BUCKET // first.element_size())
        self.sizes = [members.count(bucket) for bucket in range(len(self.buckets))]
        self.missing = list(self.sizes)
        self.waits: list[Callable[[], None]] = []  # of the buckets whose sum has begun
        self.last_pass = False
        if world.size > 1:
            for parameter, bucket in zip(self.parameters, members, strict=True):
                parameter.register_post_accumulate_grad_hook(partial(self.arrived, bucket))

    def zero(self) -> None:
        """Begin a step."""
        self.whole.zero_()
        self.missing, self.waits, self.last_pass = list(self.sizes), [], False

    def arrived(self, bucket: int, _: torch.Tensor) -> None:
        """A gradient of a bucket is there: in the last pass, begin the sum of what is whole now, but of the last."""
        if self.last_pass:
            self.missing[bucket] -= 1
            while len(self.waits) < len(self.buckets) - 1 and self.missing[len(self.waits)] == 0:
                self.begin_next()

    def begin_next(self) -> None:
        self.waits.append(self.world.begin_sum(self.whole[self.buckets[len(self.waits)]]))

    def sum(self, loss: torch.Tensor, asked: bool) -> None:
        """End a step's passes: sum over the processes what is not summed yet, `loss` (a number) and `asked` with it."""
        self.loss.copy_(loss)
        if self.world.size > 1:
            self.asked.fill_(float(asked))
            while len(self.waits) < len(self.buckets):
                self.begin_next()
            for wait in self.waits:
                wait()

    def clip(self, limit: float) -> None:
        """Scale the gradients down to a norm of at most `limit`, without reading the norm back."""
        norm = torch.linalg.vector_norm(self.buffer)
        self.buffer.mul_((limit / (norm + 1e-6)).clamp(max=1.0))


def bucketed(sizes: list[int], most: int) -> tuple[list[slice], list[int]]:
    """Spans of FlatGradients.whole of at least `most` numbers, the last parameters first, and each parameter's bucket.

    sizes: numbers of each parameter. The last span holds the first parameters, however few, and what is ahead of them.
    """
    stop = start = AHEAD + sum(sizes)
    spans: list[slice] = []
    members: list[int] = []
    for size in reversed(sizes):
        members.append(len(spans))
        start -= size
        if stop - start >= most and start > AHEAD:
            spans.append(slice(start, stop))
            stop = start
    return [*spans, slice(0, stop)], members[::-1]
