"""Float32 that is float32, and sums that come out the same every time: GPUs leave both to the program."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Take float32 products and convolutions in full precision within the block, or in a function that this decorates.

    GPUs may round the factors to 10 bits (TF32). Both settings are the process's own and are given back as they were.
    PyTorch multiplies in full by default, but NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, and cuDNN's
    convolutions take TF32 by default.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def fix_workspaces() -> None:
    """Have cuBLAS multiply in one order; counts where nothing was multiplied on a GPU yet. A user's choice stays."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within the block a GPU adds up gradients in one order, where PyTorch knows a way that does not refuse others.

    Settings of the process, given back as they were. Left out by it: the backward passes of fused attention and of
    resampling (deit/README.md).
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(non-deterministic algorithm|deterministic implementation)")
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            memory.fill_uninitialized_memory = False  # nothing reads what nobody has written
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filled
