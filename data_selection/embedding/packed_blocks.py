"""The blocks of a ViT for bf16 on a CPU: the same products with less work around them."""

import torch
from torch import nn

from data_selection.embedding.vit_parts import Block

BF16 = torch.bfloat16
Packed = tuple[torch.Tensor, torch.Tensor | None]  # weight in oneDNN's order, bias


class PackedBlock(nn.Module):
    """One of timm's blocks for features alone, to be called under torch.autocast(bf16) on a CPU.

    Its weights are in oneDNN's order, not put into it at every call; bias and GELU are applied before a product leaves
    the registers. The scale of attention is in the queries' weights, layer scales are in the weights before them.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, self.norm1, self.norm2 = block.attn, block.norm1, block.norm2
        self.heads, self.activation = attention.num_heads, block.mlp.act.approximate
        scale = torch.ones(3, attention.qkv.in_features)
        scale[0] = attention.scale
        self.qkv, self.proj = packed(attention.qkv, scale.flatten()), packed(attention.proj, layer_scale(block.ls1))
        self.fc1, self.fc2 = packed(block.mlp.fc1), packed(block.mlp.fc2, layer_scale(block.ls2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T, D), float32, before and after the block."""
        x = x + product(self.attend(self.norm1(x)), self.proj)
        return x + product(product(self.norm2(x), self.fc1, "gelu", self.activation), self.fc2)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Mean values (B, T, D) of all heads, of normed tokens x (B, T, D)."""
        qkv = product(x, self.qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.contiguous()  # (B, heads, T, D / heads)
        scores = query @ key.transpose(-2, -1)  # (B, heads, T, T)
        # softmax in float32 takes half the time of bf16 with 17 tokens, the same with 197
        return (scores.softmax(dim=-1, dtype=torch.float32) @ value).transpose(1, 2).flatten(2)


@torch.no_grad()
def packed(linear: nn.Linear, scale: torch.Tensor | float = 1.0) -> Packed:
    """Weight and bias in bf16 of a linear layer whose outputs are multiplied by scale."""
    scale = torch.as_tensor(scale)
    weight = (linear.weight * scale[..., None]).to(BF16)
    bias = None if linear.bias is None else (linear.bias * scale).to(BF16)
    return torch.ops.mkldnn._reorder_linear_weight(weight), bias


def product(x: torch.Tensor, layer: Packed, activation: str = "none", algorithm: str = "") -> torch.Tensor:
    """Outputs in bf16 of a packed layer; algorithm: GELU's, in timm's words, for activation `gelu`."""
    weight, bias = layer
    return torch.ops.mkldnn._linear_pointwise(x.to(BF16), weight, bias, activation, [], algorithm)


def layer_scale(module: nn.Module) -> torch.Tensor | float:
    """The factors (D,) of one of timm's layer scales, or one where there is none."""
    return getattr(module, "gamma", 1.0)


def exactly(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of these classes, not of one that was made from them."""
    return type(module) in kinds


@torch.no_grad()
def can_pack(block: Block) -> bool:
    """Whether PackedBlock knows the MLP of this block of a plain ViT, and PyTorch and the processor have its products.

    They are what torch.compile uses, but no release of PyTorch promises them: one is compared with the usual way.
    """
    from timm.layers import Mlp  # slow to import: --help must not wait for it

    mlp = block.mlp
    if not (exactly(mlp, Mlp) and exactly(mlp.act, nn.GELU) and exactly(mlp.norm, nn.Identity)):
        return False
    x = mlp.fc1.weight.new_ones(1, mlp.fc1.in_features)
    expected = mlp.act(mlp.fc1(x)).float()
    try:
        found = product(x, packed(mlp.fc1), "gelu", mlp.act.approximate).float()
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and bool((found - expected).norm() < 0.05 * expected.norm())
    except (AttributeError, RuntimeError):
        return False
