"""Extraction: timm's features, row by row, whatever the batch size, the processes and the interruptions."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import data_selection.table_writer as table_writer
from data_selection import pools
from data_selection.backbones import build_model
from data_selection.cli_extract import main_extract
from data_selection.distributed import World, on_main_first
from data_selection.errors import UserError, run
from data_selection.extraction import (
    DEMO_PREPROCESS,
    Preprocess,
    ResizePIL,
    check_labels,
    class_tokens,
    extract,
    resize,
    to_input,
)  # fmt: skip
from data_selection.feature_table import load_features, sidecar
from data_selection.pools import FASHION_MEAN, FASHION_STD, Pool, load_demo, open_pool, read_image

ROOT = Path(__file__).resolve().parents[1]
ENTRY = ROOT / "data_selection" / "extract_feature.py"
ALONE = World(0, 1, torch.device("cpu"))
SINGLE = os.environ | {"OMP_NUM_THREADS": "1"}
COUNT = 70  # images of the small pools


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("demo_vit").eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "demo.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first demo images as PNG files; the names sort like the rows."""
    root = tmp_path_factory.mktemp("pools") / "shoes"
    root.mkdir()
    for i, image in enumerate(load_demo()["train_images"][:COUNT]):
        Image.fromarray(image).save(root / f"{i:03}.png")
    return root


def small_pool(count=COUNT):
    demo = load_demo()
    return Pool(arrays=demo["train_images"][:count], labels=demo["train_labels"][:count], classes=10)


def oracle(model, images):
    """Plain extraction: one image at a time, timm's forward."""
    rows = []
    for image in images:
        x = (torch.from_numpy(image).float() / 255 - FASHION_MEAN) / FASHION_STD
        with torch.inference_mode():
            rows.append(model(x.expand(1, 3, 28, 28))[0].numpy())
    return np.stack(rows)


def save(pool, model, path, **options):
    options = {"world": ALONE, "preprocess": DEMO_PREPROCESS, "batch_size": 16, "log": lambda line: None} | options
    extract(pool, model, path, **options)
    return np.load(path)


def test_features_are_timms_and_labels_come_last(model, tmp_path):
    table = save(small_pool(), model, tmp_path / "t.npy")
    assert (table.shape, table.dtype) == ((COUNT, 193), np.float32)
    assert np.abs(table[:, :-1] - oracle(model, load_demo()["train_images"][:COUNT])).max() < 1e-4
    assert load_features(tmp_path / "t.npy").labels.tolist() == load_demo()["train_labels"][:COUNT].tolist()


@pytest.mark.parametrize("batch_size", [1, 7, 70, 128])
def test_any_batch_size(model, tmp_path, batch_size):
    tables = [save(small_pool(), model, tmp_path / f"{b}.npy", batch_size=b) for b in (16, batch_size)]
    assert np.abs(tables[0] - tables[1]).max() < 1e-5


def test_folder_equals_arrays(model, tmp_path, folder):
    """Decoded by workers or here, the same pixels give the same rows."""
    arrays = save(small_pool(), model, tmp_path / "arrays.npy")
    for workers in (0, 2):
        table = save(open_pool(str(folder)), model, tmp_path / f"files{workers}.npy", num_workers=workers)
        assert np.array_equal(table[:, :-1], arrays[:, :-1])
        assert (table[:, -1] == -1).all()
    opened = load_features(tmp_path / "files0.npy")
    assert opened.labels is None
    assert opened.names == tuple(f"{i:03}.png" for i in range(COUNT))


@pytest.mark.parametrize(("old", "new"), [(32, 224), (28, 224), (32, 28), (57, 16), (28, 28), (500, 333)])
def test_resize_is_pils_bit_for_bit(old, new):
    images = torch.randint(0, 256, (3, old, old, 3), generator=torch.Generator().manual_seed(old), dtype=torch.uint8)
    expected = torch.stack([ResizePIL(new)(Image.fromarray(image.numpy())) for image in images])
    assert torch.equal(resize(images.permute(0, 3, 1, 2), new), expected)


