"""Small runs of the trainer whose batches are recorded, and the table that says which flag has which test."""

import functools
import itertools
import json
from typing import NamedTuple

import pytest
import timm
import torch
from torch.nn.functional import one_hot

from data_selection.embedding.backbones import build_model
from deit.learner import building
from deit.losses import Criterion
from deit.main import main
from tests.support.trainer_runs import checkpoint, log_lines, make_images

ROWS: dict[str, object] = {}  # flag (its name in the Namespace) -> the test that fails where the flag is ignored
SIZE, CLASSES = 32, 2
DISTILLED = "deit_tiny_distilled_patch16_224"
SMALL = {DISTILLED: {"depth": 1, "embed_dim": 48, "num_heads": 3}}
# Three epochs of two steps of four images, at a rate of 0.0125
BASE = {
    "data_set": "FOLDERSUBSET", "recipe": "paper", "model": "test_vit", "input_size": SIZE, "epochs": 3,
    "batch_size": 4, "lr": 1.6, "momentum": 0.9, "weight_decay": 0.01, "warmup_epochs": 0, "min_lr": 0.0,
    "sched": "none", "drop_path": 0.0, "smoothing": 0.1, "no_repeated_aug": True, "model_ema_decay": 0.9, "amp": "off",
    "opt": "SGD", "device": "cpu", "num_workers": 0, "seed": 0,
}  # fmt: skip


def row(flag, one, other):
    """Mark a test as the one of a flag, whose two values it takes as `one` and `other`."""

    def mark(test):
        ROWS[flag] = test
        return pytest.mark.parametrize(("one", "other"), [pytest.param(one, other, id=flag)])(test)

    return mark


def words(flags):
    """A command line: True is a switch, None leaves a flag out, a list gives several words."""
    said = []
    for name, value in flags.items():
        if value is not None:
            values = [] if value is True else value if isinstance(value, list) else [value]
            said += ["--" + name.replace("_", "-"), *map(str, values)]
    return said


class Seen(NamedTuple):
    """What the loss was given in one pass."""

    images: torch.Tensor
    targets: torch.Tensor
    dtype: torch.dtype  # of the logits


class Run(NamedTuple):
    """What a run left."""

    flags: dict
    seen: list  # of Seen, pass by pass
    lines: list  # of log.txt
    state: dict  # checkpoint.pth
    said: str
    folder: object

    @property
    def result(self):
        return json.loads((self.folder / "result.json").read_text())


def small_model(name, classes, img_size=None, **rates):
    """As backbones.build_model, the distilled model made small."""
    if name == "demo_vit":
        return build_model(name, classes, img_size=img_size, **rates)
    size = {"img_size": img_size} if "vit" in name or "deit" in name else {}
    made = {key: value for key, value in rates.items() if value}
    return timm.create_model(name, num_classes=classes, **size, **SMALL.get(name, {}), **made)


class Runs:
    """A function of flags that runs the trainer; the same flags are run once."""

    def __init__(self, folder):
        self.images, self.folder, self.done = make_images(folder / "images"), folder, {}
        self.number = itertools.count()
        (self.images / "eight.json").write_text(json.dumps([0, 1, 2, 3, 12, 13, 14, 15]))

    @functools.lru_cache  # noqa: B019  # lives as long as the tests do
    def weights(self, name, seed=0, size=SIZE):
        """A file of random weights of a model, its classifier among them."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = small_model(name, CLASSES, size)
        path = self.folder / f"{name}_{seed}_{size}.pth"
        torch.save({"model": model.state_dict()}, path)
        return path

    def flags(self, changes):
        """BASE with changes, and the files."""
        flags = BASE | {"data_path": self.images, "subset_ids": self.images / "eight.json"} | changes
        if "finetune" not in flags and "resume" not in flags:
            flags["finetune"] = self.weights(flags["model"], size=flags["input_size"])
        return flags

    def __call__(self, capsys=None, **changes):
        flags = self.flags(changes)
        key = json.dumps(flags, default=str, sort_keys=True)
        if key not in self.done or capsys:
            self.done[key] = self.run(flags, capsys)
        return self.done[key]

    def run(self, flags, capsys):
        folder, seen, real = self.folder / f"run{next(self.number)}", [], Criterion.__call__
        flags = {"output_dir": folder} | flags

        def recorded(criterion, images, outputs, targets):
            logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            seen.append(Seen(images.detach().clone(), targets.detach().clone(), logits.dtype))
            return real(criterion, images, outputs, targets)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Criterion, "__call__", recorded)
            patch.setattr(building, "build_model", small_model)
            main(words(flags))
        said, out = capsys.readouterr().out if capsys else "", flags["output_dir"]
        if out is None or not (out / "checkpoint.pth").exists():
            return Run(flags, seen, [], {}, said, out)
        return Run(flags, seen, log_lines(out), checkpoint(out), said, out)


def targets_of(labels):
    """Labels as the soft targets that mixing makes."""
    return one_hot(labels, CLASSES).float()
