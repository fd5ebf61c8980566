"""What a trained run is reported by: held-out answers, the graph's view of the pool, the learning curve, pictures."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_selection.annotation.label_report import Facts, write_report
from data_selection.annotation.originals import file_address, show_readable
from data_selection.annotation.run_folder import SUBSET, check_names, list_record, read_run
from data_selection.common.errors import UserError
from data_selection.common.feature_table import sidecar
from data_selection.common.files import sha256
from data_selection.common.kinds import Features, Log
from data_selection.common.listed_names import quoted
from data_selection.common.progress import OpenBar, open_bar
from data_selection.common.subset_files import pool_provenance, versions
from data_selection.images.answers import can_be_judged
from data_selection.images.pools import open_pool
from data_selection.judging.estimate import estimate
from data_selection.judging.findings import REPEATS, SHARES, Curve, learning_curve
from data_selection.judging.probe import FOLDS, fit_probe
from data_selection.judging.quality import quality
from data_selection.judging.smoothed import SmoothedProbe
from data_selection.nearest.graph import SPREAD_NEIGHBOURS
from data_selection.nearest.stored_graph import pool_graph
from deit.labelled.judging import judge
from deit.labelled.runs import Labelled
from deit.predicting import predict
from deit.runs.saving import NEWEST
from deit.smoothing import ALONE, fit_graph_probe

FEWEST = 10  # labels for a learning curve
NOTHING = "no class has two labelled images, and one that is held out leaves none to learn its class from"
AHEAD = (1.5, 2, 3)  # times the labels, to which the learning curve is extrapolated


def report(
    run: Labelled, training: Path, result: dict[str, Any], *, tested: dict[str, Any] | None, weights: str = "",
    seed: int, log: Log, progress: OpenBar | None,
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """Write a run's report.html and report.json. Returns (the page's path, the numbers).

    training: what the trainer left; result: the values of its result.json. tested: accuracy in percent and count of
    test images. weights: the backbone's, where they are not those of the features.
    """
    row = {name: place for place, name in enumerate(run.names)}
    files = sorted(run.answers.labels, key=row.__getitem__)
    classes = sorted(set(run.answers.labels.values()))
    ids = torch.tensor([row[file] for file in files])
    labels = torch.tensor([classes.index(run.answers.labels[file]) for file in files])
    log(f"report: the graph of {len(run.names)} images, and what more labels would bring")
    features = torch.from_numpy(np.array(run.table.features, dtype=np.float32))
    graph = pool_graph(run.table, SPREAD_NEIGHBOURS, world=ALONE, progress=progress)
    probe = fit_graph_probe(features, labels, ids.tolist(), len(classes), graph)
    known = probe.base.smoothed[ids]
    ours = not weights or frozen(result)
    rows = inputs_of_head(training / NEWEST, run.source, files) if weights and ours else features[ids]
    judged = judge(training, result, files, classes, rows, labels, probe, ours=ours)
    check = set(check_names(run.folder))
    drawn = [row for row, file in enumerate(files) if file in check]
    found = estimate(judged.answers == labels, drawn)
    own = {"labels": len(labels), "accuracy": found.share.value, "low": found.share.low, "high": found.share.high,
           "drawn": found.drawn, "list": sha256(sidecar(run.folder / SUBSET, "provenance"))}  # fmt: skip
    facts = Facts(
        title=f"{quoted(run.folder.resolve().name)}: {len(files)} labels, {len(run.names)} images",
        classes=[quoted(word) for word in classes],
        names=[quoted(name) for name in run.names],
        features=run.table.features,
        ids=ids,
        labels=labels,
        predicted=judged.answers,
        sure=judged.sure,
        estimate=found,
        drawn=len(drawn),
        bare=len(check) - len(drawn),
        pool=probe.pool_probabilities(),
        curve=curve_of(known, labels, len(classes), probe, seed, progress),
        judged_by=judged.by,
        quality=covered(run.table.features, ids),
        notes=notes(run),
        record=record_of(run, result, weights),
        rounds=[*run.record.get("rounds", []), own],
        test=tested,
        seed=seed,
    )
    log("report: the map and its pictures")
    return write_report(run.folder, facts, functools.partial(pictures, run.source, progress=progress), progress)


def pictures(source: Path, names: list[str], progress: OpenBar | None = None) -> dict[str, dict[str, str]]:
    """{name: {thumbnail, address}} of images of a pool as a report shows them, those that can be read."""
    pool = open_pool(str(source))
    paths = dict(zip(map(quoted, pool.names or pool.paths), pool.paths, strict=True))
    here = [name for name in names if name in paths]
    shown = show_readable([paths[name] for name in here], progress)
    return {
        name: {"thumbnail": one.thumbnail, "address": file_address(paths[name])}  # browsers follow no link to data
        for name, one in zip(here, shown, strict=True)
        if one is not None
    }


def frozen(result: dict[str, Any]) -> bool:
    """Whether the backbone of a training is as it was before it; self-training's has learned from every label."""
    kept = (result.get("verdict") or {}).get("kept")
    return result["mode"] in ("linear", "smoothed") or (kept == "probe" and result["mode"] != "self-train")


