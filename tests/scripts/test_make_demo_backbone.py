"""Both pretraining objectives take steps on real images and can be saved and loaded."""

import argparse

import pytest
import torch

from data_selection.images.pools import load_demo
from scripts.demo import make_demo_backbone as script

ARGS = argparse.Namespace(
    epochs=2, warmup_epochs=0.1, batch_size=8, lr=4e-3, prototypes=64, local_crops=2, teacher_momentum=0.9,
    drop_path=0.0, seed=0,
)  # fmt: skip


def test_no_epoch_leaves_the_weights_that_are_there(monkeypatch, tmp_path, capsys):
    """It wrote untrained ones over them."""
    (weights := tmp_path / "w.safetensors").write_bytes(b"trained")
    monkeypatch.setattr(script, "find_idx", lambda *_: None)
    monkeypatch.setattr(script, "read_idx", lambda _: load_demo()["train_images"][:8])
    with pytest.raises(SystemExit):
        script.main(["--source", str(tmp_path), "--epochs", "0", "--output", str(weights)])
    assert "argument --epochs" in capsys.readouterr().err
    assert weights.read_bytes() == b"trained"


@pytest.mark.parametrize("objective", script.OBJECTIVES)
def test_steps_move_the_backbone_and_a_checkpoint_brings_it_back(objective):
    images = torch.from_numpy(load_demo()["train_images"][:8])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (script.OBJECTIVES[objective](ARGS) for _ in range(2))
    before = script.embed(first.backbone, images)
    generator = torch.Generator().manual_seed(0)
    steps = 6 if objective == "reconstruction" else 2  # dino sees several crops of each image
    losses = [first.step(images[:, None].float() / 255, i / 20, generator) for i in range(steps)]
    after = script.embed(first.backbone, images)
    assert all(loss > 0 for loss in losses)
    assert not torch.equal(before, after)
    if objective == "reconstruction":
        assert losses[-1] < losses[0]
    second.load(first.state())
    assert torch.equal(script.embed(second.backbone, images), after)
