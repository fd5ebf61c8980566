"""Which pixels a model sees: timm's own transform bit by bit, margins, and extraction at another size."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.layers import resample_abs_pos_embed

from data_selection.commands.extract import main_extract
from data_selection.common.errors import UserError, run
from data_selection.embedding import preprocessing
from data_selection.embedding.backbones import build_model
from data_selection.embedding.forward import pooled
from data_selection.embedding.image_batches import View, to_input
from data_selection.embedding.preprocessing import DEMO_PREPROCESS, DINO_PREPROCESS, Preprocess, preprocess_of
from data_selection.images.pools import Pool, open_pool
from deit.samples.pipeline import Pipeline
from tests.support.extraction_cases import save

CPU = torch.device("cpu")
SIZES = {  # (width, height)
    "wide": (311, 97), "tall": (90, 233), "small": (31, 20), "equal": (64, 64), "twice": (195, 390), "half": (110, 55),
}  # fmt: skip
NAMES = ("resnet18", "deit_small_patch16_224", "test_vit", "dla34", "dm_nfnet_f0", "vit_small_patch14_dinov2")


def picture(width, height, seed=0):
    """A PIL image of random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def timms(name, size=None):
    """The transform that timm makes of what it holds for a model."""
    asked = {} if size is None else {"input_size": (3, size, size)}
    config = resolve_data_config(asked, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return create_transform(**config, is_training=False)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_timms_transform(name, kind):
    image = picture(*SIZES[kind])
    for size in (None, 33, 96):
        view, expected = preprocess_of(name, size), timms(name, size)(image)
        ours = Pipeline(view.size, view.mean, view.std, view=view).eval_transform()(image)
        assert torch.equal(ours, expected), (size, ours.shape, expected.shape)
        fed = to_input(View(view)(image)[None], view, CPU)[0]  # extraction's way to normalise rounds differently
        torch.testing.assert_close(fed, expected, atol=1e-6, rtol=1e-5)


def test_the_names_that_are_not_timms_keep_the_released_pixels():
    image = picture(*SIZES["wide"])
    for name in ("vit_tiny", "vit_small", "vit_base"):
        assert preprocess_of(name) == DINO_PREPROCESS
    assert preprocess_of("demo_vit") == DEMO_PREPROCESS
    squashed = np.asarray(image.resize((40, 40), Image.Resampling.BICUBIC))
    assert np.array_equal(preprocess_of("vit_small", 40).pixels(image), squashed)
    assert preprocess_of("timm:resnet18") == preprocess_of("resnet18")


def test_an_unknown_model_is_named_with_its_neighbours():
    with pytest.raises(UserError, match=r"unknown backbone 'timm:resnet1': .*close: resnet18"):
        preprocess_of("timm:resnet1")
    with pytest.raises(UserError, match=r"no weights called resnet10t\.nothere \(known: resnet10t\.c3_in1k\)"):
        preprocess_of("resnet10t.nothere")


def reflected(places, side):
    """Places beyond 0..side - 1 mirrored at the border pixels, which are not repeated."""
    return np.array([abs(p) if p < side else 2 * (side - 1) - p for p in places])


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("margin", [1, 3, 9])
def test_a_margin_lies_around_the_view_and_reflects_where_the_image_ends(kind, squash, margin):
    """crop 0.8 of 28 pixels: a short side of 35, so 3 pixels of the image are left on that side, then none."""
    view, image = Preprocess(28, interpolation="bilinear", crop=0.8, squash=squash), picture(*SIZES[kind])
    framed = view.pixels(image, margin)
    assert framed.shape == (28 + 2 * margin, 28 + 2 * margin, 3)
    assert np.array_equal(framed[margin:-margin, margin:-margin], view.pixels(image))
    whole = np.asarray(image.resize(view.resized(*image.size), Image.Resampling.BILINEAR))
    assert min(whole.shape[:2]) == 35
    assert (whole.shape[0] == whole.shape[1]) == (squash or kind == "equal")
    rows, columns = (
        reflected(range(round((side - 28) / 2) - margin, round((side - 28) / 2) + 28 + margin), side)
        for side in whole.shape[:2]
    )
    assert np.array_equal(framed, whole[rows][:, columns])


def test_of_a_very_thin_image_only_what_is_seen_is_resized(monkeypatch):
    """Its short side as long as the view's, it would have millions of rows: 6.4 GB for a file of some hundred bytes."""
    view, sizes, whole = Preprocess(28, crop=0.8, squash=False), [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *more: sizes.append(size) or whole(self, size, *more))
    for size in ((1, 20_000), (20_000, 1)):
        assert view.pixels(picture(*size), 3).shape == (34, 34, 3)
    assert max(max(size) for size in sizes) <= 34
    for place, size in enumerate(((2, 400), (400, 2), (3, 1000))):
        image = picture(*size, seed=place)
        monkeypatch.setattr(preprocessing, "THIN", 100)
        part = view.pixels(image, 9).astype(int)
        monkeypatch.setattr(preprocessing, "THIN", 10**9)
        # Pillow's two passes may come in another order, between which it cuts off what is beyond black and white
        assert np.abs(part - view.pixels(image, 9)).mean() < 3


def test_pixels_can_be_written_to_and_leave_the_image_alone():
    image = picture(28, 28)
    before = np.array(image)
    pixels = Preprocess(28).pixels(image)
    pixels[:] = 0
    assert np.array_equal(np.asarray(image), before)


VIEWS = {
    "bicubic, a part": Preprocess(40, crop=0.9, squash=False), "bilinear": Preprocess(40, interpolation="bilinear"),
    "squashed": Preprocess(33, crop=0.95, squash=True), "as it is": Preprocess(24),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 3), (20, 32, 3)])
