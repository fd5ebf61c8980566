"""Whether a confidence means what it says: temperatures found on held-out labels, the error of calibration."""

from collections.abc import Sequence

import torch

from data_selection.common.errors import UserError

TEMPERATURES = (1.0, 0.7, 1.4, 0.5, 2.0, 0.25, 3.0, 5.0)  # of equally good ones the first is taken
BINS = 15  # of the calibration error


def log_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of -log p of the labels (n,) by probabilities (n, C)."""
    return -probabilities.double().gather(1, labels[:, None]).clamp(min=1e-12).log().mean().item()


def temperature(probabilities: torch.Tensor, labels: torch.Tensor, grid: Sequence[float] = TEMPERATURES) -> float:
    """The temperature of a grid that makes held-out probabilities (n, C) fit labels (n,) int64 best, by log loss.

    probabilities: from held_out; a row whose label has probability 0 (its class was not seen) decides nothing. Of
    equally good temperatures the first is taken.
    """
    losses = [log_loss(at_temperature(probabilities, value), labels) for value in grid]
    return grid[losses.index(min(losses))]


def at_temperature(probabilities: torch.Tensor, value: float) -> torch.Tensor:
    """Probabilities (n, C) to the power 1 / value, each row's sum 1 again: above 1 they are less certain."""
    if value == 1:
        return probabilities
    return (probabilities.double().log() / value).softmax(1).to(probabilities.dtype)


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = BINS) -> float:
    """Expected calibration error, 0 to 1: how far confidence and accuracy are apart, averaged over the rows.

    probabilities: (n, C); labels: (n,) int64. Rows are binned by the probability of their likeliest class, bins of
    equal width (Guo et al., 2017, "On Calibration of Modern Neural Networks"). Raises UserError where there is no row.
    """
    if len(labels) == 0:
        raise UserError("a calibration error needs labelled rows, there is none")
    confidence, found = probabilities.double().max(1)
    right = (found == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin's upper end is its own
    gaps = torch.zeros(bins, dtype=torch.float64, device=place.device).index_add(0, place, right - confidence)
    return gaps.abs().sum().item() / len(labels)
