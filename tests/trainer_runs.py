"""What tests of whole training runs share: a small folder of demo images, the command line, the files it leaves."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_selection import pools
from data_selection.backbones import build_model

MAIN = Path(__file__).resolve().parents[1] / "deit" / "main.py"
IMAGES = 20  # for training; three times that in an epoch


def make_images(root):
    """A folder train/<class>/ (20 + 4 spare) and val/<class>/ (10) of demo images, subset.json, weights.pth."""
    arrays = pools.load_demo()
    for split, source, count in (("train", "train", 24), ("val", "test", 10)):
        for i in range(count):
            path = root / split / f"class{i % 2}" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"{source}_images"][i]).save(path)
    (root / "subset.json").write_text(json.dumps(list(range(2, 2 + IMAGES))))
    torch.manual_seed(0)
    torch.save(build_model("demo_vit").state_dict(), root / "weights.pth")
    return root


def write_images(folder, names):
    """Grey 40 x 30 images, as bright as their name is long."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), len(name), np.uint8)).save(path)


def command(images, output=None, epochs=2, **flags):
    """A command line for the image folder; flags None are left out, True are switches."""
    defaults = {
        "data_set": "FOLDERSUBSET", "data_path": images, "subset_ids": images / "subset.json", "model": "demo_vit",
        "input_size": 28, "epochs": epochs, "batch_size": 24, "lr": 0.05, "warmup_epochs": 1, "device": "cpu",
        "finetune": images / "weights.pth", "output_dir": output,
    }  # fmt: skip
    words = []
    for name, value in (defaults | flags).items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
    return words


def launch(words, processes=2):
    """The trainer under the papers' launcher; the finished process, which must have succeeded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.launch", f"--nproc_per_node={processes}", f"--master_port={port}", "--use_env"]
    done = subprocess.run(
        [sys.executable, *launcher, "main.py", *words], cwd=MAIN.parent, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def checkpoint(folder, name="checkpoint.pth"):
    return torch.load(folder / name, weights_only=True)
