"""Which sizes of images a model takes."""

import torch
from torch import nn

from data_selection.common.errors import UserError


def check_size(model: nn.Module, size: int, told: str, flag: str) -> None:
    """Raise UserError for a model that takes no images of `size` pixels a side, before any is decoded.

    Some of timm's ViTs would cut off what is beyond the last whole patch. told, flag: how the error calls the model and
    the size. Leaves the model in eval mode.
    """
    side = patch_side(model)
    if size % side:
        raise UserError(
            f"{told} does not take {flag} {size}: a multiple of its patches of {side} pixels is needed, as "
            f"{size // side * side or side} or {(size // side + 1) * side}"
        )
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"{told} does not take {flag} {size}: {str(error).splitlines()[0]}") from None


def patch_side(model: nn.Module) -> int:
    """Pixels of a side of the patches that a model cuts images into, side by side; 1 where they overlap, or are none.

    Overlapping ones (PVT's, of 7 pixels every 4) reach beyond the image, so that nothing is cut off.
    """
    embed = getattr(model, "patch_embed", None)
    patch, cut = getattr(embed, "patch_size", None) or 1, getattr(embed, "proj", None)
    side = patch if isinstance(patch, int) else max(patch)
    return side if isinstance(cut, nn.Conv2d) and cut.stride == cut.kernel_size == (side, side) else 1
