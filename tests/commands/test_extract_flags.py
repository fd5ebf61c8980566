"""Every flag of extract_feature.py has a test, through the command, that fails where the flag is ignored."""

import shutil

import numpy as np
import pytest
import torch

from data_selection.commands import run_extract
from data_selection.commands.extract import build_parser, main_extract
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from tests.support.extraction_cases import command

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def asked(monkeypatch):
    """The last call of each function that does the command's work: {function: (places, keywords)}."""
    calls = {}

    def note(name):
        real = getattr(run_extract, name)

        def noted(*places, **keywords):
            calls[name] = places, keywords
            return real(*places, **keywords)

        monkeypatch.setattr(run_extract, name, noted)

    for name in ("extract", "open_pool", "build_model", "load_weights", "class_tokens", "preprocess_of"):
        note(name)
    return calls


@pytest.fixture
def few(folder, tmp_path):
    """A list of four of the folder's images."""
    path = tmp_path / "few.txt"
    path.write_text("".join(f"{folder}/{i:03}.png\n" for i in range(4)))
    return path


def rows_of(out, name="few_train.npy"):
    return np.load(out / name)


ROWS = {"dataset", "data_path", "split", "labels", "arch", "input_size", "patch_size", "pretrained_weights",
        "checkpoint_key", "n_last_blocks", "avgpool_patchtokens", "batch_size_per_gpu", "num_workers", "output_dir",
        "extra_name", "amp", "compile", "dtype", "on_error", "device", "allow_http", "background"}  # fmt: skip


def test_every_flag_has_a_row():
    assert {action.dest for action in build_parser()._actions} - {"help", "local_rank"} == ROWS


def test_the_pool_is_the_one_asked_for(weights, few, tmp_path, asked, monkeypatch):
    opened = []

    def noted(*words):
        opened.append(words)
        raise UserError("enough")

    monkeypatch.setattr(run_extract, "open_pool", noted)
    for data in ((), ("--data_path", "/there", "--split", "val")):
        with pytest.raises(UserError, match="enough"):
            main_extract(command(weights, tmp_path, *data, dataset="CIFAR100"))
    assert [(name, split, str(path)) for name, split, path in opened] == [
        ("CIFAR100", "train", "None"), ("CIFAR100", "val", "/there"),
    ]  # fmt: skip


def test_paths_of_a_list_with_labels_start_where_they_are_said_to(weights, folder, tmp_path):
    (tmp_path / "list.txt").write_text("004.png\n002.png\n")
    (tmp_path / "l.csv").write_text("file,label\n002.png,lynx\n")
    words = ["--data_path", str(folder), "--labels", str(tmp_path / "l.csv")]
    asked = build_parser().parse_args(command(weights, tmp_path, *words, dataset=tmp_path / "list.txt"))
    pool = run_extract.open_images(asked)
    assert (pool.class_names, pool.labels) == (("lynx",), [-1, 0])
    assert pool.paths == [str(folder / name) for name in ("004.png", "002.png")]


def test_labels_are_those_of_folders_or_of_a_table(weights, folder, tmp_path):
    for i, kind in enumerate(("cat", "dog", "dog")):
        (tmp_path / "pool" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / f"{i:03}.png", tmp_path / "pool" / kind / f"{i}.png")
    (tmp_path / "l.csv").write_text("file,label\ndog/1.png,wolf\ncat/0.png,lynx\n")

    def labels(*flags, dataset=tmp_path / "pool"):
        main_extract(command(weights, tmp_path, *flags, dataset=dataset))
        table = load_features(tmp_path / "pool_train.npy")
        return table.class_names, None if table.labels is None else table.labels.tolist()

    assert labels() == (None, None)
    assert labels("--labels", "folders") == (("cat", "dog"), [0, 1, 1])
    assert labels() == (("cat", "dog"), [0, 1, 1])  # are not lost where the flag is forgotten
    shutil.copyfile(folder / "004.png", tmp_path / "pool" / "cat" / "z.png")
    assert labels() == (("cat", "dog"), [0, -1, 1, 1])
    (tmp_path / "pool" / "cat" / "z.png").rename(tmp_path / "pool" / "dog" / "0.png")
    for old, new in (("cat/0.png", "t.png"), ("dog/1.png", "cat/0.png"), ("t.png", "dog/1.png")):
        (tmp_path / "pool" / old).rename(tmp_path / "pool" / new)
    assert labels() == (("cat", "dog"), [1, -1, 0, 1])  # the labels are of contents, not of names
    (tmp_path / "pool" / "dog" / "0.png").unlink()
    assert labels("--labels", str(tmp_path / "l.csv")) == (("lynx", "wolf"), [0, 1, -1])
    (tmp_path / "pool_train.npy").write_bytes(b"damaged")
    assert labels() == (None, None)
    with pytest.raises(UserError, match=r"000\.png lies in no class folder: .* in a CSV with --labels FILE"):
        labels("--labels", "folders", dataset=folder)
    with pytest.raises(UserError, match=r"--labels is for a folder of images or a list: DEMO has its own"):
        labels("--labels", "folders", dataset="DEMO")


def test_files_are_named_as_asked(weights, few, tmp_path):
    main_extract(command(weights, tmp_path / "a", dataset=few))
    main_extract(command(weights, tmp_path / "b", "--extra_name", "_x_", "--split", "val", dataset=few))
    assert rows_of(tmp_path / "a").shape == rows_of(tmp_path / "b", "few_x_val.npy").shape == (4, 193)


