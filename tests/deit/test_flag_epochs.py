"""Flags that decide what a run consists of: its modes, rounds and epochs, when it is judged and saved, and where."""

import pytest
import torch

from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from deit import epochs as deit_epochs
from deit.engine import evaluate
from deit.runs import saving
from tests.support.flag_runs import Runs, row
from tests.support.plain_training import distance

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(one_thread, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("epochs"))


@row("eval", False, True)
def test_evaluation_alone_prints_and_writes_nothing(runs, capsys, tmp_path, one, other):
    run = runs(epochs=1)
    said = runs(capsys, eval=other, finetune=run.folder / "checkpoint.pth", output_dir=tmp_path, epochs=1)
    assert not said.seen
    assert f"* Acc@1 {run.result['last']['acc1']:.3f}" in said.said
    assert not list(tmp_path.iterdir())


@row("val_fraction", None, 0.25)
def test_a_share_of_the_labels_is_held_out(runs, one, other):
    assert sum(len(part.images) for part in runs(epochs=1).seen) == 8
    run = runs(epochs=1, val_fraction=other)
    assert sum(len(part.images) for part in run.seen) == 6
    assert "val_acc1" in run.lines[0]
    assert run.result["best"]["note"] == "chosen on 2 held-out images"


@row("eval_interval", 1, 3)
def test_epochs_are_judged_as_often_as_asked(runs, one, other):
    for every, judged in ((one, [1, 2, 3, 4]), (other, [3, 4])):
        run = runs(epochs=4, eval_interval=every)
        assert [line["epoch"] for line in run.lines if "test_acc1" in line] == judged


@row("save_interval", 1, 3)
def test_checkpoints_are_written_as_often_as_asked(runs, monkeypatch, one, other):
    written, real = [], saving.Saver.save

    def noted(saver, names, content):
        written.append(content["epoch"]) if saving.NEWEST in names else None
        return real(saver, names, content)

    monkeypatch.setattr(saving.Saver, "save", noted)
    for every, wanted in ((one, [1, 2, 3, 4]), (other, [3, 4]), (None, [2, 4])):
        written.clear()
        runs(epochs=4, save_interval=every, eval_interval=2, momentum=0.8)
        assert written == wanted


@row("skip_nonfinite", False, True)
def test_a_step_without_a_finite_loss_stops_or_is_left_out(runs, one, other):
    from deit.losses import Criterion

    real = Criterion.base

    def poisoned(criterion, logits, targets):
        calls.append(1)
        return real(criterion, logits, targets) * (float("nan") if len(calls) == 2 else 1)

    for skip in (one, other):
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Criterion, "base", poisoned)
            if skip:
                run = runs(epochs=1, skip_nonfinite=True, momentum=0.7)
            else:
                with pytest.raises(UserError, match="the loss is nan at epoch 1, step 2"):
                    runs(epochs=1, momentum=0.7)
    assert run.lines[0]["skipped_steps"] == 1
    assert torch.isfinite(run.state["model"]["head.weight"]).all()


class Second(World):
    """The second of two processes, alone."""

    def sum_(self, tensor):
        return tensor


@row("dist_eval", True, False)
def test_the_evaluation_is_shared_or_not(runs, monkeypatch, one, other):
    class Data:
        def __len__(self):
            return 5

        def plain(self, indices, batch):
            asked.append(list(indices))
            yield torch.zeros(len(indices), 2), torch.zeros(len(indices), dtype=torch.int64)

    asked = []
    for sharded in (one, other):
        evaluate(torch.nn.Identity(), Data(), Second(1, 2, torch.device("cpu")), batch=9, sharded=sharded)
    assert asked == [[1, 3], [0, 1, 2, 3, 4]]
    told, real = [], deit_epochs.evaluate
    monkeypatch.setattr(deit_epochs, "evaluate", lambda *a, **k: told.append(k["sharded"]) or real(*a, **k))
    runs(epochs=1, momentum=0.6)
    runs(epochs=1, momentum=0.6, no_dist_eval=True)
    assert told == [True, True, False, False]  # the model and its average


@row("device", "cpu", "cuda:99")
def test_the_device_is_the_one_asked_for(runs, one, other):
    assert runs(epochs=1, device=one).lines
    with pytest.raises(UserError, match="cuda:99"):
        runs(epochs=1, device=other)


@row("compile", False, True)
def test_the_model_is_compiled_where_asked(runs, monkeypatch, one, other):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compiled.append(model))
    runs(epochs=1, momentum=0.55, compile=one or None)
    assert not compiled
    runs(epochs=1, momentum=0.55, compile=other)
    assert len(compiled) == 1


@row("mode", "full", "lp-ft")
def test_the_mode_decides_what_learns(runs, one, other):
    before = torch.load(runs.weights("test_vit"), weights_only=True)["model"]
    body = {name: value for name, value in before.items() if not name.startswith("head.")}
    moved = {}
    for mode, epochs in (("full", [1, 2]), ("lp-ft", [0, 1, 2]), ("linear", [0])):
        left_out = dict.fromkeys(("epochs", "lr", "momentum", "weight_decay", "warmup_epochs", "min_lr", "sched", "opt",
                                  "drop_path", "no_repeated_aug", "model_ema_decay"))  # fmt: skip
        run = runs(mode=mode, **left_out if mode == "linear" else {"epochs": 2, "lr": 0.5})
        assert [line["epoch"] for line in run.lines] == epochs
        moved[mode] = sum((run.state["model"][name] - value).norm().item() for name, value in body.items())
        assert distance(run.state["model"], before) > 0
    assert moved["linear"] == 0
    assert min(moved["full"], moved["lp-ft"]) > 0


SELF = {"mode": "self-train", "sched": "cosine", "sched_unit": "step", "lr": 0.5, "epochs": 1}


@row("rounds", 1, 2)
def test_the_pool_is_gone_through_so_often(runs, one, other):
    for rounds in (one, other):
        run = runs(**SELF, rounds=rounds)
        assert len(list(run.folder.glob("soft_targets_*.npy"))) == rounds
        assert run.lines[-1]["epoch"] == 1 + rounds
        assert sum(len(part.images) for part in run.seen[2:]) >= 24 * rounds


@row("restarts", 1, 2)
def test_the_labels_are_trained_on_so_often(runs, one, other):
    for restarts in (one, other):
        assert [line["epoch"] for line in runs(epochs=2, restarts=restarts).lines] == [*range(1, 2 * restarts + 1)]


@row("folds", 0, 2)
def test_the_labels_are_asked_where_told(runs, one, other):
    assert runs(epochs=1, mode="lp-ft", folds=one, lr=0.5).result["verdict"] is None
    assert runs(epochs=1, mode="lp-ft", folds=other, lr=0.5).result["verdict"]["labels"] == 8


@row("minutes", None, 1)
def test_epochs_are_left_out_for_want_of_time(runs, monkeypatch, capsys, one, other):
    from deit import timing

    monkeypatch.setattr(timing, "measured", lambda job: {"off": 4.0})
    assert "for --minutes" not in runs(capsys, epochs=9).said
    run = runs(capsys, epochs=9, minutes=other)
    assert "for --minutes 1 with" in run.said
    assert run.lines[-1]["epoch"] < 9
