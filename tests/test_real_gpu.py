"""On a real GPU, where the machine has one: the same lists, features and weights every time, near those of the CPU."""

import numpy as np
import pytest
import torch

from data_selection.common.distributed import World
from data_selection.judging.smoothed import fit_smoothed
from data_selection.methods.table import METHODS
from deit import engine
from tests.deit.test_on_a_gpu import differences, once
from tests.embedding.test_on_a_gpu import features as extracted
from tests.embedding.test_on_a_gpu import files  # noqa: F401
from tests.support.beliefs import beliefs
from tests.support.trainer_runs import log_lines, make_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
CARD = torch.device("cuda", 0)
BUDGET = 40
TRAINED = {
    "float32": {},
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16"},
    "mixed": {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "clip_grad": 1.0},
    "resized": {"input_size": 42},
    "pillow": {"cache": "none", "aa": "rand-m9-mstd0.5-inc1"},
    "head_first": {"mode": "lp-ft"},
    "restarted": {"restarts": 2},
    "taught": {"mode": "self-train", "rounds": 1, "sched_unit": "step", "warmup_steps": 2, "warmup_epochs": None},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pool():
    """(features (3000, 64) of 30 clusters, their classes)."""
    draws = torch.Generator().manual_seed(0)
    classes = torch.arange(3000) % 30
    return torch.randn(30, 64, generator=draws)[classes] + 0.7 * torch.randn(3000, 64, generator=draws), classes


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_list_is_the_same_every_time_and_nearly_the_cpus(name, pool):
    method, (features, _) = METHODS[name], pool
    options = {"labelled": [3, 50], "excluded": [7], "seed": 1} | beliefs(method, features)
    lists = [method.select(features, BUDGET, device=device, **options) for device in ("cuda", "cuda", "cpu")]
    assert torch.equal(lists[0], lists[1])
    assert len(set(lists[0].tolist()) & set(lists[2].tolist())) >= 0.9 * BUDGET


def test_the_smoothed_probe_says_what_the_cpus_does(pool):
    features, classes = pool
    said = []
    for device in (CARD, torch.device("cpu")):
        probe = fit_smoothed(features.to(device), classes[:300], torch.arange(300), world=World(0, 1, device))
        said.append(probe.pool_probabilities().cpu())
    assert torch.allclose(*said, atol=1e-3)


@pytest.mark.parametrize("case", ["float32", "bf16", "fp16", "resized", "pooled"])
def test_features_are_the_same_every_time_and_nearly_the_cpus(case, files, tmp_path):  # noqa: F811
    found = [extracted(case, files, tmp_path / f"{turn}.npy", world=World(0, 1, CARD)) for turn in range(2)]
    expected = extracted(case, files, tmp_path / "cpu.npy")
    assert np.array_equal(*found)
    rounding = 0.05 if case in ("bf16", "fp16") else 1e-4
    assert np.abs(found[0] - expected).max() < rounding * np.abs(expected[:, :-1]).max()


@pytest.mark.parametrize("case", TRAINED)
def test_weights_are_the_same_every_time_and_the_loss_nearly_the_cpus(case, images, tmp_path):
    flags = {"epochs": 2} | TRAINED[case]
    for name, device in (("one", "cuda"), ("two", "cuda"), ("cpu", "cpu")):
        once(images, tmp_path / name, device, **flags)
    if case != "resized":  # whose position embedding is resampled in every step (deit/README.md)
        assert max(differences(tmp_path / "one", tmp_path / "two")) == 0
    cpu, gpu = log_lines(tmp_path / "cpu")[-1], log_lines(tmp_path / "one")[-1]
    assert gpu["test_loss"] == pytest.approx(cpu["test_loss"], rel=0.05)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_resumed_as_if_unbroken(amp, images, tmp_path, monkeypatch):
    once(images, tmp_path / "whole", "cuda", amp=amp, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "is_asked", lambda learner, look: True)
        once(images, tmp_path / "half", "cuda", amp=amp, epochs=2)
    once(images, tmp_path / "half", "cuda", amp=amp, epochs=2, auto_resume=True)
    assert max(differences(tmp_path / "whole", tmp_path / "half")) == 0
