"""Work too small for several threads runs on one: each step of it would wait for a thread that may not run at once."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread_if(small: bool) -> Iterator[None]:
    """Within the block PyTorch works with one thread where `small` says so."""
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
