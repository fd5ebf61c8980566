"""Runs that are continued from another checkpoint, with other flags or images than they began with."""

import errno
import json
import re
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError, run
from data_selection.embedding.backbones import build_model
from data_selection.embedding.image_batches import batches
from data_selection.embedding.preprocessing import DEMO_PREPROCESS
from data_selection.embedding.sizes import check_size, patch_side
from data_selection.images.pools import Pool
from deit import crossval
from deit.datasets import prepare
from deit.job import decode, open_job
from deit.learner import restarts
from deit.learner.building import distillation, make_pipeline
from deit.learner.schedules import make_scheduler
from deit.main import main
from deit.options import parse
from deit.runs.meters import RunLog
from deit.runs.saving import NEWEST, PREVIOUS
from deit.runs.stopping import torch_errors_named
from deit.samples.batches import Part
from tests.deit.test_lost_work import stopped_in
from tests.support.trainer_runs import checkpoint, command, few_shot, make_images

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_what_the_flags_leave_open_is_taken_from_the_checkpoint_before(images, tmp_path, damage, capsys):
    words = {"epochs": 3, "save_interval": 1, "auto_resume": True, "num_workers": 0}
    main(command(images, tmp_path, input_size=48, **words))
    for name in (NEWEST, "result.json"):
        path = tmp_path / name
        if damage == "missing" or name != NEWEST:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:3000])
    capsys.readouterr()
    main(command(images, tmp_path, input_size=None, **words))
    assert f"as {tmp_path / PREVIOUS} was made: --input-size 48" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["last"]["epoch"] == 3


def learner(value, average):
    """A stand-in whose one weight, and its average where it has one, are `value`."""
    weights = [{"w": torch.full((2,), value)}, {"w": torch.full((2,), 10 * value)}]
    states = [SimpleNamespace(state_dict=lambda found=found: found) for found in weights]
    ema = SimpleNamespace(module=states[1]) if average else None
    return SimpleNamespace(model=states[0], ema=ema, weights=weights)


@pytest.mark.parametrize(("averages", "mean"), [((0, 1, 1), 25), ((1, 0, 1), 20), ((1, 1, 1), 20), ((0, 0, 1), 30)])
def test_the_mean_of_averages_is_over_the_trainings_that_had_one(averages, mean):
    kept = {}
    for number, average in enumerate(averages, 1):
        one = learner(float(number), average)
        one.kept = kept
        restarts.end(one, number, 3)
    assert [weights["w"].tolist() for weights in one.weights] == [[2, 2], [mean, mean]]
    assert kept == {}


def test_a_run_that_gets_an_average_after_its_first_training_goes_on(images, tmp_path, monkeypatch):
    words = {"epochs": 2, "restarts": 2, "save_interval": 1, "auto_resume": True, "num_workers": 0, "eval_interval": 99}
    stopped_in(monkeypatch, command(images, tmp_path, no_model_ema=True, **words), 3)
    main(command(images, tmp_path, **words))
    assert checkpoint(tmp_path)["model_ema"]


def test_a_rate_without_a_schedule_is_scaled_once(images):
    args = parse(command(images, sched="none", warmup_epochs=None))
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1, "lr_scale": 5.0}]
    optimizer = torch.optim.SGD(groups)
    for _ in range(3):  # as for every part of a run
        assert make_scheduler(args, optimizer, 4) is None
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


@pytest.mark.parametrize(("mode", "rest"), [("lp-ft", ""), ("auto", "; --mode auto takes linear")])
def test_one_label_has_nothing_to_be_asked_of(images, tmp_path, capsys, mode, rest):
    one = tmp_path / "one.json"
    one.write_text("[3]")
    words = few_shot(images, tmp_path / "out", folds=2, epochs=1, data_set="FOLDERSUBSET", subset_ids=one,
                     finetune=images / "demo.pth", mode=mode)  # fmt: skip
    main(words)
    told = "cross-validation is left out: one label is none to learn from and one to ask of"
    assert f"{told}{rest}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["verdict"] is None


