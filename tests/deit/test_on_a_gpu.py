"""The trainer on a pretended GPU: nothing that CUDA refuses, the CPU's weights, and few waits in a step."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from data_selection.embedding.backbones import build_model
from data_selection.judging import smoothed
from deit import engine
from deit.losses import Criterion
from deit.options import parse
from deit.trainer import train
from tests.support.pretend_cuda import pretended
from tests.support.trainer_runs import checkpoint, command, log_lines, make_images

CASES = {  # flags
    "padded": {},
    "device_cache": {"cache": "device"},
    "resized": {"input_size": 48},
    "pillow": {"cache": "none", "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25},
    "mixed": {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "mixup_mode": "elem", "clip_grad": 1.0},
    "dropped": {"drop": 0.1, "drop_path": 0.2, "opt": "adamw", "lr": 0.001, "layer_decay": 0.7},
    "linear": {"mode": "linear", "no_repeated_aug": None, "lr": None, "warmup_epochs": None, "epochs": None},
    "head_first": {"mode": "lp-ft"},
    "skipping": {"skip_nonfinite": True},
    "averaged": {"model_ema_force_cpu": True},
    "restarted": {"restarts": 2, "model_ema_force_cpu": True},
    "taught": {"mode": "self-train", "rounds": 1, "sched_unit": "step", "warmup_steps": 2, "warmup_epochs": None},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def once(images, folder, device, **flags):
    small = {"amp": "off", "num_workers": 0, "no_repeated_aug": True, "batch_size": 10, "device": device}
    return train(parse(command(images, folder, **small | flags)))


def differences(one, other):
    """The largest difference of weights, and of their moving averages."""
    one, other = checkpoint(one), checkpoint(other)
    return [
        max((one[key][name].float() - other[key][name].float()).abs().max().item() for name in one[key])
        for key in ("model", "model_ema")
        if one[key]
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_the_cpu(case, images, tmp_path):
    flags = {"epochs": 1} | CASES[case]
    once(images, tmp_path / "cpu", "cpu", **flags)
    with pretended() as card:
        once(images, tmp_path / "gpu", "cuda", **flags)
    assert card.faults == []
    assert max(differences(tmp_path / "cpu", tmp_path / "gpu")) < 1e-4
    cpu, gpu = log_lines(tmp_path / "cpu")[-1], log_lines(tmp_path / "gpu")[-1]
    assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], abs=1e-4)
    assert gpu["test_loss"] == pytest.approx(cpu["test_loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("amp", "device", "expected"), [("off", "cuda", True), ("bf16", "cuda", False), ("off", "cpu", False)]
)
def test_gradients_of_float32_are_added_in_one_order(amp, device, expected, images, monkeypatch):
    seen, real = set(), Criterion.__call__

    def call(self, *args):
        seen.add(torch.are_deterministic_algorithms_enabled())
        return real(self, *args)

    monkeypatch.setattr(Criterion, "__call__", call)
    with pretended():
        once(images, None, device, amp=amp, epochs=1)
    assert seen == {expected}


def test_the_pools_neighbours_are_looked_for_on_the_gpu(images, tmp_path, monkeypatch):
    seen, real = [], smoothed.fit_smoothed

    def fit(features, *args, **options):
        seen.append(features.device.type)
        return real(features, *args, **options)

    monkeypatch.setattr(smoothed, "fit_smoothed", fit)
    with pretended():
        once(images, tmp_path, "cuda", epochs=1, **CASES["taught"])
    assert seen == ["cuda", "cuda"]  # for the round, and for the last word


def test_resumed_as_if_unbroken(images, tmp_path, monkeypatch):
    amp = "fp16"  # its scaler is a state, too
    with pretended() as card:
        once(images, tmp_path / "whole", "cuda", amp=amp, epochs=2)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "is_asked", lambda learner, look: True)
            once(images, tmp_path / "half", "cuda", amp=amp, epochs=2)
        assert len(checkpoint(tmp_path / "half")["sofar"]["losses"]) == 1
        once(images, tmp_path / "half", "cuda", amp=amp, epochs=2, auto_resume=True)
    assert card.faults == []
    assert max(differences(tmp_path / "whole", tmp_path / "half")) == 0
    once(images, None, "cpu", eval=True, finetune=tmp_path / "half" / "checkpoint.pth")  # and without a GPU


def test_several_trainings_go_on_from_a_file(images, tmp_path, monkeypatch):
    """Stopped in the second one, when what the first one left comes from the checkpoint."""
    flags = {"epochs": 1, "restarts": 2}
    with pretended() as card:
        once(images, tmp_path / "whole", "cuda", **flags)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "is_asked", lambda learner, look: "model" in learner.kept)
            once(images, tmp_path / "half", "cuda", **flags)
        assert checkpoint(tmp_path / "half")["epoch"] == 1
        once(images, tmp_path / "half", "cuda", auto_resume=True, **flags)
    assert card.faults == []
    assert max(differences(tmp_path / "whole", tmp_path / "half")) == 0


# flags, and the most waits and launches in a step
STEPS = {
    "bf16": ({"amp": "bf16"}, 0, 800),
    "fp16": ({"amp": "fp16"}, 1, 810),
    "mixed": ({"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "clip_grad": 1.0}, 0, 610),
    "resized": ({"input_size": 48}, 0, 700),
    "pillow": ({"cache": "none", "aa": "rand-m9-mstd0.5-inc1"}, 0, 580),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_waits_for_nobody(case, images):
    flags, most_waits, most_launches = STEPS[case]
    counted = []
    for last in (1, 2):  # of two steps each
        with pretended() as card:
            once(images, None, "cuda", **{"epochs": last, "eval_interval": 9, "save_interval": 9} | flags)
        counted.append((Counter(card.waits), sum(card.launches.values())))
    waits = counted[1][0] - counted[0][0]
    assert sum(waits.values()) <= 2 * most_waits + 3, waits  # 3 at the end of an epoch
    assert not card.loose
    assert (counted[1][1] - counted[0][1]) / 2 <= most_launches


def test_the_page_tells_these_ceilings():
    launches = [most for _, _, most in STEPS.values()]
    page = (Path(__file__).parents[2] / "scripts" / "benchmarks" / "README.md").read_text()
    assert f"| {min(launches)} to {max(launches)}, forward and backward pass included |" in page


@pytest.mark.parametrize(("name", "size", "resamples"), [("vit_tiny", 48, False), ("demo_vit", 35, True)])
def test_which_steps_resample_the_position_embedding(name, size, resamples):
    """CUDA does not repeat that backward pass to the last bit."""
    model, found = build_model(name, 2, img_size=size), set()
    todo = [model(torch.zeros(1, 3, size, size)).sum().grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [following for following, _ in node.next_functions]
    assert any("Upsample" in node.name() for node in found) == resamples