def test_input_is_torchvisions_pipeline():
    """The documented pipeline: Resize((224, 224), bicubic), ToTensor, Normalize."""
    from torchvision import transforms

    preprocess = Preprocess(224)
    plain = transforms.Compose([
        transforms.Resize((224, 224), interpolation=transforms.InterpolationMode.BICUBIC), transforms.ToTensor(),
        transforms.Normalize(preprocess.mean, preprocess.std),
    ])  # fmt: skip
    colours = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for images in (colours, load_demo()["train_images"][:2]):
        expected = torch.stack([plain(Image.fromarray(image).convert("RGB")) for image in images])
        assert torch.allclose(to_input(torch.from_numpy(images), preprocess, torch.device("cpu")), expected, atol=1e-6)


def test_last_blocks_and_patch_mean(model):
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    kept = []
    hooks = [block.register_forward_hook(lambda m, i, out: kept.append(out)) for block in model.blocks]
    with torch.inference_mode():
        tokens = model.forward_features(x)
        for hook in hooks:
            hook.remove()
        expected = torch.cat([model.norm(out)[:, 0] for out in kept[-3:]], dim=1)
        assert torch.allclose(class_tokens(model, x, n_last_blocks=3), expected, atol=1e-6)
        both = class_tokens(model, x, avgpool_patchtokens=True)
    assert both.shape == (2, 384)
    assert torch.equal(both[:, 0::2], tokens[:, 0])
    assert torch.allclose(both[:, 1::2], tokens[:, 1:].mean(1))
    with pytest.raises(UserError, match=r"n_last_blocks 5 is outside 1\.\.4"):
        class_tokens(model, x, n_last_blocks=5)
    with pytest.raises(UserError, match="goes with n_last_blocks 1, not 2"):
        class_tokens(model, x, n_last_blocks=2, avgpool_patchtokens=True)


class Dies(Exception):
    """Stands for a kill: nothing catches it."""


def dying(embed, calls):
    """embed that fails at the given call (1 counts the dry run)."""
    left = [calls]

    def counted(model, images):
        left[0] -= 1
        if left[0] == 0:
            raise Dies
        return embed(model, images)

    return counted


@pytest.mark.parametrize("calls", [2, 3, 5, 6])
def test_goes_on_after_a_failure(model, tmp_path, calls):
    whole, seen = save(small_pool(), model, tmp_path / "whole.npy"), []
    with pytest.raises(Dies):
        save(small_pool(), model, tmp_path / "t.npy", embed=dying(class_tokens, calls))
    assert not (tmp_path / "t.npy").exists()

    def watched(model, images):
        seen.append(len(images))
        return class_tokens(model, images)

    assert np.array_equal(save(small_pool(), model, tmp_path / "t.npy", embed=watched), whole)
    assert sum(seen[1:]) < COUNT or calls <= 3  # rows that were safe are not embedded again
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.npy", "whole.npy"]


def test_another_command_is_refused(model, tmp_path):
    with pytest.raises(Dies):
        save(small_pool(), model, tmp_path / "t.npy", embed=dying(class_tokens, 4), request={"weights": "abc"})
    with pytest.raises(UserError, match=r"another command \(weights was abc, now def\)"):
        save(small_pool(), model, tmp_path / "t.npy", request={"weights": "def"})
    with pytest.raises(UserError, match=r"shape was \[70, 193\], now \[60, 193\]"):
        save(small_pool(60), model, tmp_path / "t.npy", request={"weights": "abc"})
    save(small_pool(), model, tmp_path / "t.npy", request={"weights": "abc"}, batch_size=9)


def test_two_writers_do_not_mix(model, tmp_path):
    def meet(model, images):
        with pytest.raises(UserError, match="another process is writing"):
            save(small_pool(), model, tmp_path / "t.npy")
        return class_tokens(model, images)

    calls = iter([class_tokens] + [meet] * 99)
    save(small_pool(), model, tmp_path / "t.npy", embed=lambda m, x: next(calls)(m, x))


def test_full_disk_keeps_the_rows(model, tmp_path, monkeypatch):
    real, calls = os.pwrite, []

    def full(descriptor, data, offset):
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"cannot write .*t.npy \(No space left on device\): the rows so far are kept"):
        save(small_pool(), model, tmp_path / "t.npy")
    assert not (tmp_path / "t.npy").exists()
    monkeypatch.setattr(os, "pwrite", real)
    assert np.array_equal(save(small_pool(), model, tmp_path / "t.npy"), save(small_pool(), model, tmp_path / "u.npy"))
    monkeypatch.setattr(table_writer.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"needs 0.00 GB, 0.00 GB are free"):
        save(small_pool(), model, tmp_path / "v.npy")