def inputs_of_head(checkpoint: Path, source: Path, files: Sequence[str]) -> torch.Tensor:
    """What a checkpoint's backbone makes of images of a pool, (n, D). Raises UserError where one cannot be read."""
    rows = {name: row for row, name in enumerate(open_pool(str(source)).names or ())}
    caught: list[torch.Tensor] = []
    found = predict(checkpoint, source, ids=[rows[name] for name in files], log=lambda _: None, inputs=caught)
    if found.unread:
        raise UserError(f"{found.unread[0]} has a label and cannot be read: mend it, or take its label back")
    return torch.cat(caught)


def curve_of(
    known: torch.Tensor, labels: torch.Tensor, classes: int, probe: SmoothedProbe, seed: int,
    progress: OpenBar | None,
) -> Curve:  # fmt: skip
    """The learning curve of the smoothed probe: features (n, D) of the labelled images, their labels."""

    def answer(train: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        bar.update(1)
        return fit_probe(known[train], labels[train], classes, probe.c).predict(known[left]).argmax(1)

    more = [round(times * len(labels)) for times in AHEAD]
    if len(labels) < FEWEST:
        return Curve(())
    with open_bar(progress, REPEATS * FOLDS * len(SHARES), "learning curve", "fit") as bar:
        return learning_curve(labels, answer, more=more, seed=seed)


def covered(features: Features, ids: torch.Tensor) -> dict[str, float]:
    """How the labelled rows `ids` cover the pool of features (N, D), by words."""
    found = quality(features, ids)
    return {
        "distance of an image to the nearest labelled one, on average": found.radius_mean,
        "of 95 % of the images at most": found.radius_95,
        "labels that would cover as much in equal shares": found.effective,
    }


def notes(run: Labelled) -> list[str]:
    """Lines on what is to be known of labels and images before the numbers are believed."""
    unknown = [] if can_be_judged(run.answers) else [f"The accuracy on this page says nothing: {NOTHING}."]
    beside = run.folder / read_run(run.folder)["features"]
    duplicates = beside.with_suffix(".duplicates.txt")
    if not duplicates.exists():
        return unknown
    groups = [part for part in duplicates.read_text(encoding="utf-8", errors="replace").split("\n\n") if part.strip()]
    return [*unknown, f"{len(groups)} groups of images are exact duplicates of each other: see {duplicates.name}."]


def record_of(run: Labelled, result: dict[str, Any], weights: str = "") -> dict[str, Any]:
    """What, when, with which versions. weights: the backbone's, where they are not those of the features."""
    made, request = pool_provenance(run.table), run.record.get("request") or {}
    chosen = list_record(run.folder)  # a request can leave the method to us
    backbone = made.get("backbone") or {}
    found = {
        "images": str(run.source), "pool": len(run.names), "labels": len(run.answers.labels),
        "chosen by": chosen.get("method"), "seed": request.get("seed"), "backbone": backbone.get("arch"),
        "weights": Path(weights).name or backbone.get("weights"), "mode": result.get("mode"),
        "recipe": result.get("recipe"), "epochs": result.get("epochs_run"),
        "seconds of training": round(result.get("seconds") or 0),
        **{name: value for name, value in versions().items() if value},
    }  # fmt: skip
    return {name: quoted(value) if value and isinstance(value, str) else value for name, value in found.items()}
