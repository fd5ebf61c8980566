"""The command extract_feature.py: documented files, flags and words; mistakes are one line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from data_selection.commands.extract import build_parser, main_extract
from data_selection.commands.run_extract import open_backbone, pick_amp
from data_selection.common.errors import run
from data_selection.common.feature_table import load_features, sidecar
from data_selection.embedding import extraction
from data_selection.embedding.image_batches import to_input
from data_selection.embedding.preprocessing import preprocess_of
from data_selection.images import pools
from data_selection.images.pools import load_demo
from tests.support.extraction_cases import COUNT, command, oracle


def test_command_writes_the_documented_file(weights, model, tmp_path, folder, capsys, monkeypatch):
    out = tmp_path / "made" / "here"
    monkeypatch.setattr("sys.argv", ["/some/where/extract_feature.py", "--dataset", "x"])
    assert run(main_extract, command(weights, out, "--extra_name", "_x_", dataset=folder)) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "shoes_x_train.images.json", "shoes_x_train.names.json", "shoes_x_train.npy", "shoes_x_train.provenance.json",
    ]  # fmt: skip
    assert re.fullmatch(
        r"inventory: 70 images read, 0 reused; left out: none; exact copies: none\n"
        r"70 rows in .*shoes_x_train.npy: 70 images in .* images/s, bound by the .*\n",
        capsys.readouterr().out,
    )
    told = json.loads(sidecar(out / "shoes_x_train.npy", "provenance").read_text())
    assert told["pool"] == {"name": "shoes", "split": "train", "images": COUNT, "classes": None}
    assert told["command"] == ["extract_feature.py", "--dataset", "x"]
    assert told["backbone"]["arch"] == "demo_vit"
    assert len(told["backbone"]["weights_sha256"]) == 64
    assert run(main_extract, command(weights, out, "--extra_name", "_x_", dataset=folder)) == 0
    assert "is already there: 70 rows of the same images" in capsys.readouterr().out


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
        (["--dataset", ".", "--data_path", "/no/place"], "is a folder, leave the flag out"),
        (["--dataset", "DEMO", "--arch", "timm:test_vit", "--checkpoint_key", "a"], "an entry of --pretrained_weights"),
    ],
)
def test_mistakes_are_one_line(flags, match, tmp_path, capsys):
    if "--output_dir" not in flags:
        flags = [*flags, "--output_dir", str(tmp_path / "made" / "out")]
    assert run(main_extract, flags) == 2
    said = capsys.readouterr()
    assert re.search(match, said.err)
    assert said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_released_words(capsys):
    for flags in (["--avgpool_patchtokens", "maybe"], ["--batch_size_per_gpu", "0"], ["--datset", "DEMO"]):
        with pytest.raises(SystemExit) as caught:
            main_extract(flags)
        assert caught.value.code == 2
    assert "'maybe' is none of on, true, 1, off, false, 0" in capsys.readouterr().err


def test_automatic_precision(monkeypatch):
    """bf16 exactly where the CPU says that it computes in it."""
    cpu = torch.device("cpu")
    for flags, precision in (("fpu avx512f avx512_bf16 sha", torch.bfloat16), ("fpu avx512f avx512_bf16x", None)):
        monkeypatch.setattr(Path, "read_text", lambda path, encoding, flags=flags: f"flags\t\t: {flags}\n")
        assert pick_amp("auto", cpu) is precision
    assert pick_amp("fp16", cpu) is torch.float16


def test_compile_and_channels_last_reach_the_model(tmp_path, folder, monkeypatch):
    """Both change speed only: the features are those of the plain way."""
    flags = ["--dataset", str(folder), "--arch", "resnet10t", "--num_workers", "0", "--device", "cpu", "--amp", "off"]
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.pth")
    flags += ["--pretrained_weights", str(tmp_path / "w.pth"), "--output_dir", str(tmp_path)]
    seen = []

    def compiled(embed):
        def counted(model, images):
            seen.append((len(images), images.is_contiguous(memory_format=torch.channels_last)))
            return embed(model, images)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    assert run(main_extract, [*flags, "--extra_name", "_fast_", "--compile"]) == 0
    assert seen == [(12, True)] * 5 + [(10, True)]  # 176 x 176 pixels on a CPU: 12 images at once
    monkeypatch.setattr(extraction, "memory_layout", lambda model: torch.contiguous_format)
    assert run(main_extract, flags) == 0
    fast, plain = (np.load(tmp_path / f"shoes{name}train.npy") for name in ("_fast_", "_"))
    assert np.abs(fast - plain).max() < 1e-4


def two_folders(tmp_path):
    """Two folders of the same last two names, of the same file names and different images."""
    folders = [tmp_path / place / "pets" / "train" for place in "ab"]
    for shade, root in enumerate(folders):
        root.mkdir(parents=True)
        for i in range(3):
            Image.new("L", (28, 28), 50 + 100 * shade + i).save(root / f"{i}.png")
    return folders


def test_features_of_another_folder_are_not_replaced(weights, tmp_path, capsys):
    first, second = two_folders(tmp_path)
    out = tmp_path / "out"
    assert run(main_extract, command(weights, out, dataset=first)) == 0
    before = (out / "pets_train.npy").read_bytes()
    for source in (str(first), None):  # as an older version wrote the file: it does not say where it comes from
        told = json.loads(sidecar(out / "pets_train.npy", "provenance").read_text())
        assert told.pop("source") == str(first)
        if source is None:
            (second / "9.png").write_bytes((second / "0.png").read_bytes())
            sidecar(out / "pets_train.npy", "provenance").write_text(json.dumps(told))
        assert run(main_extract, command(weights, out, dataset=second)) == 2
        expected = rf"pets_train\.npy holds the features of {source or 'other images'}, not of {second}, and is not"
        assert re.search(expected, capsys.readouterr().err)
        assert (out / "pets_train.npy").read_bytes() == before
    assert run(main_extract, command(weights, out, "--extra_name", "_2_", dataset=second)) == 0
    assert run(main_extract, command(weights, out, dataset=first)) == 0  # the old file's names are the same


def test_a_file_that_another_program_wrote_is_not_replaced(tmp_path, capsys):
    """As the released one does: an array alone, and the data set has no names that could tell images apart."""
    np.save(path := tmp_path / "DEMO_test.npy", np.zeros((2000, 385), dtype=np.float32))
    before = path.read_bytes()
    assert run(main_extract, ["--dataset", "DEMO", "--split", "test", "--output_dir", str(tmp_path)]) == 2
    expected = "DEMO_test.npy was not written by this command (no DEMO_test.provenance.json is there)"
    assert expected in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_folder_that_has_moved_is_the_same_by_its_record(weights, tmp_path, capsys):
    here, there = two_folders(tmp_path)
    out = tmp_path / "out"
    assert run(main_extract, command(weights, out, dataset=here)) == 0
    before = (out / "pets_train.npy").read_bytes()
    shutil.rmtree(there)
    here.rename(there)
    capsys.readouterr()
    assert run(main_extract, command(weights, out, dataset=there)) == 0
    assert "is already there: 3 rows of the same images" in capsys.readouterr().out
    assert (out / "pets_train.npy").read_bytes() == before
    assert json.loads((out / "pets_train.provenance.json").read_text())["source"] == str(there)
    Image.new("L", (28, 28), 7).save(there / "new.png")
    assert run(main_extract, command(weights, out, dataset=there)) == 0
    assert "4 rows" in (said := capsys.readouterr().out)
    assert "3 known, 1 images" in said
    for name in ("0.png", "1.png"):
        (there / name).unlink()
    assert run(main_extract, command(weights, out, dataset=there)) == 0  # fewer
    shutil.move(there, here)
    assert run(main_extract, command(weights, out, dataset=here)) == 0
    Image.new("L", (28, 28), 8).save(here / "new.png")  # another image of that name, and a folder that moved
    shutil.move(here, there)
    assert run(main_extract, command(weights, out, dataset=there)) == 2
    assert "is not replaced" in capsys.readouterr().err


def test_an_unfinished_file_of_another_folder_is_not_continued(weights, tmp_path, capsys):
    first, second = two_folders(tmp_path)
    bad = first / "1.png"
    bad.write_bytes(b"x")
    assert run(main_extract, command(weights, tmp_path / "out", dataset=first)) == 2
    capsys.readouterr()
    assert run(main_extract, command(weights, tmp_path / "out", dataset=second)) == 0
    assert "known" not in capsys.readouterr().out  # every row was made of the second folder's images


def test_lists_with_words_keep_their_class_names(weights, folder, tmp_path):
    (tmp_path / "train.csv").write_text(f"{folder}/000.png;cat\n{folder}/001.png;dog\n{folder}/002.png;fox\n")
    (tmp_path / "test.csv").write_text(f"{folder}/002.png;fox\n{folder}/001.png;dog\n")
    out = tmp_path / "out"
    for name in ("train", "test"):
        assert run(main_extract, command(weights, out, "--split", name, dataset=tmp_path / f"{name}.csv")) == 0
    train, test = (load_features(out / f"{name}_{name}.npy") for name in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog", "fox")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2], [2, 1])


def test_a_launcher_may_say_the_local_rank(weights, folder, tmp_path):
    assert run(main_extract, command(weights, tmp_path, "--local-rank=0", dataset=folder)) == 0
    assert run(main_extract, command(weights, tmp_path, "--local_rank", "0", dataset=folder)) == 0


def test_a_typed_key_must_be_there(model, folder, tmp_path, capsys):
    torch.save({"teacher": model.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    flags = command(str(tmp_path / "w.pth"), tmp_path, "--checkpoint_key", "studnet", dataset=folder)
    assert run(main_extract, flags) == 2
    assert "hold entries teacher, epoch, no tensors in 'studnet'" in capsys.readouterr().err
    assert run(main_extract, flags[:-2]) == 0


def test_another_entry_of_a_checkpoint_is_other_weights(model, tmp_path):
    torch.save({"one": model.state_dict(), "two": model.state_dict()}, tmp_path / "w.pth")
    words = command(str(tmp_path / "w.pth"), tmp_path, dataset="DEMO")
    told = [
        open_backbone(build_parser().parse_args([*words, "--checkpoint_key", key]), "demo_vit", lambda _: None)[1]
        for key in ("one", "two")
    ]
    assert [one["checkpoint_key"] for one in told] == ["one", "two"]
    assert told[0] == told[1] | {"checkpoint_key": "one"}


def test_distilled_weights_belong_to_distilled_models(folder, tmp_path, capsys):
    """DeiT's files hold the two classifiers, which no feature needs."""
    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "w.pth")
    (tmp_path / "one.txt").write_text(f"{folder}/001.png\n")
    flags = command(str(tmp_path / "w.pth"), tmp_path, dataset=tmp_path / "one.txt")
    assert run(main_extract, [*flags, "--arch", "vit_tiny"]) == 2
    assert re.search("dist_token.* made for, such as deit_small_distilled_patch16_224", capsys.readouterr().err)
    assert run(main_extract, [*flags, "--arch", f"timm:{name}"]) == 0
    theirs.reset_classifier(0)
    preprocess = preprocess_of(name)
    pixels = torch.from_numpy(preprocess.pixels(Image.open(folder / "001.png").convert("RGB"))).permute(2, 0, 1)
    with torch.inference_mode():
        expected = theirs(to_input(pixels[None], preprocess, torch.device("cpu")))
    assert np.abs(np.load(tmp_path / "one_train.npy")[:, :-1] - expected.numpy()).max() < 1e-4
