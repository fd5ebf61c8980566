"""A folder that lives: chosen from, added to, renamed, chosen from again, trained on, evaluated by another process."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_selection.commands.any_method import main_select
from data_selection.commands.extract import main_extract
from data_selection.images import pools
from deit.main import main as main_deit

ROOT = Path(__file__).resolve().parents[1]
CPU = ("--device", "cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def content(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(file):
    """The images of a list, by the names that stand beside it."""
    return json.loads(file.with_suffix(".provenance.json").read_text())["images"]["name"]


class Walk:
    """The pool's folder, the class of every content in it, and the commands."""

    def __init__(self, folder):
        self.folder, self.pool, self.truth = folder, folder / "pool", {}
        arrays = pools.load_demo()
        self.images = iter(zip(arrays["train_images"], arrays["train_labels"], strict=True))
        for i in range(120):
            self.add(f"{i % 3}/{i:03d}.png")
        for image, label in zip(arrays["test_images"][:60], arrays["test_labels"][:60], strict=True):
            path = folder / "val" / f"c{label}" / f"{content_of(image)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)

    def add(self, name):
        image, label = next(self.images)
        path = self.pool / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        self.truth[content(path)] = f"c{label}"

    def label(self, name):
        return self.truth[content(self.pool / name)]

    def extract(self):
        main_extract(["--dataset", str(self.pool), "--arch", "demo_vit", "--output_dir", str(self.folder), *CPU])
        return next(self.folder.glob("*.npy"))

    def select(self, features, name, *more):
        words = ["--features", features, "--method", "kmeans", "--budget", 20, "--output_dir", self.folder, *more, *CPU]
        main_select([str(word) for word in (*words, "--filename", name)])
        return self.folder / name

    def live(self, chosen):
        """Images come, one of them first; go; change; and one that was chosen gets another name. Gives both names."""
        free = sorted(path for path in self.pool.rglob("*.png") if path.relative_to(self.pool).as_posix() not in chosen)
        for path in free[:5]:
            path.unlink()
        self.add("0/! first.png")
        for i in range(9):
            self.add(f"new/{i}.png")
        self.add(free[5].relative_to(self.pool).as_posix())  # another image under an old name
        old, new = chosen[3], f"moved/{Path(chosen[3]).name}"
        (self.pool / new).parent.mkdir()
        (self.pool / old).rename(self.pool / new)
        return old, new


def content_of(image):
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def test_no_image_is_chosen_twice_and_no_label_moves(tmp_path, capsys):
    walk = Walk(tmp_path)
    first = walk.select(walk.extract(), "first.json")
    before = {content(walk.pool / name) for name in names(first)}
    old, new = walk.live(names(first))
    capsys.readouterr()
    features = walk.extract()
    said = capsys.readouterr().out
    assert re.search(r"11 (new|embedded|images)", said), said  # 10 came and one changed; what was renamed is known
    (tmp_path / "known.txt").write_text("".join(f"{new if name == old else name}\n" for name in names(first)))
    with (tmp_path / "known.csv").open("w", newline="") as handle:
        today = [new if name == old else name for name in names(first)]
        csv.writer(handle).writerows([["file", "label"], *([name, walk.label(name)] for name in today)])
    seconds = []
    for number, known in enumerate((first, tmp_path / "known.csv", tmp_path / "known.txt")):
        seconds.append(walk.select(features, f"second{number}.json", "--labelled", known))
        assert not before & {content(walk.pool / name) for name in names(seconds[-1])}
    assert len({tuple(names(file)) for file in seconds}) == 1

    everything = [path.relative_to(walk.pool).as_posix() for path in walk.pool.rglob("*.png")]
    with (tmp_path / "labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([name, walk.label(name)] for name in everything)
    data = ["--data-set", "FOLDERSUBSET", "--train-path", walk.pool, "--labels", tmp_path / "labels.csv",
            "--val-path", tmp_path / "val", "--subset_ids", first, seconds[0]]  # fmt: skip
    weights = ROOT / "data_selection" / "demo" / "demo_vit.safetensors"
    words = ["--model", "demo_vit", "--finetune", weights, "--pixels", "model", "--mode", "linear", *CPU]
    main_deit([str(word) for word in (*data, *words, "--output_dir", tmp_path / "run")])
    told = json.loads((tmp_path / "run" / "result.json").read_text())["last"]["acc1"]
    import torch

    saved = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["args"]
    assert {content(walk.pool / name) for name in saved["train_names"]} == before | {
        content(walk.pool / name) for name in names(seconds[0])
    }
    assert len(saved["train_names"]) == 40

    command = [sys.executable, ROOT / "deit" / "main.py", "--eval", "--resume", tmp_path / "run" / "checkpoint.pth",
               "--data-set", "FOLDER", "--train-path", walk.pool, "--labels", tmp_path / "labels.csv",
               "--val-path", tmp_path / "val"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=300)
    assert f"* Acc@1 {told:.3f}" in done.stdout
    assert told > 50  # the labels are those of their images
