"""What judges a choice, on a pretended GPU: nothing that CUDA refuses, and the CPU's answers."""

import pytest
import torch

from data_selection.common.distributed import World
from data_selection.judging.evaluation import knn_accuracy
from data_selection.judging.probe import choose_c, fit_probe, held_out
from data_selection.judging.smoothed import fit_smoothed
from tests.support.pretend_cuda import pretended


@pytest.fixture(scope="module")
def labelled():
    """(features (90, 6), labels (90,) of three classes)."""
    labels = torch.arange(90) % 3
    draws = torch.randn(93, 6, generator=torch.Generator().manual_seed(0))
    return draws[:90] + 2 * draws[90:][labels], labels


def neighbours(features, labels):
    return torch.tensor(knn_accuracy(features[:60], labels[:60], features[60:], labels[60:], k=5))


def probe(features, labels):
    return fit_probe(features[:30], labels[:30], 3, choose_c(features[:30], labels[:30], (1.0, 30.0))).predict(features)


def held(features, labels):
    return held_out(features[:30], labels[:30], 3, 10.0)


def smoothed(features, labels):
    world = World(0, 1, features.device)
    fitted = fit_smoothed(features[:80], labels[:20], torch.arange(20), k=5, c=None, correct=None, world=world)
    return torch.cat([fitted.pool_probabilities().cpu(), fitted.predict(features[80:]).cpu()])


@pytest.mark.parametrize("judge", [neighbours, probe, held, smoothed])
def test_the_answers_of_the_cpu(judge, labelled):
    expected = judge(*labelled)
    with pretended() as card:
        found = judge(*(values.to("cuda") for values in labelled)).cpu()
    assert card.faults == []
    assert not card.loose
    assert torch.allclose(found, expected, atol=1e-5)


def test_labels_on_the_cpu(labelled):
    features, labels = labelled
    expected = neighbours(features, labels)
    with pretended() as card:
        assert neighbours(features.to("cuda"), labels) == expected
    assert card.faults == []
