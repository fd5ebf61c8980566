"""Flags that say where weights and lists come from, and which weights are judged."""

import pytest
import torch

from data_selection.common.errors import UserError
from tests.support.flag_runs import CLASSES, SIZE, Runs, row, small_model

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = {"lr": 0.0, "weight_decay": 0.0, "epochs": 1, "mode": "full"}


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("start"))


@row("checkpoint_key", "mine", "student")
def test_the_weights_are_those_under_the_key(runs, tmp_path, one, other):
    model = small_model("test_vit", CLASSES, SIZE)
    entries = {
        key: {name: torch.full_like(value, number) for name, value in model.state_dict().items()}
        for number, key in enumerate((one, other))
    }
    torch.save(entries, tmp_path / "w.pth")
    for number, key in enumerate((one, other)):
        run = runs(finetune=tmp_path / "w.pth", checkpoint_key=key, **STILL)
        assert all((value == number).all() for value in run.state["model"].values() if value.is_floating_point())


@row("allow_http", False, True)
def test_an_address_must_be_safe_unless_allowed(runs, one, other):
    address = "http://127.0.0.1:9/w.pth"
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/w\.pth is not safe on the way"):
        runs(finetune=address, allow_http=one or None, **STILL)
    with pytest.raises((UserError, OSError)) as refused:  # nobody listens there
        runs(finetune=address, allow_http=other, **STILL)
    assert "not safe" not in str(refused.value)


@row("eval_ema", False, True)
def test_the_average_is_judged_where_asked(runs, one, other):
    plain, judged = (runs(epochs=2, eval_ema=value or None) for value in (one, other))
    assert all("test_ema_acc1" not in line for line in plain.lines)
    assert all("test_ema_acc1" in line for line in judged.lines)


@row("missing", "stop", "skip")
def test_images_that_are_gone_stop_the_run_or_are_left_out(runs, tmp_path, one, other):
    names = sorted(path.relative_to(runs.images / "train").as_posix() for path in runs.images.glob("train/*/*.png"))
    (tmp_path / "some.txt").write_text("".join(f"{name}\n" for name in [*names[:4], "class0/gone.png"]))
    with pytest.raises(UserError, match=r"some\.txt: 1 of 5 images are not in the training set: 'class0/gone\.png'"):
        runs(subset_ids=tmp_path / "some.txt", missing=one, **STILL)
    assert [len(part.images) for part in runs(subset_ids=tmp_path / "some.txt", missing=other, **STILL).seen] == [4]
