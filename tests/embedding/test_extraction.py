"""Extraction's values: timm's features, row by row, whatever the batch size and the way to the pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.embedding import table_writer
from data_selection.embedding.extraction import check_labels
from data_selection.embedding.forward import class_tokens
from data_selection.embedding.image_batches import View, resize, to_input
from data_selection.embedding.preprocessing import Preprocess
from data_selection.embedding.table_writer import TableWriter, runs
from data_selection.images.pools import load_demo, open_pool
from data_selection.images.record import list_digest
from tests.support.extraction_cases import ALONE, COUNT, oracle, save, small_pool


def test_features_are_timms_and_labels_come_last(model, tmp_path):
    table = save(small_pool(), model, tmp_path / "t.npy")
    assert (table.shape, table.dtype) == ((COUNT, 193), np.float32)
    assert np.abs(table[:, :-1] - oracle(model, load_demo()["train_images"][:COUNT])).max() < 1e-4
    assert load_features(tmp_path / "t.npy").labels.tolist() == load_demo()["train_labels"][:COUNT].tolist()


@pytest.mark.parametrize("batch_size", [1, 7, 70, 128])
def test_any_batch_size(model, tmp_path, batch_size):
    tables = [save(small_pool(), model, tmp_path / f"{b}.npy", batch_size=b) for b in (16, batch_size)]
    assert np.abs(tables[0] - tables[1]).max() < 1e-5


def test_folder_equals_arrays(model, tmp_path, folder):
    """Decoded by workers or here, the same pixels give the same rows."""
    arrays = save(small_pool(), model, tmp_path / "arrays.npy")
    for workers in (0, 2):
        table = save(open_pool(str(folder)), model, tmp_path / f"files{workers}.npy", num_workers=workers)
        assert np.array_equal(table[:, :-1], arrays[:, :-1])
        assert (table[:, -1] == -1).all()
    opened = load_features(tmp_path / "files0.npy")
    assert opened.labels is None
    assert opened.names == tuple(f"{i:03}.png" for i in range(COUNT))


@pytest.mark.parametrize(("old", "new"), [(32, 224), (28, 224), (32, 28), (57, 16), (28, 28), (500, 333)])
def test_resize_is_pils_bit_for_bit(old, new):
    images = torch.randint(0, 256, (3, old, old, 3), generator=torch.Generator().manual_seed(old), dtype=torch.uint8)
    expected = torch.stack([View(Preprocess(new))(Image.fromarray(image.numpy())) for image in images])
    assert torch.equal(resize(images.permute(0, 3, 1, 2), new), expected)


def test_input_is_torchvisions_pipeline():
    """The documented pipeline: Resize((224, 224), bicubic), ToTensor, Normalize."""
    from torchvision import transforms

    preprocess = Preprocess(224)
    plain = transforms.Compose([
        transforms.Resize((224, 224), interpolation=transforms.InterpolationMode.BICUBIC), transforms.ToTensor(),
        transforms.Normalize(preprocess.mean, preprocess.std),
    ])  # fmt: skip
    colours = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for images in (colours, load_demo()["train_images"][:2]):
        expected = torch.stack([plain(Image.fromarray(image).convert("RGB")) for image in images])
        assert torch.allclose(to_input(torch.from_numpy(images), preprocess, torch.device("cpu")), expected, atol=1e-6)


def test_last_blocks_and_patch_mean(model):
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    kept = []
    hooks = [block.register_forward_hook(lambda m, i, out: kept.append(out)) for block in model.blocks]
    with torch.inference_mode():
        tokens = model.forward_features(x)
        for hook in hooks:
            hook.remove()
        expected = torch.cat([model.norm(out)[:, 0] for out in kept[-3:]], dim=1)
        assert torch.allclose(class_tokens(model, x, n_last_blocks=3), expected, atol=1e-6)
        both = class_tokens(model, x, avgpool_patchtokens=True)
    assert both.shape == (2, 384)
    assert torch.equal(both[:, 0::2], tokens[:, 0])
    assert torch.allclose(both[:, 1::2], tokens[:, 1:].mean(1))
    with pytest.raises(UserError, match=r"n_last_blocks 5 is outside 1\.\.4"):
        class_tokens(model, x, n_last_blocks=5)
    with pytest.raises(UserError, match="goes with n_last_blocks 1, not 2"):
        class_tokens(model, x, n_last_blocks=2, avgpool_patchtokens=True)


def test_values_that_are_not_finite(model, tmp_path):
    def broken(model, images):
        features = class_tokens(model, images)
        features[-1, 5] = torch.nan
        return features

    with pytest.raises(UserError, match="features of image 15 are not finite in float32"):
        save(small_pool(), model, tmp_path / "t.npy", embed=broken)
    with pytest.raises(UserError, match="image 0 are not finite in float16"):
        save(small_pool(), model, tmp_path / "u.npy", embed=lambda m, x: class_tokens(m, x) + 1e6, dtype="float16")


def test_float16_and_its_labels(model, tmp_path):
    table = save(small_pool(), model, tmp_path / "t.npy", dtype="float16")
    assert table.dtype == np.float16
    assert np.abs(table[:, :-1] - oracle(model, load_demo()["train_images"][:COUNT])).max() < 4e-3
    check_labels([2048], "float16")
    with pytest.raises(UserError, match="labels up to 2049 do not fit float16"):
        check_labels([2049], "float16")
    check_labels([2**24], "float32")
    with pytest.raises(UserError, match=r"labels up to 16777217 do not fit float32 .*: use --dtype float64, or number"):
        check_labels([2**24 + 1], "float32")
    check_labels([2**53], "float64")
    with pytest.raises(UserError, match=r"the label 9007199254740993 is too large: number the classes from 0"):
        check_labels([3, 2**53 + 1], "float64")


def test_bad_images(model, tmp_path, folder):
    broken = tmp_path / "broken"
    broken.mkdir()
    for source in folder.iterdir():
        (broken / source.name).write_bytes(source.read_bytes()[: 40 if source.name in ("003.png", "069.png") else None])
    pool = open_pool(str(broken))
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"003.png cannot be read .*--on_error skip"):
            save(pool, model, tmp_path / f"stop{workers}.npy", num_workers=workers)
    lines = []
    table = save(pool, model, tmp_path / "t.npy", on_error="skip", log=lines.append)
    whole = save(small_pool(), model, tmp_path / "whole.npy")
    kept = [i for i in range(COUNT) if i not in (3, 69)]
    assert np.abs(table[:, :-1] - whole[kept, :-1]).max() < 1e-5
    assert load_features(tmp_path / "t.npy").names == tuple(f"{i:03}.png" for i in kept)
    assert (tmp_path / "t.skipped.txt").read_text() == "003.png\n069.png\n"
    assert len(lines) == 2
    save(open_pool(str(folder)), model, tmp_path / "t.npy", on_error="skip")
    assert not (tmp_path / "t.skipped.txt").exists()


def test_a_bad_first_image_is_skipped_under_any_preprocessing(model, tmp_path, folder):
    (tmp_path / "bad.png").write_bytes(b"x")
    (tmp_path / "l.txt").write_text(f"{tmp_path}/bad.png\n{folder}/000.png\n")
    pool = open_pool(str(tmp_path / "l.txt"))
    for transform in (None, lambda image: View(Preprocess(28))(image).float()):
        assert save(pool, model, tmp_path / "t.npy", transform=transform, on_error="skip").shape == (1, 193)


def test_the_digest_of_a_long_list_is_of_all_of_it():
    names = [f"{i}.png" for i in range(2000)]
    for place in (0, 1023, 1024, 1999):
        assert list_digest([*names[:place], "other", *names[place + 1 :]]) != list_digest(names)
    assert list_digest(names[:-1]) != list_digest(names) == list_digest(tuple(names))


def test_rows_are_copied_in_pieces_without_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(table_writer, "COPY_ROWS", 4)
    table = np.arange(33, dtype=np.float32).reshape(11, 3)
    with TableWriter(tmp_path / "t.npy", (11, 3), "float32", {}, ALONE) as writer:
        writer.write(0, table, skipped=[2])
        assert writer.finish(files=[f"{i}.png" for i in range(11)]) == 10
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), np.delete(table, 2, axis=0))
    pieces = [piece.tolist() for piece in runs(np.array([0, 1, 2, 3, 4, 7, 8]), 2)]
    assert pieces == [[0, 1], [2, 3], [4], [7, 8]]
