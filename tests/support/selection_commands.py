"""What tests of the selection commands share: a small pool, command lines, and a look at what a method is given."""

import json

import numpy as np
import torch

from data_selection.common.feature_table import save_features

COUNT, WIDTH = 300, 8


def make_table(folder):
    """(path, features (300, 8)) in a folder of a pool of five loose clusters, with labels in the file's last column."""
    draw = np.random.default_rng(0)
    rows = (draw.normal(size=(5, WIDTH))[np.arange(COUNT) % 5] + 0.4 * draw.normal(size=(COUNT, WIDTH))).astype(
        np.float32
    )
    path = folder / "POOL_train.npy"
    save_features(path, rows, np.arange(COUNT) % 5)
    return path, torch.from_numpy(rows)


def ids_file(path, ids):
    path.write_text(json.dumps(ids))
    return path


def words(flags):
    said = []
    for name, value in flags.items():
        if value is not None:
            said += [f"--{name}"] + ([] if value is True else [str(value)])
    return said


class Command:
    """Runs one of the commands in a folder; gives the ids that it wrote."""

    def __init__(self, main, base, folder):
        self.main, self.base, self.folder = main, base, folder

    def __call__(self, **flags):
        self.main(words(self.base | {"output_dir": self.folder, "filename": "chosen.json", "overwrite": True} | flags))
        return json.loads((self.folder / "chosen.json").read_text())


def asked_of(module, name, monkeypatch):
    """The keywords that a command gives its method, call by call."""
    calls, real = [], getattr(module, name)

    def noted(features, budget, **settings):
        calls.append({"features": features, "budget": budget} | settings)
        return real(features, budget, **settings)

    monkeypatch.setattr(module, name, noted)
    return calls
