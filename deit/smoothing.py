"""--mode smoothed: the pool's graph answers, by the features that its images have already; nothing is trained.

The probe on smoothed features (judging/smoothed.py) is fitted to the pool's feature file. What it needs of the pool to
answer for new images goes into the output folder; the model's own head learns the graph's word on every pool image, so
that the checkpoint is a model without a pool, too (--distil: that one is the result).
"""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from data_selection.common.distributed import World, on_main
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, load_features
from data_selection.common.files import atomic_write
from deit.engine import Learner
from deit.job import Job
from deit.learner.known_rows import at_hand, known_rows
from deit.learner.linear import begin_average, seen_by_classifiers, set_head
from deit.runs.kinds import Settings
from deit.runs.predictions import OF_POOL, of_pool

if TYPE_CHECKING:
    from data_selection.judging.smoothed import SmoothedProbe
    from data_selection.nearest.neighbour_files import Neighbours

POOL = "smoothed_pool.npz"
ALONE = World(0, 1, torch.device("cpu"))  # every rank fits by itself: what it needs is there, and each gets the same


class WithPool(nn.Module):
    """A model whose answers are the graph's: forward gives logarithms of probabilities, (B, classes)."""

    def __init__(self, model: nn.Module, probe: "SmoothedProbe") -> None:
        super().__init__()
        self.model, self.probe = model, probe

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with seen_by_classifiers(self.model) as seen:
            self.model(images)
        features = torch.stack(seen).float().mean(0).cpu()
        return self.probe.predict(features).clamp(min=1e-12).log().to(images.device)


def pool_features(job: Job, model: nn.Module, source: Path | str) -> torch.Tensor | None:
    """Features (N, D) float32 of every pool image from the feature file, in the pool's order; None where none fits."""
    everything = range(len(job.train_pool))
    found = on_main(
        job.world, lambda: known_rows(job.args, job.train_pool, everything, job.pixels, model, source, job.log.say)
    )
    return None if found is None else torch.from_numpy(found)


def needed_features(job: Job, model: nn.Module, source: Path | str) -> torch.Tensor:
    """pool_features, which --mode smoothed cannot do without."""
    features = pool_features(job, model, source)
    if features is None:
        raise UserError(
            "--mode smoothed needs the features of every pool image: name the file that extraction wrote with "
            "--features FILE (by the same weights, from the same pixels)"
        )
    return features


def neighbours_of(job: Job, features: torch.Tensor) -> "Neighbours":
    """The pool's graph: beside the feature file where this has the pool's rows in the pool's order, else looked up."""
    from data_selection.nearest.graph import SPREAD_NEIGHBOURS
    from data_selection.nearest.stored_graph import pool_graph

    path = Path(job.args.features) if job.args.features else at_hand(job.args.subset_ids or ())
    table = load_features(path) if path else None
    if table is None or table.features.shape != features.shape or not np.array_equal(table.features, features):
        table = FeatureTable(features.numpy())
    return pool_graph(table, SPREAD_NEIGHBOURS, world=job.world)


def fit_graph_probe(
    features: torch.Tensor, labels: torch.Tensor, ids: list[int], classes: int, graph: "Neighbours"
) -> "SmoothedProbe":
    """The smoothed probe with its choices made by the labels (n,) of the rows ids, as far as they are enough."""
    from data_selection.judging.smoothed import fit_smoothed

    return fit_smoothed(
        features, labels, torch.tensor(ids), classes=classes, c=None, correct=None, graph=graph, world=ALONE
    )


