"""--mode auto: the rule on hand-made answers, which modes there is time for, and what each is asked."""

import json
import re

import pytest
import torch

from data_selection.common.distributed import World
from deit import choosing, crossval, timing
from deit.choosing import ORDER, TRAINED, best_of, decide, length, modes_that_fit
from deit.crossval import answers, one_part
from deit.job import open_job
from deit.labelled.judging import judge
from deit.options import parse
from deit.runs.meters import clock
from tests.support.trainer_runs import few_shot, make_colours

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = 16
FEATURES = torch.zeros(24, 2)  # never read: what is said by them is hand-made


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = make_colours(tmp_path_factory.mktemp("images"))
    (root / "subset.json").write_text(json.dumps(list(range(4, 4 + LABELS))))
    return root


@pytest.fixture
def job(images):
    def make(**flags):
        usual = {"data_set": "FOLDERSUBSET", "subset_ids": images / "subset.json", "mode": "auto", "epochs": 2}
        return open_job(parse(few_shot(images, **usual | flags)), World(0, 1, torch.device("cpu")))

    return make


def rights(**counts):
    """(100,) bool by mode, each right on the first so many labels."""
    return {mode.replace("_", "-"): torch.arange(100) < count for mode, count in counts.items()}


@pytest.mark.parametrize("best", ORDER)
def test_a_mode_that_is_clearly_best_is_taken(best):
    counts = {mode: 90 if mode == best else 60 for mode in ORDER}
    taken, why = best_of({mode: torch.arange(100) < count for mode, count in counts.items()})
    assert taken == best
    assert why == "right of 100 labels that were left out: " + ", ".join(f"{mode} {counts[mode]}" for mode in ORDER)


@pytest.mark.parametrize(("counts", "taken"), [
    ({"smoothed": 60, "linear": 60, "lp_ft": 60}, "smoothed"),
    ({"smoothed": 59, "linear": 60, "lp_ft": 60}, "smoothed"),  # one label: noise
    ({"smoothed": 58, "linear": 60, "lp_ft": 60}, "linear"),
    ({"linear": 60, "lp_ft": 61}, "linear"),
    ({"linear": 60, "lp_ft": 62}, "lp-ft"),  # two more, none fewer: more than the square root of two
    ({"linear": 60, "lp_ft": 79, "full": 80, "self_train": 80}, "lp-ft"),
    ({"linear": 60, "lp_ft": 70, "three_phase": 78, "full": 70, "self_train": 79}, "three-phase"),
    ({"smoothed": 70, "linear": 60, "lp_ft": 50, "full": 71}, "smoothed"),
    ({"linear": 60}, "linear"),
])  # fmt: skip
def test_within_noise_the_cheaper_one_is_taken(counts, taken):
    assert best_of(rights(**counts))[0] == taken


@pytest.mark.parametrize(("counts", "taken"), [
    ({"smoothed": 62, "linear": 60, "lp_ft": 62, "self_train": 61}, "self-train"),
    ({"smoothed": 62, "linear": 60, "lp_ft": 62, "self_train": 60}, "smoothed"),
    ({"smoothed": 60, "linear": 60, "self_train": 59}, "self-train"),
    ({"smoothed": 60, "linear": 61, "self_train": 59}, "smoothed"),
    ({"smoothed": 60, "linear": 60, "lp_ft": 60}, "smoothed"),
])  # fmt: skip
def test_of_few_labels_the_pool_teaches_unless_they_say_otherwise(counts, taken):
    assert best_of(rights(**counts), few=True)[0] == taken


@pytest.mark.parametrize(("few", "mode"), [(8, "self-train"), (7, "smoothed")])
def test_labels_are_few_by_their_number_in_a_class(stubbed, job, monkeypatch, few, mode):
    """16 labels of two classes."""
    stubbed(**{mode.replace("-", "_"): 10 for mode in ORDER})
    monkeypatch.setattr(choosing, "FEW", few)
    found = job()
    decide(found, "none", FEATURES)
    assert found.args.mode == mode


def test_noise_is_counted_on_the_same_labels():
    """Five labels ahead: beyond noise where nothing is lost for them, within it where ten are lost for fifteen."""
    few, many = torch.arange(100) < 60, (torch.arange(100) >= 10) & (torch.arange(100) < 75)
    assert best_of({"linear": few, "full": torch.arange(100) < 65})[0] == "full"
    taken, why = best_of({"linear": few, "full": many})
    assert taken == "linear"
    assert why.endswith("linear 60, full 65; the lead of full is within a standard error (5.0)")