@pytest.mark.parametrize("kind", VIEWS)
def test_arrays_and_files_give_the_same_features_bit_by_bit(tmp_path, kind, shape):
    """Square arrays are resized in whole batches, everything else by PIL."""
    arrays = np.random.default_rng(1).integers(0, 256, (5, *shape), dtype=np.uint8)
    (tmp_path / "files").mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "files" / f"{i}.png")
    torch.manual_seed(0)
    settings = {"preprocess": VIEWS[kind], "embed": pooled, "batch_size": 3}
    backbone = build_model("test_resnet").eval()
    held = save(Pool(arrays=arrays), backbone, tmp_path / "held.npy", **settings)
    read = save(open_pool(str(tmp_path / "files")), backbone, tmp_path / "read.npy", **settings)
    assert np.array_equal(held, read)
    with torch.inference_mode():
        one = backbone(to_input(View(VIEWS[kind])(Image.fromarray(arrays[4]).convert("RGB"))[None], VIEWS[kind], CPU))
    np.testing.assert_allclose(held[4, :-1], one[0].numpy(), atol=1e-5)


def extracted(folder, out, arch, weights, *flags):
    """(table, provenance, exit status) of extract_feature.py on a folder of images."""
    words = ["--dataset", str(folder), "--arch", arch, "--pretrained_weights", str(weights), "--output_dir", str(out)]
    status = run(main_extract, [*words, "--device", "cpu", "--num_workers", "0", "--amp", "off", *flags])
    if status:
        return None, None, status
    told = json.loads((out / f"{folder.name}_train.provenance.json").read_text())
    return np.load(out / f"{folder.name}_train.npy")[:, :-1], told, status


@pytest.fixture
def two(tmp_path):
    """A folder of two images, wide and tall."""
    (tmp_path / "two").mkdir()
    for i, kind in enumerate(("wide", "tall")):
        picture(*SIZES[kind], seed=i).save(tmp_path / "two" / f"{i}.png")
    return tmp_path / "two"


@pytest.mark.parametrize(
    ("arch", "name", "size"),
    [("test_vit", "test_vit", 96), ("timm:test_resnet", "test_resnet", 96), ("vit_tiny", "deit_tiny_patch16_224", 64)],
)
def test_another_input_size_reaches_the_model_and_its_position_embedding(tmp_path, two, arch, name, size, capsys):
    torch.manual_seed(0)
    state = timm.create_model(name, num_classes=0).state_dict()
    torch.save(state, tmp_path / "w.pth")
    plain, told, _ = extracted(two, tmp_path / "plain", arch, tmp_path / "w.pth")
    other, told_other, _ = extracted(two, tmp_path / "other", arch, tmp_path / "w.pth", "--input_size", str(size))
    own = timm.get_pretrained_cfg(name).input_size[-1]
    assert (told["preprocess"]["size"], told_other["preprocess"]["size"]) == (own, size)
    assert np.abs(plain - other).max() > 1e-3

    sides = {"img_size": size} if "vit" in name or "deit" in name else {}
    theirs = timm.create_model(name, num_classes=0, **sides).eval()
    if sides:
        prefix = getattr(theirs, "num_prefix_tokens", 1) if not theirs.no_embed_class else 0
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], new_size=[size // 16] * 2, num_prefix_tokens=prefix
        )
        assert "position embedding resampled" in capsys.readouterr().out
    theirs.load_state_dict(state)
    images = [Image.open(two / f"{i}.png") for i in range(2)]
    if arch == "vit_tiny":
        view = DINO_PREPROCESS
        batch = [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]
        batch = np.stack(batch) / np.float32(255)
        batch = torch.from_numpy((batch - np.float32(view.mean)) / np.float32(view.std)).permute(0, 3, 1, 2)
    else:
        batch = torch.stack([timms(name, size)(image) for image in images])
    with torch.inference_mode():
        np.testing.assert_allclose(other, theirs(batch).numpy(), atol=1e-4)


@pytest.mark.parametrize(("arch", "size"), [("demo_vit", 30), ("test_vit", 100), ("vit_tiny", 100)])
def test_a_size_that_the_backbone_does_not_take_is_named(tmp_path, two, arch, size, capsys):
    torch.save(build_model(arch).state_dict(), tmp_path / "w.pth")
    status = extracted(two, tmp_path / "out", arch, tmp_path / "w.pth", "--input_size", str(size))[2]
    assert status == 2
    assert f"--arch {arch} does not take --input_size {size}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