def fit_with_pool(job: Job, learner: Learner, features: torch.Tensor) -> tuple[float, int]:
    """Fit the probe, and the model's head to its word on the pool. Returns (mean loss of the labels, how many).

    Evaluation then asks learner.answering: the graph, or with --distil the model. Leaves pool_predictions.csv, and
    without --distil what the graph needs of the pool, in the output folder.
    """
    from data_selection.judging.calibration import log_loss

    labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
    graph = neighbours_of(job, features)
    probe = fit_graph_probe(features, labels, job.ids, job.classes, graph)
    said = probe.pool_probabilities().double()
    job.log.say(f"smoothed probe: C = {probe.c:g}, {told_heat(probe)}; {probe.choice.reason}")
    targets = said.clone()
    targets[job.ids] = torch.nn.functional.one_hot(labels, job.classes).double()
    set_head(learner, features.to(job.world.device), targets.to(job.world.device))
    begin_average(learner)
    job.settings["smoothed"] = {"c": probe.c, "temperature": heat(probe), "reason": probe.choice.reason}
    job.settings["smoothed"] |= held_out_numbers(probe, labels)
    if not job.args.distil:
        learner.answering = WithPool(learner.model, probe)
    if job.log.folder and job.world.is_main:
        of_pool(job.train_pool, said).write(job.log.folder / OF_POOL)
        if not job.args.distil:
            keep_pool(job.log.folder / POOL, features, labels, job.ids, job.classes, graph, probe)
    return log_loss(probe.pool[job.ids], labels), len(labels)


def heat(probe: "SmoothedProbe") -> float:
    """The temperature of a probe's predictions."""
    return probe.corrected_temperature if probe.choice.corrected else probe.temperature


def told_heat(probe: "SmoothedProbe") -> str:
    return f"temperature {heat(probe):g}"


def held_out_numbers(probe: "SmoothedProbe", labels: torch.Tensor) -> Settings:
    """Accuracy in percent and calibration error of the labels (n,), each by a probe that did not see it; {} for few."""
    from data_selection.judging.calibration import at_temperature, calibration_error

    if probe.held is None:
        return {}
    said = at_temperature(probe.held.corrected if probe.choice.corrected else probe.held.plain, heat(probe))
    right = (said.argmax(1) == labels).double().mean().item()
    return {"held_out_acc1": 100 * right, "held_out_calibration_error": calibration_error(said, labels)}


def keep_pool(
    path: Path,
    features: torch.Tensor,
    labels: torch.Tensor,
    ids: list[int],
    classes: int,
    graph: "Neighbours",
    probe: "SmoothedProbe",
) -> None:
    """Write what with_pool reads."""
    with atomic_write(path) as handle:
        np.savez(
            handle, features=features.numpy(), labels=labels.numpy(), ids=np.array(ids), classes=classes,
            index=graph.index.numpy(), similarity=graph.similarity.numpy(), centre=graph.centre.numpy(),
            hashes=graph.hashes, c=probe.c, corrected=probe.choice.corrected, temperature=heat(probe),
        )  # fmt: skip


def with_pool(model: nn.Module, checkpoint: Path | str, saved: Settings) -> nn.Module:
    """A model that was loaded from a checkpoint, answering by the graph where its run did; saved: that run's settings.

    The probe is fitted again by the choices that its run made, nothing is cross-validated anew. Raises UserError
    where the pool's file is gone from beside the checkpoint.
    """
    if saved.get("mode") != "smoothed" or saved.get("distil"):
        return model
    from data_selection.judging.smoothed import Choice, fit_smoothed
    from data_selection.nearest.neighbour_files import Neighbours

    path = Path(checkpoint).with_name(POOL)
    try:
        with np.load(path, allow_pickle=False) as kept:
            parts = {name: kept[name] for name in kept.files}
        tensors = {
            name: torch.from_numpy(parts[name]) for name in ("features", "labels", "index", "similarity", "centre")
        }
        graph = Neighbours(tensors["index"], tensors["similarity"], tensors["centre"], parts["hashes"])
        ids, classes = torch.from_numpy(parts["ids"]), int(parts["classes"])
        c, corrected, kept_heat = float(parts["c"]), bool(parts["corrected"]), float(parts["temperature"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} of --mode smoothed cannot be read ({error}): copy it from the folder of the training to beside "
            f"{checkpoint}, or train a model of one file: with --mode linear (deit/main.py has --distil, too)"
        ) from None
    probe = fit_smoothed(
        tensors["features"], tensors["labels"], ids, classes=classes, c=c, correct=corrected, calibrate=False,
        graph=graph, world=ALONE,
    )  # fmt: skip
    choice = Choice(corrected, "as in training")
    probe = replace(probe, choice=choice, temperature=kept_heat, corrected_temperature=kept_heat)
    return WithPool(model, probe)
