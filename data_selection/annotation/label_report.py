"""The report on a list of labels: how good the model is, what it confuses, what to look at, what more would bring."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_selection.annotation.outlook import axes, last_round, outlook
from data_selection.annotation.pages import render
from data_selection.annotation.run_folder import REPORT
from data_selection.common.files import atomic_write
from data_selection.common.progress import OpenBar
from data_selection.common.threads import one_sum
from data_selection.judging.estimate import FEWEST_DRAWN, Estimate
from data_selection.judging.findings import Curve, Share, confusion, interval
from data_selection.judging.report import FEWEST_MAPPED, project_2d
from data_selection.nearest.similarity import normalise

SHEET = 12  # images of a region, a confusion or a row
CONFUSIONS = 8  # pairs of classes that are shown with their images
MISTAKES, DOUBTFUL = 24, 24
REGIONS, REGION_ROWS = 12, 20_000  # parts of the pool, and the rows that they are found on
MAPPED = 2_000  # labelled images on the map
Values = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a report is made of.

    names: of the N pool images. features: (N, D). ids: (n,) labelled rows; labels: (n,) their classes, of `classes`.
    predicted, sure: (n,) what the model said of each and with what probability, not having learned from its label.
    estimate: the accuracy by these. drawn, bare: how many images that were drawn at random have a label, and have none.
    pool: (N, C) probabilities of the pool. curve: of learning. judged_by: which model and how, in words. quality:
    numbers on the choice. notes: lines on duplicates and unusual images. record: what, when, with which versions.
    rounds: up to this one, as run_folder.rounds_of gives them. test: on the user's images, {accuracy, count} or None.
    """

    title: str
    classes: Sequence[str]
    names: Sequence[str]
    features: np.ndarray
    ids: torch.Tensor
    labels: torch.Tensor
    predicted: torch.Tensor
    sure: torch.Tensor
    estimate: Estimate
    pool: torch.Tensor
    curve: Curve
    judged_by: str
    quality: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    rounds: Sequence[Mapping[str, Any]] = ()
    test: Mapping[str, Any] | None = None  # accuracy in percent, count, absent: classes without a test image
    seed: int = 0
    drawn: int = 0
    bare: int = 0


def report_values(facts: Facts) -> Values:
    """Every number and name of the report, as JSON takes them."""
    labels, predicted = facts.labels, facts.predicted
    table = confusion(labels, predicted, len(facts.classes))
    found, plain = facts.estimate, interval(int(table.diagonal().sum()), len(labels))
    return {
        "title": facts.title,
        "accuracy": share(found.share) | {"drawn": found.drawn, "right": found.right, "labels": len(labels)},
        "accuracy_of_labels": share(plain),
        "drawn": {"labelled": facts.drawn, "unlabelled": facts.bare, "needed": FEWEST_DRAWN},
        "expected_of_pool": expected(facts),
        "judged_by": facts.judged_by,
        "test": dict(facts.test) if facts.test else None,
        "classes": per_class(facts.classes, table),
        "confusion": table.tolist(),
        "confused": confused(facts, table),
        "mistakes": mistakes(facts),
        "doubtful": doubtful(facts),
        "curve": [point._asdict() for point in facts.curve.points],
        "outlook": outlook(facts.curve),
        "rounds": [dict(one) for one in facts.rounds],
        "last_round": last_round(facts.rounds),
        "regions": regions(facts),
        "quality": dict(facts.quality),
        "notes": list(facts.notes),
        "record": dict(facts.record),
    }


def expected(facts: Facts) -> float | None:
    """The mean confidence in the images without a label, in percent: the accuracy that the model expects of itself."""
    sure = facts.pool.max(1).values.double().index_fill(0, facts.ids, float("nan"))
    return 100 * float(sure.nanmean()) if len(facts.ids) < len(sure) else None


def share(value: Share) -> Values:
    """A Share for JSON, which knows no nan."""
    return {"value": None if math.isnan(value.value) else value.value, "low": value.low, "high": value.high}


def per_class(classes: Sequence[str], table: torch.Tensor) -> list[Values]:
    """For each class: its labels, how many were recognised, and how often the word is right where it is said."""
    rows = []
    for place, word in enumerate(classes):
        row, column = table[place].tolist(), table[:, place].tolist()
        others = [(count, classes[other]) for other, count in enumerate(row) if other != place and count]
        rows.append(
            {
                "class": word, "labels": sum(row), "recall": share(interval(row[place], sum(row))),
                "precision": share(interval(row[place], sum(column))),
                "taken_for": [{"class": other, "count": count} for count, other in sorted(others, reverse=True)[:3]],
            }
        )  # fmt: skip
    return rows


def confused(facts: Facts, table: torch.Tensor) -> list[Values]:
    """The pairs of classes that are confused most, with their images."""
    pairs = [(int(table[i, j]), i, j) for i, j in table.nonzero().tolist() if i != j]
    found = []
    for count, label, guess in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:CONFUSIONS]:
        rows = ((facts.labels == label) & (facts.predicted == guess)).nonzero()[:, 0]
        rows = rows[facts.sure[rows].argsort(descending=True, stable=True)][:SHEET]
        images = [card(facts, row) for row in rows.tolist()]
        found.append(
            {"label": facts.classes[label], "predicted": facts.classes[guess], "count": count, "images": images}
        )
    return found


