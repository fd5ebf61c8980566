"""From a choice to what people and their tools label it with: links, lists, task files, the page."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_selection.annotation.arrangement import Beliefs, arrange, why
from data_selection.annotation.formats import write_cvat, write_label_studio
from data_selection.annotation.originals import file_address, places, put, relative_address, show
from data_selection.annotation.pages import annotation_page
from data_selection.annotation.run_folder import (
    ANSWERS,
    BELIEFS,
    CONFIG,
    IMAGES,
    LABELLED,
    MANIFEST,
    PAGE,
    SUBSET,
    TASKS,
    chosen_names,
    contents,
    know_classes,
    list_record,
    read_run,
)
from data_selection.commands.shared import bar_factory
from data_selection.common.distributed import World
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, load_features
from data_selection.common.files import atomic_write, read_json
from data_selection.common.listed_names import quoted
from data_selection.common.subset_files import CHECK, names_files, save_names
from data_selection.images.answers import is_missing, read_answers, write_labels
from data_selection.images.claims import Source, copies_apart
from data_selection.images.following import follow, told
from data_selection.images.pools import Pool
from data_selection.nearest.graph import NEIGHBOURS
from data_selection.nearest.stored_graph import pool_graph


@dataclass(frozen=True)
class Order:
    """How the chosen images are handed out.

    classes: their names, [] for those of an earlier start; images: `link`, `copy` or `none`; embed: into the page.
    """

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
    noted = contents(out)
    moved, lost = follow({name: noted.get(name, "") for name in names}, pool)
    if moved or lost:
        raise UserError(
            f"{len(moved) + len(lost)} of the chosen images are not in {order.source} as they were: "
            f"{told(moved, lost)}; give them back, or choose again into another --out with --labelled {out}"
        )
    paths, where, linked = [found[name] for name in names], places(names), order.images != "none"
    if linked:
        put(out / IMAGES, names, paths, order.images)
    addresses = [relative_address(IMAGES, at) for at in where] if linked else [file_address(path) for path in paths]
    shown = show(paths, addresses, embed=order.embed, progress=bar_factory(world))
    answers = out / ANSWERS
    if not answers.exists():
        with atomic_write(answers, "w") as handle:
            handle.write(write_labels(dict.fromkeys(names, "")))
    table, ids = load_features(out / read_run(out)["features"]), read_json(out / SUBSET)
    announced = know_classes(out, order.classes)
    earlier = Source(out / LABELLED, [*labels.items()], kept=True)
    given = labels_so_far([earlier, Source(answers)], table.names or names, names, announced, noted)
    if not all(file.exists() for file in names_files(out / SUBSET, table)):  # killed after the list was written
        save_names(out / SUBSET, table)
    beliefs = believe(out / BELIEFS, table, labels, ids, world) if len(set(labels.values())) > 1 else None
    likeliest = beliefs.likeliest() if beliefs else None
    reason = why_chosen(out, names, beliefs) if beliefs else ""
    classes = list(dict.fromkeys([*announced, *sorted({*labels.values()}), *sorted({*given.values()})]))
    local = [f"{IMAGES}/{at}" for at in where] if linked else [str(Path(path).absolute())[1:] for path in paths]
    write_label_studio(out, names, local, classes, likeliest)
    write_cvat(out / MANIFEST, where if linked else names, paths, shown)
    files = [quoted(name) for name in names]  # as tables have them, so that any name comes back
    known = {quoted(name): label for name, label in given.items()}
    page = annotation_page(
        identity(names, noted),
        f"{quoted(out.resolve().name)}: {len(names)} of {len(table)} images", files, shown,
        arrange(np.asarray(table.features[ids]), beliefs), classes=classes, labels=known, beliefs=likeliest,
        why=reason,
    )  # fmt: skip
    with atomic_write(out / PAGE, "w") as handle:
        handle.write(page)
    if reason:
        print(reason)
    left = f", {len(given)} of them labelled" if given else ""
    print(
        f"wrote {out / PAGE}: open it with a double click to label {len(names)} images{left}; {ANSWERS}, "
        f"{f'{IMAGES}/, ' if linked else ''}{TASKS}, {CONFIG} and {MANIFEST} are beside it"
    )


def labels_so_far(
    sources: Sequence[Source], pool: Sequence[str], names: Sequence[str], classes: Sequence[str],
    hashes: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """{name: label} of the chosen images `names` of a pool for the page, read by the rules of training.

    sources: labels of earlier rounds, beside which a rare word may be none that is misspelt, and annotate.csv. What
    training would ask about is told; of that, images with two labels, or with a word for none, have none here.
    """
    answers = read_answers(sources, pool, names, classes)
    words = {name for name, word in answers.labels.items() if word not in classes and is_missing(word)}
    if faults := [*answers.faults, *copies_apart(answers, hashes)]:
        without = len((words | answers.apart).intersection(names))
        bare = f"; on the page {without} images have no label for that" if without else ""
        print(f"warning: {sources[-1].path} is not ready for training: {'; '.join(faults)}{bare}")
    asked = set(names) - words - answers.apart
    return {name: label for name, label in answers.labels.items() if name in asked}


def identity(names: Sequence[str], noted: Mapping[str, str]) -> str:
    """Under what a browser keeps the answers: of these images, by name and content, as cameras number theirs alike."""
    images = "\n".join(f"{name}\0{noted.get(name, '')}" for name in names)
    return hashlib.sha256(images.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def why_chosen(out: Path, names: list[str], beliefs: Beliefs) -> str:
    """arrangement.why of the images that were chosen, and how many of `names` were drawn at random beside them."""
    drawn = set(list_record(out).get(CHECK) or ())
    chosen = [name not in drawn for name in names]
    words = why(Beliefs(beliefs.probabilities[chosen], beliefs.classes))
    return f"{words}; {len(drawn)} more were drawn at random, to judge by" if drawn else words


def believe(path: Path, table: FeatureTable, labels: dict[str, str], ids: list[int], world: World) -> Beliefs:
    """What a model of the labels so far, {name: class}, believes of the images `ids`.

    The model is fit_smoothed; the file keeps its word, and an earlier start's is taken as it is.
    """
    if not path.exists():
        from data_selection.judging.smoothed import fit_smoothed

        rows = {name: row for row, name in enumerate(table.names or ())}
        known = {rows[name]: label for name, label in labels.items() if name in rows}
        classes = sorted(set(known.values()))
        numbers = [classes.index(label) for label in known.values()]
        graph = pool_graph(table, NEIGHBOURS, world=world, progress=bar_factory(world))  # choosing has it made
        fitted = fit_smoothed(
            table.features, numbers, list(known), classes=len(classes), correct=False, world=world, graph=graph,
        )  # fmt: skip
        found = fitted.pool_probabilities()[ids].cpu().double().numpy().round(4).tolist()
        with atomic_write(path, "w") as handle:
            json.dump({"classes": classes, "probabilities": found}, handle)
    content = read_json(path)
    return Beliefs(np.array(content["probabilities"]), content["classes"])
