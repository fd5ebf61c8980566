"""Names and types of the parts of timm's ViTs that are used here: timm's annotations call them modules, or nothing.

For annotations alone; no object is of these classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn


class Attention(nn.Module):
    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    scale: float
    fused_attn: bool


class Mlp(nn.Module):
    fc1: nn.Linear
    act: nn.GELU
    norm: nn.Module
    fc2: nn.Linear


class Block(nn.Module):
    norm1: nn.Module
    attn: Attention
    ls1: nn.Module
    norm2: nn.Module
    mlp: Mlp
    ls2: nn.Module


class ViT(nn.Module):
    cls_token: nn.Parameter | None
    num_prefix_tokens: int
    patch_embed: nn.Module
    patch_drop: nn.Module
    norm_pre: nn.Module
    blocks: Sequence[Block]
    norm: nn.Module
    _pos_embed: Callable[[torch.Tensor], torch.Tensor]
    forward_features: Callable[[torch.Tensor], torch.Tensor]
    get_intermediate_layers: Callable[..., list[tuple[torch.Tensor, torch.Tensor]]]