@pytest.mark.parametrize(
    ("flag", "keyword", "given"),
    [
        ("--batch_size_per_gpu", "batch_size", {"1": 1, "3": 3}),
        ("--num_workers", "num_workers", {"0": 0, "1": 1}),
        ("--amp", "amp_dtype", {"off": None, "bf16": torch.bfloat16}),
        ("--dtype", "dtype", {"float32": "float32", "float16": "float16"}),
        ("--on_error", "on_error", {"stop": "stop", "skip": "skip"}),
    ],
)
def test_the_work_is_done_as_asked(weights, few, tmp_path, asked, flag, keyword, given):
    for word, value in given.items():
        main_extract(command(weights, tmp_path, flag, word, dataset=few))
        assert asked["extract"][1][keyword] == value
    if flag == "--dtype":
        assert rows_of(tmp_path).dtype == np.float16


def test_the_model_is_compiled_where_asked(weights, few, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda embed: embed)
    for words, value in (((), False), (("--compile",), True)):
        main_extract(command(weights, tmp_path, *words, dataset=few))
        assert asked["extract"][1]["compiled"] == value


def test_an_image_that_cannot_be_read_stops_or_is_left_out(weights, few, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    few.write_text(few.read_text() + f"{tmp_path}/broken.png\n")
    with pytest.raises(UserError, match="broken"):
        main_extract(command(weights, tmp_path / "a", dataset=few))
    main_extract(command(weights, tmp_path / "b", "--on_error", "skip", dataset=few))
    assert len(rows_of(tmp_path / "b")) == 4


def test_tokens_of_more_blocks_and_of_the_patches(weights, few, tmp_path):
    main_extract(command(weights, tmp_path, dataset=few))
    one = rows_of(tmp_path)[:, :-1]
    main_extract(command(weights, tmp_path, "--n_last_blocks", "3", dataset=few))
    three = rows_of(tmp_path)[:, :-1]
    main_extract(command(weights, tmp_path, "--avgpool_patchtokens", "on", dataset=few))
    both = rows_of(tmp_path)[:, :-1]
    assert (one.shape[1], three.shape[1], both.shape[1]) == (192, 576, 384)
    np.testing.assert_allclose(three[:, -192:], one, atol=1e-4)  # the last block comes last
    assert not np.allclose(three[:, :192], one, atol=1e-2)
    kept = [np.abs(both[:, part] - one).max() < 1e-4 for part in (slice(0, 192), slice(0, 384, 2))]
    assert any(kept)  # the class token is still there


def test_the_backbone_is_the_one_asked_for(weights, few, tmp_path, asked, monkeypatch):
    main_extract(command(weights, tmp_path, dataset=few))
    assert asked["build_model"][0][0] == "demo_vit"
    assert str(asked["load_weights"][0][1]) == weights
    assert asked["load_weights"][1]["checkpoint_key"] is None

    class Enough(Exception):
        pass

    def build(arch, **settings):
        seen.append((arch, settings))
        raise Enough

    seen = []
    monkeypatch.setattr(run_extract, "build_model", build)
    words = ["--dataset", str(few), "--pretrained_weights", weights, "--output_dir", str(tmp_path), "--device", "cpu"]
    for more in ([], ["--arch", "vit_tiny", "--patch_size", "8", "--input_size", "64"]):
        with pytest.raises(Enough):
            main_extract([*words, *more])
    assert seen[0] == ("vit_small", {"patch_size": 16, "img_size": None})
    assert seen[1] == ("vit_tiny", {"patch_size": 8, "img_size": 64})


def test_an_address_must_be_safe_unless_allowed(few, tmp_path):
    address = "http://127.0.0.1:9/w.pth"
    with pytest.raises(UserError, match=r"--pretrained_weights http://127.* is not safe on the way: .*--allow-http"):
        main_extract(command(address, tmp_path, dataset=few))
    with pytest.raises((UserError, OSError)) as refused:  # nobody listens there
        main_extract(command(address, tmp_path, "--allow-http", dataset=few))
    assert "not safe" not in str(refused.value)


def test_the_weights_are_those_under_the_key(weights, model, few, tmp_path):
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save({"teacher": zeros, "student": model.state_dict()}, tmp_path / "w.pth")
    for key in ("teacher", "student"):
        main_extract(command(str(tmp_path / "w.pth"), tmp_path / key, "--checkpoint_key", key, dataset=few))
        assert (rows_of(tmp_path / key)[:, :-1] == 0).all() == (key == "teacher")


def test_the_pixels_are_of_the_asked_size(few, tmp_path, asked):
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.pth")
    for size in (32, 64):
        words = ["--dataset", str(few), "--arch", "resnet10t", "--pretrained_weights", str(tmp_path / "w.pth"),
                 "--output_dir", str(tmp_path), "--device", "cpu", "--num_workers", "0",
                 "--input_size", str(size)]  # fmt: skip
        main_extract(words)
        assert asked["extract"][1]["preprocess"].size == size


def test_the_device_is_the_one_asked_for(weights, few, tmp_path):
    words = [word for word in command(weights, tmp_path, dataset=few) if word not in ("--device", "cpu")]
    with pytest.raises(UserError, match="cuda:99"):
        main_extract([*words, "--device", "cuda:99"])