def test_values_that_are_not_finite(model, tmp_path):
    def broken(model, images):
        features = class_tokens(model, images)
        features[-1, 5] = torch.nan
        return features

    with pytest.raises(UserError, match="features of image 15 are not finite in float32"):
        save(small_pool(), model, tmp_path / "t.npy", embed=broken)
    with pytest.raises(UserError, match="image 0 are not finite in float16"):
        save(small_pool(), model, tmp_path / "u.npy", embed=lambda m, x: class_tokens(m, x) + 1e6, dtype="float16")


def test_float16_and_its_labels(model, tmp_path):
    table = save(small_pool(), model, tmp_path / "t.npy", dtype="float16")
    assert table.dtype == np.float16
    assert np.abs(table[:, :-1] - oracle(model, load_demo()["train_images"][:COUNT])).max() < 4e-3
    check_labels([2048], "float16")
    with pytest.raises(UserError, match="labels up to 2049 do not fit float16"):
        check_labels([2049], "float16")


def test_bad_images(model, tmp_path, folder):
    broken = tmp_path / "broken"
    broken.mkdir()
    for source in folder.iterdir():
        (broken / source.name).write_bytes(source.read_bytes()[: 40 if source.name in ("003.png", "069.png") else None])
    pool = open_pool(str(broken))
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"003.png cannot be read .*--on_error skip"):
            save(pool, model, tmp_path / f"stop{workers}.npy", num_workers=workers)
    lines = []
    table = save(pool, model, tmp_path / "t.npy", on_error="skip", log=lines.append)
    whole = save(small_pool(), model, tmp_path / "whole.npy")
    kept = [i for i in range(COUNT) if i not in (3, 69)]
    assert np.abs(table[:, :-1] - whole[kept, :-1]).max() < 1e-5
    assert load_features(tmp_path / "t.npy").names == tuple(f"{i:03}.png" for i in kept)
    assert (tmp_path / "t.skipped.txt").read_text() == "003.png\n069.png\n"
    assert len(lines) == 2
    save(open_pool(str(folder)), model, tmp_path / "t.npy", on_error="skip")
    assert not (tmp_path / "t.skipped.txt").exists()


def test_a_bad_first_image_is_skipped_under_any_preprocessing(model, tmp_path, folder):
    (tmp_path / "bad.png").write_bytes(b"x")
    (tmp_path / "l.txt").write_text(f"{tmp_path}/bad.png\n{folder}/000.png\n")
    pool = open_pool(str(tmp_path / "l.txt"))
    for transform in (None, lambda image: ResizePIL(28)(image).float()):
        assert save(pool, model, tmp_path / "t.npy", transform=transform, on_error="skip").shape == (1, 193)


def test_a_dying_worker_is_named(model, tmp_path, folder, monkeypatch):
    pool, main = open_pool(str(folder)), os.getpid()
    monkeypatch.setattr(Pool, "image", lambda self, i: os._exit(1) if os.getpid() != main else None)
    with pytest.raises(UserError, match="a loading process died"):
        save(pool, model, tmp_path / "t.npy", num_workers=2)


# The command


def command(weights, out, *flags, dataset):
    return ["--dataset", str(dataset), "--arch", "demo_vit", "--pretrained_weights", weights, "--output_dir", str(out),
            "--device", "cpu", "--num_workers", "0", "--amp", "off", *flags]  # fmt: skip


def test_command_writes_the_documented_file(weights, model, tmp_path, folder, capsys):
    out = tmp_path / "made" / "here"
    assert run(main_extract, command(weights, out, "--extra_name", "_x_", dataset=folder)) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "shoes_x_train.names.json", "shoes_x_train.npy", "shoes_x_train.provenance.json",
    ]  # fmt: skip
    assert re.fullmatch(
        r"70 rows in .*shoes_x_train.npy: 70 images in .* images/s, bound by the .*\n", capsys.readouterr().out
    )
    told = json.loads(sidecar(out / "shoes_x_train.npy", "provenance").read_text())
    assert told["pool"] == {"name": "shoes", "split": "train", "images": COUNT, "classes": None}
    assert told["backbone"]["arch"] == "demo_vit"
    assert len(told["backbone"]["weights_sha256"]) == 64
    assert run(main_extract, command(weights, out, "--extra_name", "_x_", dataset=folder)) == 0
    assert "exists and will be replaced" in capsys.readouterr().out


