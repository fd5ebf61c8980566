"""What the trainer makes of its flags: mistakes are named, weights and lists must fit, a config file, help."""

import json
import subprocess
import sys

import pytest
import torch

from data_selection.common.errors import UserError
from deit.main import main
from deit.options import parse
from tests.support.trainer_runs import MAIN, command, make_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def bad(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    return path


WRONG = [
    ({"subset_ids": "[0, 99]"}, r"id 99 is outside the pool's 0\.\.23"),
    ({"subset_ids": "{}"}, "must be a non-empty JSON list"),
    ({"subset_ids": "missing.json"}, r"missing\.json"),
    ({"subset_ids": None}, r"FOLDERSUBSET needs --subset_ids FILE"),
    ({"data_set": "FOLDER"}, r"use --data-set FOLDERSUBSET"),
    ({"data_set": "CIFAR1O"}, r"unknown --data-set 'CIFAR1O': use one of CIFAR10, .*Did you mean CIFAR10\?"),
    ({"data_set": "IMNETSUBSET_Generate"}, r"IMNETSUBSET_Generate is not read here.*FOLDER"),
    ({"data_set": "INATSUBSET"}, r"iNaturalist 2018 needs train2018\.json, val2018\.json, categories\.json in"),
    ({"inat_category": "genus"}, r"--inat-category is for INAT"),
    ({"data_path": "/nonexistent"}, r"/nonexistent/train does not exist"),
    ({"finetune": None}, r"test_vit on --data-set FOLDERSUBSET has no pretrained weights .* --finetune none"),
    ({"model": "deit_smal"}, "unknown backbone 'deit_smal'"),
    ({"input_size": 30}, r"--model test_vit does not take --input-size 30"),
    ({"finetune": "missing.pth"}, r"weights file missing\.pth does not exist"),
    ({"finetune": None, "resume": "missing.pth"}, r"--resume missing\.pth does not exist"),
    ({"resume": "x.pth"}, "two starts"),
    ({"finetune": None, "eval": True}, r"--eval needs the weights"),
    ({"output_dir": "FILE/out"}, r"--output_dir .* cannot be written"),
    ({"epochs": 0}, r"--epochs 0 is below 1"),
    ({"start_epoch": 2, "minutes": 9}, r"--minutes may leave fewer epochs than --start_epoch 2"),
    (
        {
            "mode": "self-train",
            "recipe": "few-shot",
            "batch_size": 1,
            "global_batch_size": 1,
            "lr": None,
            "warmup_epochs": None,
            "input_size": None,
        },
        r"--mode self-train: a step holds a labelled image and one of the pool",
    ),
    ({"start_epoch": 5}, r"--start_epoch 5 is after the last epoch, 2"),
    ({"opt": "sgdd"}, r"unknown --opt 'sgdd': use one of .*adamw"),
    ({"opt_betas": 0.9, "data_path": "/nonexistent"}, r"--opt-betas does nothing with --opt SGD"),
    ({"sched": "plateau"}, "plateau cannot be resumed exactly; use one of cosine"),
    ({"mixup": 0.8}, r"--mixup-prob go together"),
    ({"clip_grad": 0}, r"--clip-grad 0.0 must be above 0"),
    ({"head_rate": 0}, r"--head-rate 0.0 must be above 0"),
    ({"head_scale": 1.5}, r"--head-scale 1.5 is outside 0\.\.1"),
    ({"resplit": True}, r"--resplit is not available"),
    ({"world_size": 2}, r"--world-size is not available: the launcher"),
    ({"distillation_type": "hard"}, r"needs --teacher-path"),
    (
        {"distillation_type": "hard", "teacher_path": "t.pth", "data_path": "/nonexistent"},
        r"needs a distilled --model \(deit_small_distilled_patch16_224\), not test_vit",
    ),
    ({"auto_resume": True}, r"--auto-resume needs --output_dir"),
    ({"device": "tpu9"}, "unknown device 'tpu9'"),
    ({"config": "epoch: 3"}, r"unknown key 'epoch' \(did you mean epochs\?\)"),
    ({"config": "repeated-aug: 3"}, "repeated-aug must be true or false"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG)
def test_bad_input_is_named_before_any_work(images, tmp_path, flags, message):
    flags = dict(flags)
    for name in ("subset_ids", "config"):
        if flags.get(name, "missing") and not flags.get(name, "missing").startswith("missing"):
            flags[name] = bad(tmp_path, flags[name])
    if "output_dir" in flags:
        (tmp_path / "FILE").write_text("")
        flags["output_dir"] = tmp_path / flags["output_dir"]
    with pytest.raises((UserError, FileNotFoundError), match=message):
        main(command(images, **flags))


def test_a_list_of_another_pool_is_refused(images, tmp_path, capsys):
    (tmp_path / "s.json").write_text("[0, 5, 8, 9]")
    told = {"features": {"shape": [24, 8], "provenance": {"pool": {"name": "CIFAR10"}}}}
    (tmp_path / "s.provenance.json").write_text(json.dumps(told))
    main(command(images, subset_ids=tmp_path / "s.json", epochs=1))
    told["features"]["shape"][0] = 23
    (tmp_path / "s.provenance.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"s.json was chosen from 23 images, but the training set has 24"):
        main(command(images, subset_ids=tmp_path / "s.json"))


def test_downloaded_weights_are_found_by_their_name(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = "dino_deitsmall16_pretrain.pth"
    flags = {"finetune": None, "resume": name, "epochs": 1}
    with pytest.raises(UserError, match=rf"--resume {name} does not exist: .*or give https://.*/{name} to download it"):
        main(command(images, **flags))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes((images / "weights.pth").read_bytes())
    main(command(images, **flags))
    assert f"{name} does not exist: taking {tmp_path}/checkpoints/{name}, downloaded before" in capsys.readouterr().out


def test_weights_of_another_model_are_refused_with_both_sides(images, tmp_path):
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"do not fit VisionTransformer: missing in the file.*only in the file \(1\)"):
        main(command(images, finetune=None, resume=tmp_path / "other.pth"))


def test_a_config_file_sets_flags_and_the_command_line_wins(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "epochs: 7\nlr: 1.0e-3\nrepeated-aug: false\nlr_noise: [0.1, 0.2]\nmodel_ema: true\n"
    )
    args = parse(
        ["--config", str(tmp_path / "c.yaml"), "--lr", "0.5", "--subset_ids", "s.json", "--data-set", "DEMOSUBSET"]
    )
    assert (args.epochs, args.lr, args.repeated_aug, args.lr_noise, args.model_ema) == (7, 0.5, False, [0.1, 0.2], True)


def test_documented_flags_are_understood():
    words = (
        "--clip-grad 2.0 --eval_interval 50 --data-set CIFAR100SUBSET --subset_ids s.json "
        "--resume dino_deitsmall16_pretrain.pth --output_dir Outputs/"
    )
    args = parse(words.split())
    assert (args.lr, args.batch_size, args.epochs, args.opt, args.weight_decay) == (3e-3, 256, 1000, "SGD", 1e-4)
    assert (args.clip_grad, args.eval_interval, args.output_dir) == (2.0, 50, "Outputs/")
    for flag in ("--no-model-ema", "--no-repeated-aug", "--no-pin-mem", "--dist-eval", "--model-ema-force-cpu"):
        parse([flag])


def test_the_first_epoch_is_1_and_the_0_of_an_old_command_line_too(capsys):
    for word in ("0", "1"):
        assert parse(["--data-set", "DEMO", "--start_epoch", word]).start_epoch == 1
    with pytest.raises(UserError, match=r"--start-epoch -1 is below 1"):
        parse(["--data-set", "DEMO", "--start_epoch", "-1"])
    with pytest.raises(SystemExit):
        parse(["--data-set", "DEMO", "--start_epoch", "first"])
    assert "'first' is no whole number" in capsys.readouterr().err


def test_help_answers_from_any_folder(tmp_path):
    for words, folder in (([str(MAIN)], tmp_path), (["-m", "deit.main"], MAIN.parents[1])):
        done = subprocess.run(
            [sys.executable, *words, "--help"], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert "--subset_ids" in done.stdout


def test_a_mistake_is_one_line_and_status_2():
    done = subprocess.run([sys.executable, str(MAIN), "--data-set", "X"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown --data-set 'X'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "word", "kind"), [("epochs", "3.5", "a whole number"), ("head-rate", "soon", "a number")]
)
def test_what_is_no_number_is_told_with_what_may_stand_there(flag, word, kind, capsys):
    with pytest.raises(SystemExit):
        parse(["--data-set", "FOLDER", f"--{flag}", word])
    assert f"{word!r} is neither {kind} nor auto" in capsys.readouterr().err
