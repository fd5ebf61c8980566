"""From a choice to what people and their tools label it with: links, lists, task files, the page."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_selection.annotation.arrangement import arrange
from data_selection.annotation.formats import write_cvat, write_label_studio
from data_selection.annotation.originals import file_address, places, put, relative_address, show
from data_selection.annotation.pages import annotation_page
from data_selection.annotation.run_folder import ANSWERS, IMAGES, PAGE, SUBSET, chosen_names, read_run
from data_selection.commands.shared import bar_factory
from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features
from data_selection.common.files import atomic_write, read_json
from data_selection.images.answers import read_answers, write_labels
from data_selection.images.pools import Pool


@dataclass(frozen=True)
class Order:
    """How the chosen images are handed out. images: `link`, `copy` or `none`; embed: into the page."""

    out: Path
    source: Path
    classes: list[str]
    images: str
    embed: bool

    def files(self) -> list[str]:
        return chosen_names(self.out)


def hand_out(order: Order, pool: Pool, labels: dict[str, str], world: World) -> None:
    """Write all that stands beside the list, and say so. What is there is made anew, but for annotate.csv.

    labels: of earlier rounds. Raises UserError where a chosen image is gone.
    """
    out, names = order.out, order.files()
    found = dict(zip(pool.names or (), pool.paths, strict=True))
    gone = [name for name in names if name not in found]
    if gone:
        raise UserError(
            f"{len(gone)} of the chosen images are not in {order.source} any longer, first {gone[0]!r}: give them back"
        )
    paths, where = [found[name] for name in names], places(names)
    linked = order.images != "none"
    if linked:
        put(out / IMAGES, names, paths, order.images)
    addresses = (
        [relative_address(IMAGES, place) for place in where] if linked else [file_address(path) for path in paths]
    )
    shown = show(paths, addresses, embed=order.embed, progress=bar_factory(world))
    answers = out / ANSWERS
    if not answers.exists():
        with atomic_write(answers, "w") as handle:
            handle.write(write_labels(dict.fromkeys(names, "")))
    given = read_answers([answers], names).labels
    table = load_features(out / read_run(out)["features"])
    arranged = arrange(np.asarray(table.features[read_json(out / SUBSET)]))
    write_label_studio(out, names, [f"{IMAGES}/{place}" for place in where] if linked else
                       [str(Path(path).absolute()).lstrip("/") for path in paths], order.classes)  # fmt: skip
    write_cvat(out / "cvat_manifest.jsonl", where if linked else names, paths, shown)
    title = f"{order.out.resolve().name}: {len(names)} of {len(table)} images"
    identity = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    classes = list(dict.fromkeys([*order.classes, *sorted(set(given.values()))]))
    page = annotation_page(identity, title, names, shown, arranged, classes=classes, labels=given)
    with atomic_write(out / PAGE, "w") as handle:
        handle.write(page)
    left = f", {len(given)} of them labelled" if given else ""
    print(
        f"wrote {out / PAGE}: open it with a double click to label {len(names)} images{left}; {ANSWERS}, "
        f"{f'{IMAGES}/, ' if linked else ''}label_studio_tasks.json, label_studio_config.xml and cvat_manifest.jsonl "
        "are beside it"
    )