def test_demo_pool_uses_the_demo_backbone(weights, model, tmp_path, monkeypatch):
    arrays = {key: value[:COUNT] for key, value in load_demo().items()}
    monkeypatch.setattr(pools, "load_demo", lambda: arrays)
    flags = ["--dataset", "DEMO", "--split", "test", "--pretrained_weights", weights, "--output_dir", str(tmp_path)]
    assert run(main_extract, [*flags, "--amp", "off"]) == 0
    table = np.load(tmp_path / "DEMO_test.npy")
    assert table.shape == (COUNT, 193)
    assert np.abs(table[-5:, :-1] - oracle(model, arrays["test_images"][-5:])).max() < 1e-4


@pytest.mark.parametrize("arch", ["small", "tiny"])
def test_dino_checkpoint_and_pipeline(tmp_path, folder, arch):
    """ViT-S/16 from a full DINO checkpoint and ViT-Ti from a flat one: timm's models on torchvision's pipeline."""
    import timm

    theirs = timm.create_model(f"deit_{arch}_patch16_224", num_classes=0).eval()
    state = theirs.state_dict()
    if arch == "small":
        state = {"teacher": {f"module.backbone.{key}": value for key, value in state.items()}
                 | {"module.head.mlp.0.weight": torch.ones(3)}, "epoch": 100}  # fmt: skip
    torch.save(state, tmp_path / "w.pth")
    listed = tmp_path / "two.csv"
    listed.write_text(f"{folder}/001.png,4\n{folder}/005.png,0\n")
    flags = ["--dataset", str(listed), "--pretrained_weights", str(tmp_path / "w.pth"), "--output_dir", str(tmp_path)]
    flags += ["--arch", "auto" if arch == "small" else "vit_tiny"]
    assert run(main_extract, [*flags, "--num_workers", "0", "--device", "cpu", "--amp", "off"]) == 0
    table = np.load(tmp_path / "two_train.npy")
    images = [
        Image.open(folder / name).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        for name in ("001.png", "005.png")
    ]
    x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        assert np.abs(table[:, :-1] - theirs(x).numpy()).max() < 1e-4
    assert table[:, -1].tolist() == [4, 0]


def test_timm_architecture_with_its_own_preprocessing(tmp_path, folder, capsys):
    import timm
    from timm.data import create_transform, resolve_data_config

    theirs = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    (tmp_path / "two.txt").write_text(f"{folder}/001.png\n{folder}/005.png\n")
    flags = [
        "--dataset",
        str(tmp_path / "two.txt"),
        "--arch",
        "resnet10t",
        "--pretrained_weights",
        str(tmp_path / "w.pth"),
    ]
    flags += ["--output_dir", str(tmp_path), "--num_workers", "0", "--device", "cpu", "--amp", "off"]
    assert run(main_extract, flags) == 0
    assert "2 tensors are ignored, only in w.pth: fc.weight, fc.bias" in capsys.readouterr().out
    theirs.reset_classifier(0)
    transform = create_transform(**resolve_data_config({}, model=theirs), is_training=False)
    x = torch.stack([transform(Image.open(folder / name).convert("RGB")) for name in ("001.png", "005.png")])
    with torch.inference_mode():
        assert np.abs(np.load(tmp_path / "two_train.npy")[:, :-1] - theirs(x).numpy()).max() < 1e-4
    assert run(main_extract, [*flags, "--n_last_blocks", "2"]) == 2
    assert "resnet10t has no class tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--dataset", "CIFAR-10"], "known data set .*Did you mean CIFAR10"),
        (["--dataset", "DEMO", "--pretrained_weights", "lost.pth"], "lost.pth does not exist"),
        (["--dataset", "DEMO", "--arch", "vit_tiny"], "no pretrained weights are known for vit_tiny"),
        (["--dataset", "DEMO", "--patch_size", "8"], "--patch_size is for vit_tiny"),
        (["--dataset", "DEMO", "--extra_name", "a/b"], "part of a file name"),
        (["--dataset", "DEMO", "--output_dir", "/proc/x"], "cannot make the output folder /proc/x"),
        (["--dataset", "DEMO", "--device", "cuda:99"], "cuda:99"),
        (["--dataset", "DEMO", "--split", "tran"], "unknown split"),
    ],
)
def test_mistakes_are_one_line(flags, match, tmp_path, capsys):
    if "--output_dir" not in flags:
        flags = [*flags, "--output_dir", str(tmp_path / "out")]
    assert run(main_extract, flags) == 2
    said = capsys.readouterr()
    assert re.search(match, said.err)
    assert said.err.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


