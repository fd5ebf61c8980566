"""Small tensors sent to a GPU together, by one copy that the program does not wait for."""

import torch

ALIGNED = 8  # bytes of the widest type: where each tensor begins


def sent(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """CPU tensors of any types and shapes, on the device; on the CPU themselves.

    A plain `.to` of a tensor in ordinary memory makes the host wait, once for each tensor.
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    padded = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    packed = torch.empty(sum(padded), dtype=torch.uint8)
    for tensor, size, part in zip(tensors, sizes, packed.split(padded), strict=True):
        part[:size].copy_(tensor.contiguous().view(-1).view(torch.uint8))
    there = packed.pin_memory().to(device, non_blocking=True).split(padded)
    return [
        part[:size].view(tensor.dtype).view(tensor.shape)
        for tensor, size, part in zip(tensors, sizes, there, strict=True)
    ]
