"""Float32 that is float32: GPUs may round the factors of its products to 10 bits (TF32) behind the program's back."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Take float32 products and convolutions in full precision within the block, or in a function that this decorates.

    Both settings are the process's own and are given back as they were. PyTorch multiplies in full by default, but
    NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, and cuDNN's convolutions take TF32 by default.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
