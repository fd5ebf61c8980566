"""By whose answers a report judges, and in which words."""

from types import SimpleNamespace

import pytest
import torch

from deit.labelled.judging import judge
from deit.labelled.reporting import curve_of, frozen

WORDS, LABELS = ["cat", "dog"], torch.tensor([0, 1, 0, 1])
FILES = ["a.png", "b.png", "c.png", "d.png"]
FINETUNED = {"kept": "finetuned", "finetuned": "lp-ft"}


@pytest.fixture
def judged(tmp_path):
    """A function of what the trainer left: the verdict of judge on four images."""
    (tmp_path / "args.yaml").write_text("folds: 2\nsmoothing: 0.1\n")
    head = "file,label,probe,probe_confidence,finetuned,finetuned_confidence"
    rows = [f"{file},cat,dog,0.95,{WORDS[i % 2]},0.{i + 6}" for i, file in enumerate(FILES)]
    (tmp_path / "cross_validation.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")

    def found(mode, verdict=None, probe=None, **rest):
        features = torch.nn.functional.one_hot(LABELS, 3).float()
        return judge(tmp_path, {"mode": mode, "verdict": verdict}, FILES, WORDS, features, LABELS, probe, **rest)

    return found


@pytest.mark.parametrize(
    ("mode", "taught", "words"),
    [("lp-ft", "lp-ft", ""), ("self-train", "lp-ft", " before the pool taught it"), ("self-train", "self-train", "")],
)
def test_a_finetuned_model_is_judged_by_what_its_cross_validation_said(judged, mode, taught, words):
    found = judged(mode, FINETUNED | {"finetuned": taught})
    assert found.answers.tolist() == [0, 1, 0, 1]
    assert found.sure.tolist() == pytest.approx([0.6, 0.7, 0.8, 0.9])
    half = "each label judged by a training on 50 % of the labels, without it"
    assert found.by == f"by the finetuned model{words}, {half}"


@pytest.mark.parametrize(
    ("mode", "verdict", "words"),
    [
        ("lp-ft", None, " (the finetuned model was not asked)"),
        ("lp-ft", FINETUNED | {"kept": "probe"}, ""),
        ("self-train", FINETUNED | {"kept": "probe"}, " before the pool taught it"),
        ("linear", None, ""),
        ("linear", FINETUNED, ""),
    ],
)
def test_a_head_stands_for_what_nobody_asked(judged, mode, verdict, words):
    quarters = "each label judged by a training on 75 % of the labels, without it"
    assert judged(mode, verdict).by == f"by a head on the frozen backbone{words}, {quarters}"


def test_where_only_the_trained_backbone_is_at_hand_the_probe_is_judged_by_its_cross_validation(judged):
    """Self-training has shown every label to the backbone, and the features are of another one."""
    found = judged("self-train", {"kept": "probe"}, ours=False)
    assert found.answers.tolist() == [1, 1, 1, 1]
    assert found.sure.tolist() == pytest.approx([0.95] * 4)
    half = "each label judged by a training on 50 % of the labels, without it"
    assert found.by == f"by a head on the frozen backbone before the pool taught it, {half}"


@pytest.mark.parametrize(
    ("mode", "verdict", "kept"),
    [
        ("linear", None, True),
        ("smoothed", None, True),
        ("lp-ft", {"kept": "probe"}, True),
        ("lp-ft", {"kept": "finetuned"}, False),
        ("lp-ft", None, False),
        ("self-train", {"kept": "probe"}, False),
        ("self-train", {"kept": "finetuned", "taught": "probe"}, False),
    ],
)
def test_a_backbone_that_the_pool_has_taught_is_not_frozen(mode, verdict, kept):
    assert frozen({"mode": mode, "verdict": verdict}) == kept


@pytest.mark.parametrize(("corrected", "answers", "sure"), [(True, [1], 0.81 / 0.82), (False, [0], 2 / 3)])
def test_the_graph_is_as_sure_as_its_own_temperature_says(judged, corrected, answers, sure):
    held = SimpleNamespace(corrected=torch.tensor([[0.1, 0.9]]), plain=torch.tensor([[0.8, 0.2]]))
    choice = SimpleNamespace(corrected=corrected)
    probe = SimpleNamespace(held=held, choice=choice, corrected_temperature=0.5, temperature=2.0)
    found = judged("smoothed", probe=probe)
    assert found.answers.tolist() == answers
    assert found.sure.item() == pytest.approx(sure)
    assert found.by.startswith("by the pool's graph, each label judged by a training on 80 % of the labels")


def test_a_learning_curve_of_labels_that_nothing_tells_is_flat():
    """Its models would know by heart the labels that they had learned from."""
    known = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    found = curve_of(known, torch.arange(40) % 2, 2, SimpleNamespace(c=1000.0), 0, None)
    assert max(point.accuracy for point in found.points) < 80