@pytest.fixture
def stubbed(monkeypatch):
    """Hand-made answers: `stubbed(right by mode)` has decide find them; a step takes a second, images nothing."""

    def make(**counts):
        def said(job, mode):
            labels = torch.tensor([job.train_pool.label(i) for i in crossval.asked_ids(job)])
            right = torch.arange(LABELS) < counts[mode.replace("-", "_")]
            return torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).float()

        def settle(job, alone):
            job.args.amp = "bf16"
            return 1.0

        monkeypatch.setattr(choosing, "settle", settle)
        monkeypatch.setattr(
            choosing, "answers", lambda job, source, modes: {mode: said(job, mode) for mode in ("linear", *modes)}
        )
        for mode in ("smoothed", "linear"):
            monkeypatch.setattr(choosing, f"{mode}_said", lambda job, features, mode=mode: said(job, mode))

    return make


@pytest.mark.parametrize("best", ORDER)
def test_auto_takes_what_the_labels_say(stubbed, job, best, capsys):
    counts = dict.fromkeys((mode.replace("-", "_") for mode in ORDER), 6) | {best.replace("-", "_"): 15}
    stubbed(**counts)
    found = job(amp="measured")
    asked = decide(found, "none", FEATURES)
    assert found.args.mode == found.settings["mode"] == best
    assert found.args.amp == ("measured" if best in ("smoothed", "linear") else "bf16")
    assert (found.pool_epochs > 0) == (best == "self-train")
    assert found.head_only == (best in ("smoothed", "linear"))
    assert found.verdict["finetuned"] == (best if best in TRAINED else "lp-ft")
    assert found.verdict["finetuned_right"] == (15 if best in TRAINED else 6)
    assert asked.finetuned.argmax(1).equal(torch.tensor([found.train_pool.label(i) for i in asked.ids])) is False
    out = capsys.readouterr().out
    assert "--mode auto asks smoothed, linear, lp-ft, three-phase, full, self-train: about 0:0" in out
    told = clock(length(job(mode="lp-ft"), 1.0, "self-train", TRAINED, rounds=1))  # the longest, what precedes it, too
    assert re.findall("about (.*?) ", out) == [told]
    assert f"--mode auto takes {best}: right of 16 labels that were left out: smoothed " in out
    assert ("temperature" in found.settings) == (best != "smoothed")


@pytest.mark.parametrize(("lp_ft", "taught"), [(4, "probe"), (5, "finetuned"), (7, "finetuned")])
def test_the_pool_teaches_what_it_teaches_without_auto(stubbed, job, lp_ft, taught):
    """The probe where the finetuned model loses against it by more than chance, else the finetuned model."""
    stubbed(**{mode.replace("-", "_"): 6 for mode in ORDER} | {"lp_ft": lp_ft, "self_train": 15})
    found = job()
    decide(found, "none", FEATURES)
    assert (found.verdict["taught"], found.verdict["kept"]) == (taught, "finetuned")
    assert found.head_only == (taught == "probe")
    assert found.labelled_epochs == (0 if taught == "probe" else 2)


def test_the_temperature_is_that_of_the_mode_that_is_taken(stubbed, job, monkeypatch):
    """The head, whose rival is better by less than a standard error."""
    stubbed(linear=9, lp_ft=10, three_phase=9, full=9, self_train=9)
    monkeypatch.setattr(choosing, "FEW", 7)
    monkeypatch.setattr(crossval, "temperature", lambda said, labels: int((said.argmax(1) == labels).sum()))
    found = job()
    decide(found, "none", None)
    assert (found.args.mode, found.settings["temperature"]) == ("linear", 9)


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_pool_will_teach_has_no_temperature_of_another_model(stubbed, job, monkeypatch, asked):
    stubbed(linear=6, lp_ft=15, three_phase=6, full=6, self_train=15)
    monkeypatch.setattr(choosing, "modes_that_fit", lambda *_: [mode for mode in TRAINED if asked or mode == "lp-ft"])
    monkeypatch.setattr(crossval, "temperature", lambda said, labels: 0.5)
    found = job(minutes=600)
    decide(found, "none", None)
    assert found.args.mode == "self-train"
    assert found.settings["temperature"] == (0.5 if asked else None)


def test_without_features_the_graph_is_not_asked(stubbed, job):
    stubbed(linear=6, lp_ft=6, three_phase=6, full=15, self_train=6)
    found = job()
    decide(found, "none", None)
    assert found.args.mode == "full"
    assert "smoothed" not in found.settings["auto"]


def test_modes_that_do_not_fit_are_not_asked(stubbed, job, capsys, monkeypatch):
    """A second a step. Both parts take 2 epochs of 2 steps (8 labels, 4 a step), the run 2 of 4, a round 6 (24 / 4)."""
    stubbed(smoothed=6, linear=6, lp_ft=15, three_phase=6)
    monkeypatch.setattr(timing, "VIEWS", 0)

    def modes(seconds):
        found = job(minutes=seconds / 60)
        found.args.mode = "lp-ft"
        found.test_pool = range(0)
        return modes_that_fit(found, 1.0)

    assert [modes(seconds) for seconds in (15, 16.1, 20, 28, 50, 60)] == [
        [], ["lp-ft"], ["lp-ft", "three-phase"], ["lp-ft", "three-phase", "full"], ["lp-ft", "three-phase", "full"],
        list(TRAINED),
    ]  # fmt: skip
    found = job(minutes=22 / 60)
    found.test_pool = range(0)
    decide(found, "none", FEATURES)
    assert found.args.mode == "lp-ft"
    out = capsys.readouterr().out
    told = re.search("asks smoothed, linear, lp-ft, three-phase: about 0:00:(..) with the run itself; no time in", out)
    assert 16.1 <= int(told[1]) <= 20
    assert "no time in --minutes 0.366667 for full, self-train" in out
    assert "no round of the pool fits into --minutes" in out