def test_released_words(capsys):
    for flags in (["--avgpool_patchtokens", "maybe"], ["--batch_size_per_gpu", "0"], ["--datset", "DEMO"]):
        with pytest.raises(SystemExit) as caught:
            main_extract(flags)
        assert caught.value.code == 2
    assert "'maybe' is none of on, true, 1, off, false, 0" in capsys.readouterr().err


def test_two_processes_write_the_same_file(weights, model, tmp_path, folder):
    """As a launcher starts them: RANK and WORLD_SIZE say who they are."""
    flags = command(weights, tmp_path, "--batch_size_per_gpu", "16", dataset=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    started = [
        subprocess.Popen(
            [sys.executable, str(ENTRY), *flags], env=SINGLE | meeting | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) for rank in "01"
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert said[0][0].count("70 rows in") == 1
    assert said[1][0] == ""
    one = save(small_pool(), model, tmp_path / "one.npy")
    assert np.abs(np.load(tmp_path / "shoes_train.npy")[:, :-1] - one[:, :-1]).max() < 1e-6


class Failing(World):
    """Rank 0 of two, the other of which has failed."""

    def sum_(self, tensor):
        return tensor.add_(1)


class Second(World):
    """Rank 1 of two, of which rank 0 has failed."""

    def broadcast_object(self, value):
        return True, None


def test_an_error_of_rank_0_comes_once():
    asked = []
    with pytest.raises(SystemExit) as caught:
        on_main_first(Second(1, 2, ALONE.device), lambda: asked.append("image folder"))
    assert (caught.value.code, asked) == (2, [])
    with pytest.raises(UserError, match=r"lost\.png cannot be read"):
        on_main_first(ALONE, lambda: read_image("lost.png"))


def test_one_failure_is_one_error(model, tmp_path, folder):
    """The process that fails says why; the others stop, silently, and keep their rows."""
    with pytest.raises(SystemExit) as caught:
        save(small_pool(), model, tmp_path / "t.npy", world=Failing(0, 1, ALONE.device))
    assert caught.value.code == 2
    assert not (tmp_path / "t.npy").exists()
    marks = []

    def told(model, images):
        marks.append(len(images))
        (tmp_path / "t.partial" / "stop").touch()
        return class_tokens(model, images)

    (tmp_path / "t.partial" / "done").write_bytes(bytes(COUNT))
    with pytest.raises(SystemExit):
        save(small_pool(), model, tmp_path / "t.npy", world=Failing(0, 1, ALONE.device), embed=told)
    assert marks == [1, 16]  # the dry run, then the batch in which the other one failed
    lines = []
    save(small_pool(), model, tmp_path / "t.npy", log=lines.append)
    assert lines[0].startswith("going on: 16 of 70 rows")


def test_killed_command_goes_on(weights, tmp_path, folder, capsys):
    """SIGKILL between two batches; the file of the second start equals an unbroken run's, bit for bit."""
    flags = command(weights, tmp_path, "--batch_size_per_gpu", "8", dataset=folder)
    program = (
        "import os, signal, sys, data_selection.table_writer as t; t.SAVE_SECONDS, mark = 0.0, t.TableWriter.save\n"
        "def save(writer):\n"
        "    if writer.flags().sum() == 40: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    mark(writer)\n"
        "t.TableWriter.save = save\n"
        "from data_selection.cli_extract import main_extract; main_extract(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, env=SINGLE, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "shoes_train.npy").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the killed process
    try:
        main_extract(flags)
        main_extract([*flags, "--extra_name", "_whole_"])
    finally:
        torch.set_num_threads(threads)
    assert "going on: 40 of 70 rows" in capsys.readouterr().out
    assert (tmp_path / "shoes_train.npy").read_bytes() == (tmp_path / "shoes_whole_train.npy").read_bytes()
