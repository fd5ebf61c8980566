"""Work on one thread: what is too small for several, and sums that another number of threads would round otherwise."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread_if(small: bool) -> Iterator[None]:
    """Within the block PyTorch works with one thread where `small` says so: each step would wait for the others."""
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_sum() -> Iterator[None]:
    """Within the block scikit-learn and NumPy count with one thread: the same result on every machine of a kind."""
    from threadpoolctl import threadpool_limits  # scikit-learn's own, and slow to look for libraries

    with threadpool_limits(1):
        yield
