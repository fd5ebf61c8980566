"""What more labels would bring, and what the last round has brought: in a sentence, and as a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_selection.judging.findings import Curve

UNSURE = 5.0  # points that a round may have brought, from which nobody can say that it did not pay
PAYS = 0.5  # points of accuracy, below which a round of labels does not


def outlook(curve: Curve) -> str:
    """What more labels would bring, in a sentence."""
    seen = [point for point in curve.points if point.seen]
    more = [point for point in curve.points if not point.seen]
    if not seen or not more:
        return "Too few labels to say what more would bring."
    last = more[-1]
    gain, low, high = (value - seen[-1].accuracy for value in (last.accuracy, last.low, last.high))
    verdict = (
        "another round pays" if low > PAYS else "another round may pay" if gain > PAYS else "more labels add little"
    )
    return (
        f"With {last.labels} labels the accuracy is expected to change by {gain:+.1f} points ({low:+.1f} to "
        f"{high:+.1f}) from that with {seen[-1].labels}: {verdict}."
    )


def last_round(rounds: Sequence[Mapping[str, Any]]) -> str:
    """What the last round brought, in a sentence; "" where it is the first, or no label came in it."""
    if len(rounds) < 2 or rounds[-1]["labels"] <= rounds[-2]["labels"]:
        return ""
    before, now = rounds[-2:]
    if bool(before.get("drawn")) != bool(now.get("drawn")):
        return "The last two rounds were judged in different ways, so that what the last one brought cannot be told."
    gain = now["accuracy"] - before["accuracy"]
    spread = math.hypot(*((one["high"] - one["low"]) / 2 for one in (before, now)))
    low, high = gain - spread, gain + spread
    verdict = (
        "it paid"
        if low > PAYS
        else "it seems to have paid"
        if gain > PAYS
        else "too few labels judge it to say more"
        if high > UNSURE
        else "it brought little"
    )
    return (
        f"The last round, from {before['labels']} to {now['labels']} labels, moved the accuracy by {gain:+.1f} points "
        f"({low:+.1f} to {high:+.1f}): {verdict}."
    )


def axes(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the learning curve lies in a picture of 0..100 by 0..100: marks and ends of both axes."""
    if not curve:
        return {}
    low = 10 * math.floor(min(point["low"] for point in curve) / 10)
    high = min(100, 10 * math.ceil(max(point["high"] for point in curve) / 10))
    most = max(point["labels"] for point in curve)
    span = max(high - low, 1)

    def at(labels: float, accuracy: float) -> tuple[float, float]:
        return round(100 * labels / most, 2), round(100 * (high - accuracy) / span, 2)

    return {
        "marks": [{"y": at(0, value)[1], "text": f"{value} %"} for value in range(low, high + 1, 10)],
        "labels": [{"x": at(point["labels"], 0)[0], "text": str(point["labels"])} for point in curve],
        "points": [{"at": at(point["labels"], point["accuracy"]), "low": at(point["labels"], point["low"]),
                    "high": at(point["labels"], point["high"])} for point in curve],
    }  # fmt: skip
