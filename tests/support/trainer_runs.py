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
from timm import create_model

from data_selection.common import watching
from data_selection.common.errors import run
from data_selection.embedding.backbones import build_model
from data_selection.images import pools
from deit.main import main
from tests.support.forks import FORKS

MAIN = Path(__file__).resolve().parents[2] / "deit" / "main.py"
DEMO = {"model": "demo_vit", "input_size": 28}  # flags
IMAGES = 20  # for training; three times that in an epoch


def make_images(root):
    """A folder train/<class>/ (20 + 4 spare) and val/<class>/ (10) of demo images, subset.json, and random weights.

    weights.pth: of test_vit, which takes a tenth of demo_vit's time. demo.pth: of demo_vit.
    """
    arrays = pools.load_demo()
    for split, source, count in (("train", "train", 24), ("val", "test", 10)):
        for i in range(count):
            path = root / split / f"class{i % 2}" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"{source}_images"][i]).save(path)
    (root / "subset.json").write_text(json.dumps(list(range(2, 2 + IMAGES))))
    torch.manual_seed(0)
    torch.save(create_model("test_vit", img_size=32, num_classes=0).state_dict(), root / "weights.pth")
    torch.save(build_model("demo_vit").state_dict(), root / "demo.pth")
    return root


def make_colours(root, train=12, test=4):
    """A folder of demo images in red and in green, so many of each colour, and two backbones.

    sighted.pth: random weights of demo_vit. blind.pth: the same, its eyes summed over the channels, so that it sees no
    colour before it is finetuned.
    """
    arrays = pools.load_demo()
    for split, source, count in (("train", "train", train), ("val", "test", test)):
        for i in range(2 * count):
            image = np.zeros((28, 28, 3), np.uint8)
            image[..., i % 2] = arrays[f"{source}_images"][i]
            path = root / split / ("red", "green")[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    torch.manual_seed(0)
    weights = build_model("demo_vit").state_dict()
    torch.save(weights, root / "sighted.pth")
    eyes = weights["patch_embed.proj.weight"]
    torch.save(weights | {"patch_embed.proj.weight": eyes.mean(1, keepdim=True).expand_as(eyes)}, root / "blind.pth")
    return root


def few_shot(images, output=None, **flags):
    """A command line with the few-shot recipe for make_colours' folder, in float32 and small."""
    small = {
        "recipe": "few-shot", "data_set": "FOLDER", "subset_ids": None, "input_size": None, "warmup_epochs": None,
        "finetune": images / "blind.pth", "amp": "off", "batch_size": 4, "global_batch_size": 4, "lr": 0.1, "epochs": 4,
        "num_workers": 0, "model": "demo_vit", "restarts": None if flags.get("mode") == "linear" else 1,
    }  # fmt: skip
    return command(images, output, **small | flags)


def write_images(folder, names):
    """Grey 40 x 30 images, as bright as their name is long."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), len(name), np.uint8)).save(path)


def command(images, output=None, epochs=2, **flags):
    """A command line for the image folder; flags None are left out, True are switches."""
    defaults = {
        "data_set": "FOLDERSUBSET", "recipe": "paper", "data_path": images,
        "subset_ids": images / "subset.json", "model": "test_vit", "input_size": 32,
        "epochs": epochs, "batch_size": 24, "lr": 0.05, "warmup_epochs": 1, "device": "cpu",
        "finetune": images / ("demo.pth" if flags.get("model") == "demo_vit" else "weights.pth"), "output_dir": output,
    }  # fmt: skip
    words = []
    for name, value in (defaults | flags).items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
    return words


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(words, processes=2):
    """The trainer under the papers' launcher; the finished process, which must have succeeded."""
    port = f"--master_port={free_port()}"
    launcher = ["-m", "torch.distributed.launch", f"--nproc_per_node={processes}", port, "--use_env"]
    done = subprocess.run(
        [sys.executable, *launcher, "main.py", *words], cwd=MAIN.parent, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def child(words, said=os.devnull, **environment):
    """A process that trains, its words going to the file `said`; forked from one that has imported the trainer."""
    process = FORKS.Process(target=train_into, args=(words, said, environment))
    process.start()
    return process


def train_into(words, said, environment):
    os.environ.update(environment)
    if "SILENCE" in environment:  # not to wait long in tests of processes that hang
        watching.BEAT, watching.SILENCE = 0.5, float(environment["SILENCE"])
    torch.set_num_threads(1)
    with Path(said).open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(run(main, words))


def ranks(words, folder, processes=2, **environment):
    """The processes of one run without a launcher, which would end the others itself; they write to folder/said_R."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes), **environment}
    return [
        child(words, str(folder / f"said_{rank}"), **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]


def train_on(processes, words, folder):
    """Train on that many processes (one: without a group), which must end well."""
    running = [child(words)] if processes == 1 else ranks(words, folder, processes)
    for rank, process in enumerate(running):
        process.join(120)
        assert process.exitcode == 0, (folder / f"said_{rank}").read_text()


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def checkpoint(folder, name="checkpoint.pth"):
    return torch.load(folder / name, weights_only=True)
