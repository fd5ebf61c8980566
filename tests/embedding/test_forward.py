"""Class tokens without the last block's patch tokens are timm's; half precision is as near to float32 as autocast's."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data_selection.common.errors import UserError
from data_selection.embedding import packed_blocks
from data_selection.embedding.forward import class_tokens, is_plain_vit, pooled, ready
from data_selection.embedding.packed_blocks import PackedBlock, can_pack

CPU = torch.device("cpu")


def small_vit(**options):
    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 0}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = VisionTransformer(**sizes | options).eval()
        for parameter in model.parameters():  # biases and layer scales start at values that could hide a mistake
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def images(count=5):
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"init_values": 0.1, "reg_tokens": 2, "pre_norm": True}, True),
        ({"depth": 1}, True),
        ({"qk_norm": True}, False),
        ({"qkv_bias": False}, False),
    ],
)
@torch.inference_mode()
def test_class_tokens_are_timms(options, plain):
    model, x = small_vit(**options), images()
    assert is_plain_vit(model) is plain
    assert torch.allclose(class_tokens(model, x), model.forward_features(x)[:, 0], atol=1e-5)
    for count in range(1, len(model.blocks) + 1):
        blocks = model.get_intermediate_layers(x, n=count, return_prefix_tokens=True, norm=True)
        expected = torch.cat([prefix[:, 0] for _, prefix in blocks], dim=1)
        assert torch.allclose(class_tokens(model, x, n_last_blocks=count), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"n_last_blocks": 2}, {"avgpool_patchtokens": True}])
def test_a_vit_without_class_token_is_refused(options):
    for registers in (0, 2):  # the first token is a patch, or a register
        model = small_vit(class_token=False, reg_tokens=registers, global_pool="avg")
        with pytest.raises(UserError, match="no class token"):
            class_tokens(model, images(), **options)


def test_a_subclass_with_its_own_forward_is_not_plain():
    assert not is_plain_vit(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=0))


def distance(found, expected):
    """Norm of the difference as a fraction of the norm of expected."""
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_as_near_as_autocasts(dtype, compiled):
    """And the caller's model stays as it was."""
    model, x = small_vit(), images(32)
    before, exact = copy.deepcopy(model.state_dict()), model.forward_features(x)
    half = ready(model, CPU, dtype, compiled)
    with torch.autocast("cpu", dtype):
        timms = distance(model.forward_features(x)[:, 0], exact[:, 0])
        assert distance(class_tokens(half, x), exact[:, 0]) < 1.3 * timms
        assert distance(half.forward_features(x), exact) < 1.3 * timms
    assert half.blocks[-1].mlp.fc1.weight.dtype == dtype
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.blocks[0].attn.fused_attn


packs = pytest.mark.skipif(not can_pack(small_vit().blocks[0]), reason="this processor has no bf16 products of oneDNN")


@packs
@pytest.mark.parametrize(
    "options",
    [{}, {"init_values": 0.1}, {"proj_bias": False}, {"act_layer": partial(nn.GELU, approximate="tanh")}],
)
@torch.inference_mode()
def test_packed_blocks_are_timms(options):
    block, x = small_vit(**options).blocks[0], torch.randn(4, 17, 48, generator=torch.Generator().manual_seed(3))
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        found, timms = PackedBlock(block)(x), block(x)
    assert found.dtype == torch.float32
    assert distance(found, expected) < 1.3 * distance(timms, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"init_values": 0.1}, {"proj_bias": False}, {"act_layer": partial(nn.GELU, approximate="tanh")}],
)
@torch.inference_mode()
def test_the_steps_of_a_packed_block_are_timms_on_every_processor(options, monkeypatch):
    """Those between the products, which are float32 here."""

    def packed(linear, scale=1.0):
        scale = torch.as_tensor(scale)
        return linear.weight * scale[..., None], None if linear.bias is None else linear.bias * scale

    def product(x, layer, activation="none", algorithm=""):
        x = nn.functional.linear(x, *layer)
        return nn.functional.gelu(x, approximate=algorithm) if activation == "gelu" else x

    monkeypatch.setattr(packed_blocks, "packed", packed)
    monkeypatch.setattr(packed_blocks, "product", product)
    block, x = small_vit(**options).blocks[0], torch.randn(4, 17, 48, generator=torch.Generator().manual_seed(3))
    assert distance(PackedBlock(block)(x), block(x)) < 1e-5


@packs
@pytest.mark.parametrize("options", [{"mlp_layer": SwiGLU}, {"act_layer": nn.SiLU}, {"scale_mlp_norm": True}])
def test_other_blocks_are_not_packed(options):
    assert not can_pack(small_vit(**options).blocks[0])


@packs
@torch.inference_mode()
def test_every_block_is_looked_at():
    model = small_vit()
    model.blocks[0].mlp.act = nn.SiLU()
    assert not any(isinstance(block, PackedBlock) for block in ready(model, CPU, torch.bfloat16).blocks)
    model.blocks[0].attn.q_norm = nn.LayerNorm(12)
    assert not is_plain_vit(model)


@packs
@torch.inference_mode()
def test_a_model_in_half_precision_is_packed():
    half = ready(small_vit().bfloat16(), CPU, torch.bfloat16)
    assert isinstance(half.blocks[0], PackedBlock)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(class_tokens(half, images())).all()


@pytest.mark.parametrize(
    "wrong", [AttributeError("no such operator"), RuntimeError("no such schema"), torch.zeros(1, 192)]
)
def test_without_working_products_nothing_is_packed(wrong, monkeypatch):
    def product(*_):
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    monkeypatch.setattr(packed_blocks, "product", product)
    half = ready(small_vit(), CPU, torch.bfloat16)
    assert not any(isinstance(block, PackedBlock) for block in half.blocks)


def test_other_models_are_left_to_autocast():
    model = timm.create_model("resnet10t", num_classes=0)
    assert ready(model, CPU, torch.bfloat16) is model
    assert ready(small_vit(), CPU).blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert pooled(model, torch.zeros(1, 3, 32, 32)).shape == (1, 512)
