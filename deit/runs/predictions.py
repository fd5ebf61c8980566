"""What is said of images, as a table: of any folder by a model, of the pool by its graph."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from data_selection.common.files import atomic_write
from data_selection.common.listed_names import as_cell
from data_selection.images.pools import Pool

OF_POOL = "pool_predictions.csv"
OF_NEW = "predictions.csv"  # of images that predict.py was asked for
TITLE = "file,label,confidence,second,second_confidence"


@dataclass(frozen=True)
class Predictions:
    """names: of N images, as below their folder. probabilities: (N, C) float32. classes: the C words.

    unread: names of further images, which could not be read.
    """

    names: tuple[str, ...]
    probabilities: torch.Tensor
    classes: tuple[str, ...]
    unread: tuple[str, ...] = ()

    def table(self) -> str:
        """A CSV of file, label, confidence, second label and its confidence, in the order of the images.

        Those that could not be read come last, with nothing beside their names.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(TITLE.split(","))
        best = self.probabilities.topk(min(2, len(self.classes)), dim=1)
        for name, places, values in zip(self.names, best.indices.tolist(), best.values.tolist(), strict=True):
            cells: list[str] = [as_cell(name)]
            for place, value in zip(places, values, strict=True):
                cells += [as_cell(self.classes[place]), f"{value:.4f}"]
            rows.writerow(cells)
        rows.writerows([as_cell(name), *[""] * TITLE.count(",")] for name in self.unread)
        return text.getvalue()

    def write(self, path: Path) -> None:
        """Write the table to a file, whole or not at all."""
        with atomic_write(path, "w") as handle:
            handle.write(self.table())


def of_pool(pool: Pool, probabilities: torch.Tensor) -> Predictions:
    """The Predictions (N, C) of all images of a pool, by number where they or their classes have no names."""
    names = pool.names or tuple(map(str, range(len(pool))))
    words = pool.class_names or tuple(map(str, range(probabilities.shape[1])))
    return Predictions(tuple(names), probabilities, tuple(words))