def card(facts: Facts, row: int) -> Values:
    """A labelled image: what it is called, was labelled, and predicted."""
    return {
        "file": facts.names[int(facts.ids[row])], "label": facts.classes[int(facts.labels[row])],
        "predicted": facts.classes[int(facts.predicted[row])], "confidence": float(facts.sure[row]),
    }  # fmt: skip


def mistakes(facts: Facts) -> list[Values]:
    """The labels that are likeliest wrong: predicted another class, the most certain first."""
    wrong = (facts.predicted != facts.labels).nonzero()[:, 0]
    order = wrong[facts.sure[wrong].argsort(descending=True, stable=True)]
    return [card(facts, row) for row in order[:MISTAKES].tolist()]


def doubtful(facts: Facts) -> list[Values]:
    """The images without a label of which the model is least certain: the smallest margin of the two best classes."""
    best = facts.pool.topk(2, dim=1)
    margin = best.values[:, 0] - best.values[:, -1]  # a new tensor, that may be changed
    margin[facts.ids] = float("inf")
    order = margin.argsort(stable=True)[: min(DOUBTFUL, len(margin) - len(facts.ids))]
    return [
        {
            "file": facts.names[row],
            "between": [facts.classes[place] for place in best.indices[row].tolist()],
            "confidence": [round(value, 4) for value in best.values[row].tolist()],
        }
        for row in order.tolist()
    ]


def regions(facts: Facts) -> list[Values]:
    """Parts of the pool (k-means of unit features), largest first: their size, labels, words and labelled images."""
    from sklearn.cluster import KMeans

    draw = np.random.default_rng(facts.seed)
    count = len(facts.features)
    rows = np.sort(draw.choice(count, min(count, REGION_ROWS), replace=False))
    unit = normalise(torch.as_tensor(np.array(facts.features[rows], dtype=np.float32))).numpy()
    clusters = min(REGIONS, max(1, len(facts.ids) // 4), len(np.unique(unit, axis=0)))
    with one_sum():
        found = KMeans(clusters, n_init=1, random_state=facts.seed).fit(unit)
    own = normalise(torch.as_tensor(np.array(facts.features[facts.ids.numpy()], dtype=np.float32))).numpy()
    mine = found.predict(own)
    guess = facts.pool.argmax(1).numpy()[rows]
    result = []
    for part in np.argsort(-np.bincount(found.labels_, minlength=clusters), kind="stable"):
        words = Counter(guess[found.labels_ == part].tolist()).most_common(2)
        inside = np.flatnonzero(mine == part).tolist()
        result.append(
            {
                "share": float((found.labels_ == part).mean()), "labels": len(inside),
                "mostly": [facts.classes[word] for word, _ in words],
                "images": [card(facts, row) for row in inside[:SHEET]],
            }
        )  # fmt: skip
    return result


def places(facts: Facts, progress: OpenBar | None = None) -> Values:
    """The map: points of a part of the pool in [0, 1]^2, and of MAPPED labelled images at most with their classes."""
    if len(facts.features) < FEWEST_MAPPED:
        return {"pool": [], "known": []}
    draw = torch.randperm(len(facts.ids), generator=torch.Generator().manual_seed(facts.seed))
    shown = facts.ids[draw[:MAPPED]].tolist()
    rows, points = project_2d(facts.features, shown, seed=facts.seed, progress=progress)
    low, high = points.min(0), points.max(0)
    points = (points - low) / np.maximum(high - low, 1e-12)
    number = {row: place for place, row in enumerate(facts.ids.tolist())}
    rounded = np.round(points.astype(float), 4).tolist()
    at = [(number.get(row), x, y) for row, (x, y) in zip(rows.tolist(), rounded, strict=True)]
    known = [{"x": x, "y": y, "row": i, "class": int(facts.labels[i])} for i, x, y in at if i is not None]
    return {"pool": [(x, y) for i, x, y in at if i is None], "known": known}


def shown_files(values: Values) -> list[str]:
    """The names of all images that a report shows."""
    cards = [*values["mistakes"], *values["doubtful"]]
    for part in (*values["confused"], *values["regions"]):
        cards += part["images"]
    return list(dict.fromkeys(card["file"] for card in cards))


def write_report(
    folder: Path,
    facts: Facts,
    pictures: Callable[[list[str]], Mapping[str, Mapping[str, str]]],
    progress: OpenBar | None = None,
) -> tuple[Path, Values]:
    """Write report.html and report.json into a folder; returns the path of the first and the values of the second.

    pictures(names) gives for each image {thumbnail: a data URI, address: of the image itself}.
    """
    values = report_values(facts)
    page = render(
        "report.html", ("report.css",), ("report.js",), report=values, map=places(facts, progress),
        pictures=pictures(shown_files(values)), axes=axes(values["curve"]), past=axes(values["rounds"]),
        names=list(facts.classes), rounds_by_drawn=sum(bool(one.get("drawn")) for one in facts.rounds),
    )  # fmt: skip
    paths = (folder / "report.html", folder / REPORT)
    for path, text in zip(paths, (page, json.dumps(values, indent=1, allow_nan=False)), strict=True):
        with atomic_write(path, "w") as handle:
            handle.write(text)
    return paths[0], values
