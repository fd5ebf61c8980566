"""Class tokens without the last block's patch tokens are timm's; half precision is autocast's, bit for bit."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from data_selection.embedding import class_tokens, is_plain_vit, pooled, ready, write_out_attention
from data_selection.errors import UserError

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_autocasts(dtype):
    """The rounded matrices change nothing, and the caller's model stays as it was."""
    model, x = small_vit(), images()
    before, plain = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    write_out_attention(plain)
    with torch.autocast("cpu", dtype):
        half = ready(model, CPU, dtype)
        assert torch.equal(class_tokens(half, x), class_tokens(plain, x))
        assert torch.equal(class_tokens(half, x, avgpool_patchtokens=True),
                           class_tokens(plain, x, avgpool_patchtokens=True))  # fmt: skip
    assert half.blocks[0].mlp.fc1.weight.dtype == dtype
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.blocks[0].attn.fused_attn


def test_other_models_are_left_to_autocast():
    model = timm.create_model("resnet10t", num_classes=0)
    assert ready(model, CPU, torch.bfloat16) is model
    assert ready(small_vit(), CPU).blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert pooled(model, torch.zeros(1, 3, 32, 32)).shape == (1, 512)
