"""What several test files share: random demo weights, a folder of demo images, one thread."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data_selection.embedding.backbones import build_model
from data_selection.images.pools import load_demo
from tests.support.extraction_cases import COUNT


@pytest.fixture(scope="session")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("demo_vit").eval()


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "demo.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The first demo images as PNG files; the names sort like the rows."""
    root = tmp_path_factory.mktemp("pools") / "shoes"
    root.mkdir()
    for i, image in enumerate(load_demo()["train_images"][:COUNT]):
        Image.fromarray(image).save(root / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def one_thread():
    """Small products: a second thread only waits for the first; and other threads round sums otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