def test_the_pool_teaches_further_unasked_where_there_is_time_for_that_alone(stubbed, job, monkeypatch):
    stubbed(linear=6, lp_ft=15)
    monkeypatch.setattr(choosing, "modes_that_fit", lambda *_: ["lp-ft"])
    found = job(rounds=2, minutes=60)
    decide(found, "none", None)
    assert (found.args.mode, found.args.rounds) == ("self-train", 2)
    assert found.settings["auto"].endswith("2 rounds of the pool fit, which there was no time to ask")
    found = job(rounds=2, minutes=0.55)  # 33 s: 28.7 with a round, 36.7 with two
    decide(found, "none", None)
    assert found.settings["rounds"] == found.args.rounds == 1  # the settings are what a run goes on by
    found = job(minutes=60)
    monkeypatch.setattr(choosing, "may_teach", lambda _: False)
    decide(found, "none", None)
    assert found.args.mode == "lp-ft"


@pytest.mark.parametrize(("counts", "mode"), [
    ({"smoothed": 9, "linear": 9}, "smoothed"), ({"smoothed": 7, "linear": 9}, "linear"), (None, "linear"),
])  # fmt: skip
def test_without_time_to_finetune_the_frozen_modes_are_asked(stubbed, job, monkeypatch, counts, mode):
    stubbed(**counts or {})
    monkeypatch.setattr(choosing, "settle", lambda job, alone: vars(job.args).update(folds=0))
    found = job(minutes=1)
    assert decide(found, "none", FEATURES if counts else None) is None
    assert found.args.mode == mode
    assert found.settings["auto"].startswith("there is no time to finetune in --minutes 1; ")
    assert found.verdict is None


def test_every_mode_is_asked_of_the_same_labels_and_does_not_hear_the_others(images, job):
    """What a mode says beside the others is what it says alone."""
    found, source = job(), str(images / "blind.pth")
    before = dict(found.settings)
    said = answers(found, source, TRAINED)
    assert set(said) == {"linear", *TRAINED}
    assert {len(values) for values in said.values()} == {LABELS}
    for mode in ("three-phase", "full", "self-train"):
        parts = [one_part(found, source, *part, "", [mode]) for part in crossval.parts_of(found)]
        torch.testing.assert_close(torch.cat([part[mode] for part in parts]), said[mode])
        torch.testing.assert_close(torch.cat([part["linear"] for part in parts]), said["linear"])
    others = list(said.values())
    for place, one in enumerate(others):
        assert all((one - other).abs().max() > 1e-3 for other in others[:place])
    assert (found.args.mode, found.settings, found.pool_epochs) == ("auto", before, 0)


def test_the_head_on_known_features_says_what_the_probe_says(images, job):
    from deit.job import decode, new_learner
    from deit.learner.linear import frozen_features

    found, source = job(), str(images / "sighted.pth")
    ids, found.ids = found.ids, list(range(24))
    rows = frozen_features(new_learner(found, source), decode(found, frozen=True, train=False).frozen, 24).features
    found.ids = ids
    said = answers(found, source, [])
    torch.testing.assert_close(choosing.linear_said(found, rows), said["linear"], atol=2e-3, rtol=1e-2)


def test_the_graph_is_asked_for_labels_that_it_was_not_given(job):
    """An image among those of the other class is taken for one of them."""
    found = job()
    labels = torch.tensor([found.train_pool.label(i) for i in range(24)])
    near = torch.where(torch.arange(24) == found.ids[3], 1 - labels, labels)
    rows = torch.eye(2)[near] + 0.1 * torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    said = choosing.smoothed_said(found, rows)
    assert said.argmax(1).tolist() == near[crossval.asked_ids(found)].tolist()


@pytest.mark.parametrize(("finetuned", "words"), [("self-train", "model, "), ("lp-ft", "model before the pool taught")])
def test_the_report_says_which_model_was_asked(tmp_path, finetuned, words):
    (tmp_path / "args.yaml").write_text("folds: 2\n")
    (tmp_path / "cross_validation.csv").write_text("file,finetuned,finetuned_confidence\na,x,0.5\n")
    result = {"mode": "self-train", "verdict": {"kept": "finetuned", "finetuned": finetuned}}
    said = judge(tmp_path, result, ["a"], ["x"], torch.zeros(1, 1), torch.zeros(1), None)
    assert said.by.startswith(f"by the finetuned {words}")