def test_evaluation_images_that_come_later_are_told(images, tmp_path, monkeypatch, capsys):
    words = {"epochs": 3, "val_fraction": 0.3, "save_interval": 1, "auto_resume": True, "num_workers": 0}
    stopped_in(monkeypatch, command(images, tmp_path, val_path="none", **words), 2)
    capsys.readouterr()
    assert run(main, command(images, tmp_path, **words)) == 0
    assert "top-1 after the last epoch (3): " in capsys.readouterr().out


def test_held_out_images_are_told_where_there_are_no_others(images, tmp_path, capsys):
    main(command(images, tmp_path, epochs=2, val_fraction=0.3, val_path="none", num_workers=0))
    best = json.loads((tmp_path / "result.json").read_text())["best"]
    told = f"best {best['val_acc1']:.2f} % at epoch {best['epoch']}, chosen on 6 held-out images"
    assert told in capsys.readouterr().out


def test_a_teacher_of_another_size_is_refused_before_any_image_is_decoded(tmp_path):
    torch.save(build_model("test_vit", 2).state_dict(), tmp_path / "teacher.pth")
    words = ["--teacher-model", "test_vit", "--teacher-path", str(tmp_path / "teacher.pth")]
    args = parse(["--data-set", "FOLDER", *words, "--distillation-type", "soft", "--input-size", "100"])
    student = SimpleNamespace(set_distilled_training=lambda _: None)
    with pytest.raises(UserError, match=r"--teacher-model test_vit does not take --input-size 100: "):
        distillation(args, student, 2, World(0, 1, torch.device("cpu")), RunLog("", False))


def test_a_process_without_an_image_may_keep_none_on_the_device(images):
    job = open_job(parse(command(images, input_size=96)), World(0, 1, torch.device("cpu")))
    pipeline = make_pipeline(job.args, job.defaults)
    assert len(prepare(job.train_pool, [], pipeline, job.world.device, train=True, cache="device")) == 0


def test_the_clock_of_a_run_without_one_has_settled_nothing(images, tmp_path, monkeypatch):
    """--minutes that comes with the continuation does not make 2 epochs of 40."""
    words = {"save_interval": 1, "auto_resume": True, "num_workers": 0}
    main(command(images, tmp_path, epochs=2, **words))
    with pytest.raises(UserError, match="was made with another recipe: --epochs 40"):
        main(command(images, tmp_path, epochs=40, minutes=60, **words))


def test_other_weights_than_the_run_began_with_are_told(images, tmp_path, capsys):
    words = {"epochs": 1, "save_interval": 1, "auto_resume": True, "num_workers": 0}
    main(command(images, tmp_path, **words))
    other = (images / "weights.pth").rename(tmp_path / "other.pth")
    try:
        assert run(main, command(images, tmp_path, finetune=other, **words)) == 0
    finally:
        other.rename(images / "weights.pth")
    assert "warning: this run began with --finetune" in capsys.readouterr().out


def test_the_head_is_fitted_to_the_pixels_that_evaluation_sees(images, monkeypatch):
    """Also where random crops of tiny images are kept whole, and evaluation sees a resized centre."""
    words = {"model": "test_resnet", "input_size": 32, "pixels": "model", "augment": "crop", "finetune": "none"}
    job = open_job(parse(command(images, **words)), World(0, 1, torch.device("cpu")))
    both = [decode(job, frozen=True, train=train).frozen for train in (True, False)]
    one, other = (torch.cat([pixels for pixels, _ in found.plain(range(len(job.ids)), 8)]) for found in both)
    torch.testing.assert_close(one, other)


def test_a_single_image_in_a_pass_is_measured_and_trained_with_fixed_statistics(images, tmp_path):
    words = {"model": "test_resnet", "input_size": 32, "finetune": "none", "batch_size": 1, "global_batch_size": 4}
    words |= {"batch_norm": "fixed", "amp": "measured", "epochs": 1, "num_workers": 0, "warmup_epochs": None}
    main(command(images, tmp_path, **words))


