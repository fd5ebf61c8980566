"""Training and evaluation see images as extraction does: upright, and over the same background."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_selection.images import pools
from deit.main import main
from deit.predicting import predict
from tests.support.flag_runs import ROWS
from tests.support.trainer_runs import checkpoint, few_shot

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS["background"] = "test_a_checkpoint_remembers_the_background"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two shapes by transparency alone: every pixel is red; and a file that is not read."""
    root = tmp_path_factory.mktemp("shapes")
    for part in ("train", "val"):
        for i in range(8):
            image = np.zeros((28, 28, 4), np.uint8)
            image[..., 0] = 255
            image[: 14 + i % 3, :, 3] = 255
            image = image if i % 2 else image[::-1]
            path = root / part / ("low", "high")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(path)
        (root / part / "low" / "x.heic").write_bytes(b"")
    return root


def seen(monkeypatch, run):
    """The top left and bottom left pixels of every image that is read meanwhile."""
    found, real = [], pools.read_image

    def noted(*words):
        image = real(*words)
        found.append((image.getpixel((0, 0)), image.getpixel((0, 27))))
        return image

    with monkeypatch.context() as patch:
        patch.setattr(pools, "read_image", noted)
        run()
    return {colour for pair in found for colour in pair}


def test_a_checkpoint_remembers_the_background(images, tmp_path, monkeypatch, capsys):
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    flags = {"folds": None, "global_batch_size": None, "model": "demo_vit", "mode": "linear",
             "lr": None, "epochs": None, "finetune": "none",
             "input_size": 28}  # fmt: skip

    def train(name, *words):
        plain = few_shot(images, tmp_path / name, **flags)
        return seen(monkeypatch, lambda: main([*plain, *words]))

    assert train("white") == {red, white}
    assert (
        "warning: left out of the training images: 1 .heic, not read by the installed Pillow" in capsys.readouterr().out
    )
    assert train("blue", "--background", "blue") == {red, blue}
    args = checkpoint(tmp_path / "blue")["args"]
    assert (args["background"], args["preprocess"]["background"]) == ("#0000ff", "#0000ff")
    saved = str(tmp_path / "blue" / "checkpoint.pth")
    words = ["--eval", "--resume", saved, "--data-set", "FOLDER", "--data-path", str(images)]
    assert seen(monkeypatch, lambda: main(words)) == {red, blue}
    assert "--background #0000ff" in capsys.readouterr().out
    assert seen(monkeypatch, lambda: predict(saved, images / "val", log=str)) == {red, blue}
    assert seen(monkeypatch, lambda: main([*words, "--background", "white"])) == {red, white}


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_photographs_stand_upright_in_training(tmp_path, cache):
    from deit.datasets import prepare
    from deit.samples.pipeline import Pipeline

    exif = Image.Exif()
    exif[0x0112] = 8
    picture = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png", exif=exif)
    pool = pools.Pool(paths=[str(tmp_path / "x.png")], labels=[0])
    pipeline = Pipeline(28, (0.0,) * 3, (1.0,) * 3)
    data = prepare(pool, [0], pipeline, torch.device("cpu"), train=False, cache=cache, workers=0)
    ((batch, _),) = data.plain(range(1), 1)
    assert np.array_equal((batch[0] * 255).round().permute(1, 2, 0).numpy(), np.rot90(picture))
