"""Pictures and tables of selections."""

import contextlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write
from data_selection.common.kinds import Ids
from data_selection.common.progress import Bar, OpenBar, open_bar
from data_selection.nearest.similarity import normalise

STEPS = 500  # of t-SNE
FEWEST_MAPPED = 3
SHOWN = 1_500  # pool points in the picture: more are ink, not information


def project_2d(
    features: np.ndarray, keep: Ids = (), *, seed: int = 0, shown: int = SHOWN, progress: OpenBar | None = None
) -> tuple[torch.Tensor, np.ndarray]:
    """t-SNE of a random sample of the pool together with the images that must be in the picture.

    features: (N, D) array or memory map. keep: pool indices that must be shown. Returns (rows, points): int64 (S,)
    pool indices, ascending, and float32 (S, 2); all points are 0 where all features are alike. Raises UserError for
    fewer than 3 rows.
    """
    from sklearn.manifold import TSNE

    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(features), generator=generator)[: min(shown, len(features))]
    rows = torch.cat([sample, torch.as_tensor(list(keep), dtype=torch.int64)]).unique()
    if len(rows) < FEWEST_MAPPED:
        raise UserError(f"{len(rows)} images are too few for a map: {FEWEST_MAPPED} are needed")
    vectors = normalise(torch.as_tensor(np.array(features[rows.numpy()], dtype=np.float32)))
    if bool((vectors == vectors[0]).all()):  # which scikit-learn divides by, and crashes
        return rows, np.zeros((len(rows), 2), dtype=np.float32)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    start = "pca" if vectors.shape[1] > 1 else "random"  # one column has no second component
    model = TSNE(init=start, perplexity=perplexity, random_state=seed, max_iter=STEPS, verbose=2)
    with open_bar(progress, STEPS, "map", "step") as bar, contextlib.redirect_stdout(Steps(bar)):
        return rows, model.fit_transform(vectors.numpy())


class Steps(io.TextIOBase):
    """Moves a bar by what t-SNE prints of its steps: it says nothing in any other way. Prints nothing."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.done = bar, 0

    def write(self, text: str) -> int:
        if found := re.search(r"Iteration (\d+)", text):
            self.bar.update(int(found[1]) - self.done)
            self.done = int(found[1])
        return len(text)


def draw_selections(
    path: Path | str,
    features: np.ndarray,
    selections: Mapping[str, Ids],
    image_of: Callable[[int], np.ndarray],
    *,
    labels: Ids | None = None,
    captions: Mapping[str, str] | None = None,
    title: str = "",
    seed: int = 0,
) -> None:
    """Write a PNG: for each method the pool in 2-D with its images marked, and below it a sheet of those images.

    features: (N, D). selections: {method: pool indices}. image_of(i): the image i as a (H, W[, 3]) uint8 array.
    labels: (N,) class numbers to colour the pool by, or None. captions: {method: line under its name}.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keep = sorted({int(i) for ids in selections.values() for i in ids})
    rows, points = project_2d(features, keep, seed=seed)
    place = {row: index for index, row in enumerate(rows.tolist())}
    grey = {"color": "#b5bcc6"}
    colour = grey if labels is None else {"c": np.asarray(labels)[rows.numpy()], "cmap": "tab10"}
    figure, axes = plt.subplots(2, len(selections), figsize=(4.6 * len(selections), 9.4), squeeze=False, dpi=110)
    for (method, ids), (above, below) in zip(selections.items(), axes.T, strict=True):
        above.scatter(*points.T, **colour, s=5, alpha=0.35, linewidths=0)
        chosen = points[[place[int(i)] for i in ids]]
        above.scatter(*chosen.T, s=26, facecolors="white", edgecolors="black", linewidths=1.0)
        above.set_title(method + (f"\n{captions[method]}" if captions else ""), fontsize=12)
        below.imshow(contact_sheet([image_of(int(i)) for i in ids]), cmap="gray", interpolation="nearest")
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color("#d0d4da")
    figure.suptitle(title, fontsize=13)
    figure.tight_layout()
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png")
    plt.close(figure)


def contact_sheet(images: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Images (H, W[, 3]) of one size as a near-square grid, white between them, in the given order."""
    columns = math.ceil(math.sqrt(len(images)))
    height, width = images[0].shape[:2]
    depth = images[0].shape[2:]
    count = math.ceil(len(images) / columns)
    sheet = np.full(((height + gap) * count - gap, (width + gap) * columns - gap, *depth), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def markdown_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns: rows are as long as the header."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