@pytest.mark.parametrize(("size", "right"), [(30, "16 or 32"), (8, "16 or 16"), (230, "224 or 240")])
def test_patches_that_do_not_fit_are_refused(size, right):
    model = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(16, 16), proj=torch.nn.Conv2d(3, 1, 16, 16)))
    with pytest.raises(UserError, match=f"not take --input-size {size}: a multiple of its patches of 16 .* as {right}"):
        check_size(model, size, "--model x", "--input-size")


@pytest.mark.parametrize(("name", "side"), [("test_vit", 16), ("pvt_v2_b0", 1), ("test_resnet", 1)])
def test_patches_that_overlap_cut_nothing_off(name, side):
    assert patch_side(timm.create_model(name)) == side


def test_batch_norm_of_a_single_image_is_told():
    with pytest.raises(UserError, match="a single image in a step"), torch_errors_named(lambda: None):
        torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1))
    with pytest.raises(ValueError, match="other"), torch_errors_named(lambda: None):
        raise ValueError("other")


@pytest.mark.parametrize("amp", ["off", "measured"])  # measured before anything is trained
def test_a_step_of_a_single_image_ends_in_one_line(images, capsys, amp):
    words = {"model": "timm:resnet10t", "input_size": 32, "finetune": "none", "batch_size": 1, "batch_norm": "train"}
    words |= {"mode": "full", "amp": amp, "epochs": 1, "num_workers": 0, "warmup_epochs": None}
    assert run(main, command(images, **words)) == 2
    assert "error: a process has a single image in a step" in capsys.readouterr().err


def test_a_limit_of_open_files_is_told(monkeypatch, capsys):
    """By the trainer, by extraction, and where Python itself comes upon it."""
    error = RuntimeError("Too many open files. Communication with the workers is no longer possible.")
    told = f"too many open files: .*, {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, is reached; raise it .ulimit -n"
    with pytest.raises(UserError, match=told), torch_errors_named(lambda: None):
        raise error

    def loader(*_, **__):
        raise error
        yield

    monkeypatch.setattr("data_selection.embedding.image_batches.DataLoader", loader)
    pool = Pool(paths=["a.png"], names=["a.png"])
    with pytest.raises(UserError, match=f"{told}.*; the rows so far are kept"):
        next(batches(pool, [[0]], DEMO_PREPROCESS, None, 0, torch.device("cpu")))

    def main_of_another(_):
        raise OSError(errno.EMFILE, "Too many open files")

    assert run(main_of_another) == 2
    assert re.match(f"error: {told}", capsys.readouterr().err)


@pytest.mark.parametrize(("labels", "found"), [([0, 1], 1.0), ([0, 0, 1, 2], 0.25)])
def test_labels_that_no_part_could_learn_say_nothing_of_confidence(labels, found):
    """A class with a single label is never right where it is asked for."""
    pool = Pool(arrays=np.zeros((len(labels), 2, 2), np.uint8), labels=labels, classes=3)
    ids = list(range(len(labels)))
    job = SimpleNamespace(ids=ids, held=[], train_pool=pool, args=SimpleNamespace(folds=2, seed=0))
    said = torch.tensor([[0.6, 0.2, 0.2]]).expand(len(labels), 3)
    assert crossval.temperature_of({"kept": "probe"}, crossval.Asked(ids, said, said), job) == found


def test_crops_are_the_same_however_images_are_kept(images):
    """What fits into a process's share of the memory depends on the number of processes."""
    job = open_job(parse(command(images, input_size=96)), World(0, 1, torch.device("cpu")))
    pipeline = make_pipeline(job.args, job.defaults)
    parts, seen = [Part(torch.arange(6), torch.arange(6), torch.arange(6))], []
    for cache, kind in (("auto", "ResizedImages"), ("ram", "PilImages"), ("none", "PilImages")):
        data = prepare(
            job.train_pool, job.ids, pipeline, job.world.device, train=True, seed=3, cache=cache, workers=0
        )  # fmt: skip
        assert type(data).__name__ == kind
        seen.append(next(iter(data.augmented(parts, 2)))[0])
    torch.testing.assert_close(seen[1], seen[2])
    assert (seen[0] - seen[1]).abs().mean() < 0.01  # matrices round otherwise than Pillow
