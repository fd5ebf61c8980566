"""Temperatures and the calibration error against what they must find."""

import numpy as np
import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.judging.calibration import TEMPERATURES, at_temperature, calibration_error, log_loss, temperature


@pytest.mark.parametrize("true", [0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0])
def test_the_temperature_is_found(true):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator) * 2
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator)[:, 0]
    probabilities = logits.softmax(1)
    found = temperature(probabilities, labels)
    assert found == true
    cooled = at_temperature(probabilities, found)
    np.testing.assert_allclose(cooled, (logits / true).softmax(1), atol=1e-5)
    losses = [log_loss(at_temperature(probabilities, value), labels) for value in TEMPERATURES]
    assert log_loss(cooled, labels) == min(losses)


def test_temperature_of_labels_that_say_nothing():
    certain = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert temperature(certain, torch.tensor([1, 1])) == 1  # any is as good
    assert temperature(certain, torch.tensor([0, 0])) == 1  # none can help
    mixed = torch.tensor([[0.6, 0.4, 0.0]] * 9 + [[0.9, 0.1, 0.0]])
    labels = torch.tensor([0] * 9 + [2])  # the class of the last was not seen
    assert temperature(mixed, labels) == temperature(mixed[:9], labels[:9]) == 0.25
    assert at_temperature(mixed, 5.0)[:, 2].tolist() == [0] * 10


def test_a_label_that_was_ruled_out_costs_much_and_not_without_end():
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert log_loss(sure, torch.tensor([0, 1])) == 0
    assert log_loss(sure, torch.tensor([1, 1])) == pytest.approx(6 * np.log(10))  # 10^-12, once in two


def plain_error(probabilities, labels, bins):
    """The textbook: bin by bin."""
    confidence, found = probabilities.double().max(1)
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            accuracy = (found[inside] == labels[inside]).double().mean()
            total += inside.double().mean() * abs(accuracy - confidence[inside].mean())
    return float(total)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_matches_the_plain_loop(bins):
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(500, 20, generator=generator) * torch.rand(500, 1, generator=generator) * 4).softmax(1)
    probabilities[:3] = torch.eye(20)[:3]
    labels = torch.randint(20, (500,), generator=generator)
    assert calibration_error(probabilities, labels, bins) == pytest.approx(plain_error(probabilities, labels, bins))


def test_calibration_error_of_the_honest_and_of_the_sure():
    assert calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 1, 1, 1])) == pytest.approx(0.75)
    with pytest.raises(UserError, match="there is none"):
        calibration_error(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
