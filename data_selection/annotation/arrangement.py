"""The order in which a page shows images: look-alikes together, near-duplicates known, by belief where there is one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage

from data_selection.nearest.graph import distances, nearest_neighbours
from data_selection.nearest.similarity import normalise

ROW = 5  # images in a row of look-alikes, on average
AT_ONCE = 4_000  # images in one tree: it needs the distances of all pairs
ALIKE = 4  # look-alikes that are named for each image
NEAR = 0.25  # near-duplicates: closer than this share of the usual distance to the nearest other image
MEETING = 0.3  # probabilities of two classes that are closer than this: the image lies where they meet


@dataclass(frozen=True)
class Beliefs:
    """A model's probabilities (n, C) float for n images, and the names of the C classes."""

    probabilities: np.ndarray
    classes: Sequence[str]

    def likeliest(self) -> list[tuple[str, float]]:
        """(class, probability) of each image."""
        return [(self.classes[row.argmax()], float(row.max())) for row in self.probabilities]


@dataclass(frozen=True)
class Arrangement:
    """order: (n,) places of the images as shown. groups: the number of each shown image's group, ascending.

    titles: words for each group, "" for none. alike: for each image, by its place as given, the places of those most
    like it, nearest first. twins: the first so many of these are nearly the same image.
    """

    order: list[int]
    groups: list[int]
    titles: list[str]
    alike: list[list[int]]
    twins: list[int]


def arrange(features: np.ndarray, beliefs: Beliefs | None = None) -> Arrangement:
    """An Arrangement of n images by features (n, D), or by a model's beliefs where they are given.

    With beliefs the groups are the classes, the most certain images first. Deterministic.
    """
    rows = normalise(torch.as_tensor(np.array(features, dtype=np.float32)))
    if len(rows) > 2:  # what all have in common says nothing on which are alike
        rows = normalise(rows - rows.mean(0))
    alike, twins = look_alikes(rows)
    if beliefs is not None:
        believed, sure = beliefs.probabilities.argmax(1), beliefs.probabilities.max(1)
        shown = np.lexsort((np.arange(len(sure)), -sure, believed))
        kinds = believed[shown]
        numbers = np.cumsum(np.r_[0, kinds[1:] != kinds[:-1]]).tolist()
        titles = [beliefs.classes[kind] for kind in dict.fromkeys(kinds.tolist())]
        return Arrangement(shown.tolist(), numbers, titles, alike, twins)
    order, groups = by_likeness(rows.numpy())
    return Arrangement(order, groups, [""] * (groups[-1] + 1), alike, twins)


def by_likeness(rows: np.ndarray) -> tuple[list[int], list[int]]:
    """(order, groups) of unit rows (n, D): the leaves of a Ward tree, which is cut into rows of about ROW images."""
    count = len(rows)
    centred = rows - rows.mean(0)
    along = (
        centred @ np.linalg.svd(centred[:AT_ONCE], full_matrices=False)[2][0] if count > AT_ONCE else np.zeros(count)
    )
    order: list[int] = []
    groups: list[int] = []
    for part in np.array_split(np.argsort(along, kind="stable"), -(-count // AT_ONCE)):
        if len(part) < 2:
            leaves, cut = np.arange(len(part)), np.zeros(len(part), dtype=int)
        else:
            tree = linkage(rows[part], "ward")
            leaves, cut = leaves_list(tree), fcluster(tree, -(-len(part) // ROW), "maxclust")
        shown = cut[leaves]  # a cluster's leaves lie side by side
        start = groups[-1] + 1 if groups else 0
        groups += (start + np.cumsum(np.r_[0, shown[1:] != shown[:-1]])).tolist()
        order += part[leaves].tolist()
    return order, groups


def look_alikes(rows: torch.Tensor) -> tuple[list[list[int]], list[int]]:
    """(the places of the ALIKE nearest other rows, how many of them are near-duplicates) of each of (n, D) rows."""
    if len(rows) < 2:
        return [[] for _ in rows], [0] * len(rows)
    index, similarity = nearest_neighbours(rows, ALIKE)
    distance = distances(similarity)
    usual = float(np.median(distance[:, 0]))
    return index.tolist(), (distance <= NEAR * usual).sum(1).tolist()


def why(beliefs: Beliefs, shown: int = 3) -> str:
    """What a model thinks of the chosen images, in words: how many lie where which classes meet, and the others."""
    probabilities, classes = beliefs.probabilities, beliefs.classes
    if probabilities.shape[1] < 2:
        return f"{len(probabilities)} images: all believed to be {classes[0]}"
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(probabilities, best, 1).T
    met = best[first - second < MEETING]
    pairs = Counter(tuple(sorted(pair)) for pair in met.tolist()).most_common()
    words = [f"{count} where {classes[one]} and {classes[other]} meet" for (one, other), count in pairs[:shown]]
    if rest := sum(count for _, count in pairs[shown:]):
        words.append(f"{rest} where other classes meet")
    if sure := len(probabilities) - len(met):
        words.append(f"{sure} of which the model is surer")
    return f"{len(probabilities)} images: " + ", ".join(words)
