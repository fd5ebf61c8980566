"""Features of a batch of images: class tokens or a model's own pooling, without the work that they do not need."""

import copy
from pathlib import Path
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import nn

from data_selection.common.errors import UserError
from data_selection.embedding.packed_blocks import PackedBlock, can_pack, exactly
from data_selection.embedding.vit_parts import Attention, Block, ViT


def class_tokens(
    model: nn.Module, images: torch.Tensor, n_last_blocks: int = 1, avgpool_patchtokens: bool = False
) -> torch.Tensor:
    """ViT features of images (B, 3, H, W): (B, n_last_blocks * D), or (B, 2 * D) with the mean patch token.

    The class tokens of the last n blocks, each after the final norm, the oldest first. With avgpool_patchtokens the
    class token and the mean of the last block's normed patch tokens are interleaved element by element (cls0, avg0,
    cls1, avg1, ...), as in the released code, which crashes with n_last_blocks > 1; here that is a UserError, and so is
    a ViT without class token.
    """
    vit = cast(ViT, model)
    if vit.cls_token is None:  # the first token is a register or a patch then
        raise UserError("this backbone has no class token: leave out --n_last_blocks and --avgpool_patchtokens")
    if n_last_blocks < 1 or n_last_blocks > len(vit.blocks):
        raise UserError(f"n_last_blocks {n_last_blocks} is outside 1..{len(vit.blocks)}, the blocks of this backbone")
    if avgpool_patchtokens and n_last_blocks > 1:
        raise UserError(f"avgpool_patchtokens goes with n_last_blocks 1, not {n_last_blocks}: choose one of the two")
    if avgpool_patchtokens:
        tokens = vit.forward_features(images)  # (B, prefix + patches, D), after the final norm
        return torch.stack([tokens[:, 0], tokens[:, vit.num_prefix_tokens :].mean(dim=1)], dim=-1).flatten(1)
    if is_plain_vit(model):
        return torch.cat([vit.norm(token) for token in _raw_class_tokens(model, images)[-n_last_blocks:]], dim=-1)
    if n_last_blocks == 1:
        return vit.forward_features(images)[:, 0]
    blocks = vit.get_intermediate_layers(images, n=n_last_blocks, return_prefix_tokens=True, norm=True)
    return torch.cat([prefix[:, 0] for _, prefix in blocks], dim=-1)  # (B, n * D)


def _raw_class_tokens(model: ViT, images: torch.Tensor) -> list[torch.Tensor]:
    """The class token (B, D) after each block of a plain ViT, before the final norm."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))  # (B, prefix + patches, D)
    kept = []
    for block in model.blocks[:-1]:
        x = block(x)
        kept.append(x[:, 0])
    return [*kept, _last_class_token(model.blocks[-1], x)]


def _last_class_token(block: Block, x: torch.Tensor) -> torch.Tensor:
    """The class token (B, D) of block(x), x (B, T, D), without any other token's query, key or value.

    A query's product with a key W n + b is that of (query W) with the normed token n, but for a number that is the same
    for all tokens and drops out of softmax; the mean of values W n + b is W (mean of n) + b.
    """
    attention, heads = block.attn, (block.attn.num_heads, -1)
    of_query, of_key, of_value = attention.qkv.weight.chunk(3)  # (D, D)
    query_bias, _, value_bias = attention.qkv.bias.chunk(3)
    normed = block.norm1(x).to(of_query.dtype)
    query = F.linear(normed[:, 0], of_query, query_bias).unflatten(-1, heads)  # (B, heads, D / heads)
    query = torch.einsum("bhd,hde->bhe", query, of_key.unflatten(0, heads)) * attention.scale  # (B, heads, D)
    mean = (query @ normed.transpose(1, 2)).softmax(dim=-1) @ normed  # (B, heads, D)
    mixed = torch.einsum("bhe,hde->bhd", mean, of_value.unflatten(0, heads)).flatten(1) + value_bias  # (B, D)
    token = x[:, 0] + block.ls1(attention.proj(mixed))
    return token + block.ls2(block.mlp(block.norm2(token)))


def pooled(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features (B, D) of a timm model without classifier: its own pooling."""
    features: torch.Tensor = model(images)
    return features


def is_plain_vit(model: nn.Module) -> TypeGuard[ViT]:
    """Whether model is timm's VisionTransformer with its usual blocks, whose parts are known here."""
    from timm.models import vision_transformer as timm_vit  # slow to import: --help must not wait for it

    if not exactly(model, timm_vit.VisionTransformer):
        return False
    blocks = cast(ViT, model).blocks
    if not all(exactly(block, timm_vit.Block) for block in blocks):
        return False
    layers = [block.attn for block in blocks]
    if not all(exactly(layer, timm_vit.Attention) for layer in layers):
        return False
    extras = [part for layer in layers for name, part in layer.named_children() if name not in ("qkv", "proj")]
    usual = all(layer.qkv.bias is not None and layer.qkv.out_features == 3 * layer.qkv.in_features for layer in layers)
    return usual and all(exactly(part, nn.Identity, nn.Dropout) for part in extras)


def ready(
    model: nn.Module, device: torch.device, amp_dtype: torch.dtype | None = None, compiled: bool = False
) -> nn.Module:
    """model on device in evaluation mode, to be called under torch.autocast(amp_dtype); may be a copy.

    A plain ViT holds its matrices in amp_dtype then: autocast would round them to the same values at every batch. On a
    CPU its attention is written out, and in bf16 all blocks but the last are packed where they can be, unless compiled:
    torch.compile packs them itself.
    """
    model = model.eval().to(device).to(memory_format=memory_layout(model))
    if amp_dtype is None or not is_plain_vit(model):
        return model
    model = copy.deepcopy(model)
    if device.type == "cpu" and amp_dtype == torch.bfloat16 and not compiled and all(map(can_pack, model.blocks[:-1])):
        model.register_module("blocks", nn.Sequential(*map(PackedBlock, model.blocks[:-1]), model.blocks[-1]))
    for module in model.modules():
        if exactly(module, nn.Linear, nn.Conv2d):
            module.to(amp_dtype)
    if device.type == "cpu":
        write_out_attention(model)
    return model


def write_out_attention(model: nn.Module) -> None:
    """Let timm's attention layers multiply their matrices one by one.

    In bf16 on a CPU this takes half the time of the fused call with 197 tokens; where a backward pass follows, which
    takes half of a training step in the fused call, a fifteenth.
    """
    for layer in model.modules():
        if getattr(layer, "fused_attn", False):
            cast(Attention, layer).fused_attn = False


def memory_layout(model: nn.Module) -> torch.memory_format:
    """channels_last for networks of convolutions, whose kernels are faster in it; a ViT has but one convolution."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolutions > 1 else torch.contiguous_format


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bf16 (x86: AVX512_BF16 or AMX; ARM: bf16); elsewhere float32 is faster."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: not known
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(text.split())
