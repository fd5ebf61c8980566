"""The pool as a teacher: soft labels for every pool image by the graph of the model's features, epochs on them.

A round embeds the pool by the model as it is, fits the smoothed probe with "correct and smooth" on the labels
(judging/smoothed.py), and trains the model on the whole pool by what that says; the next round starts from the result.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from data_selection.common.distributed import on_main
from data_selection.common.errors import UserError
from data_selection.common.files import atomic_write
from data_selection.common.sending import sent
from data_selection.judging.calibration import at_temperature
from deit.engine import Learner, train_one_epoch
from deit.job import Images, Job, Tally, needed
from deit.learner.linear import frozen_features
from deit.learner.restarts import forget
from deit.learner.schedules import make_scheduler
from deit.losses import Criterion
from deit.runs.predictions import OF_POOL, of_pool
from deit.runs.stopping import NotFinite, with_batch
from deit.samplers import plan_epoch
from deit.samples.batches import Augmented, Batch, Part
from deit.samples.draws import POOL, seed_of

if TYPE_CHECKING:
    from data_selection.judging.smoothed import SmoothedProbe

CHUNK = 200  # steps between checkpoints: what log.txt calls an epoch of the pool
LABELLED = 8  # one of so many images in a step has a label of its own
SHARPEN = 1.5  # power of the graph's probabilities
OWN_WEIGHT = 1.5  # of a labelled image in the loss; an unlabelled one has 1 on average


class Place(NamedTuple):
    """Where an epoch number lies: round (0: on the labels alone) and chunk of it, both from 0 after that."""

    round: int
    chunk: int


def steps_of_round(job: Job) -> int:
    """Steps in which every pool image is seen once, labelled ones among them."""
    return max(1, math.ceil(len(job.train_pool) / pool_images(job)))


def own_images(job: Job) -> int:
    """Labelled images in a step."""
    return max(1, job.global_batch // LABELLED)


def pool_images(job: Job) -> int:
    """Other images in a step."""
    return max(1, job.global_batch - own_images(job))


def chunks_of_round(job: Job) -> int:
    return math.ceil(steps_of_round(job) / CHUNK)


def pool_epochs(job: Job) -> int:
    """The chunks of all rounds; 0 where the mode has none. Raises UserError for steps too small for a pool image."""
    if job.args.mode in ("self-train", "auto") and job.global_batch < 2:
        raise UserError(
            f"--mode {job.args.mode}: a step holds a labelled image and one of the pool: give --global-batch-size 2 or "
            "more"
        )
    return job.args.rounds * chunks_of_round(job) if job.args.mode == "self-train" else 0


def steps_before(job: Job, epoch: int) -> int:
    """Steps of a run before an epoch, for its bar."""
    labelled = min(epoch - 1, job.labelled_epochs) * job.updates
    if epoch - 1 <= job.labelled_epochs or not job.pool_epochs:
        return max(0, labelled)
    place = place_of(job, epoch)
    return labelled + place.round * steps_of_round(job) + place.chunk * CHUNK


def place_of(job: Job, epoch: int) -> Place:
    """The Place of an epoch after those on the labels."""
    past = epoch - job.labelled_epochs - 1
    return Place(past // chunks_of_round(job), past % chunks_of_round(job))


def round_order(job: Job, number: int) -> torch.Tensor:
    """Pool indices of a round in order, a step after the other: the pool shuffled, labelled images in each step."""
    generator = torch.Generator().manual_seed(seed_of(job.args.seed, POOL, number))
    own = own_images(job)
    pool = torch.randperm(len(job.train_pool), generator=generator)
    labelled, steps = torch.tensor(job.ids), steps_of_round(job)
    turns = math.ceil(steps * own / len(labelled))
    again = torch.cat([labelled[torch.randperm(len(labelled), generator=generator)] for _ in range(turns)])
    # a step's worth of labelled images may be left over
    parts = zip(pool.split(pool_images(job)), again.split(own), strict=False)
    return torch.cat([torch.cat(pair) for pair in parts])


def soft_targets(probabilities: torch.Tensor, ids: list[int], labels: torch.Tensor) -> torch.Tensor:
    """What the pool is trained on, (N, C) float32: rows of probabilities times the row's weight in the loss.

    probabilities: (N, C). ids, labels: of the labelled rows, which keep their labels. A row weighs 1 minus its entropy
    over the largest possible, 1 on average; labelled ones OWN_WEIGHT.
    """
    sharp = probabilities.double().clamp(min=0) ** SHARPEN
    sharp = sharp / sharp.sum(1, keepdim=True).clamp(min=1e-12)
    entropy = -(sharp * sharp.clamp(min=1e-12).log()).sum(1)
    weight = (1 - entropy / math.log(max(2, sharp.shape[1]))).clamp(min=0)
    weight = weight / weight.mean().clamp(min=1e-12)
    targets = sharp * weight[:, None]
    targets[ids] = OWN_WEIGHT * torch.nn.functional.one_hot(labels, sharp.shape[1]).double()
    return targets.float()


class SoftImages:
    """Augmented images with soft targets in place of labels; data: the whole pool."""

    def __init__(self, data: Augmented, targets: torch.Tensor) -> None:
        self.data, self.targets = data, targets

    def augmented(self, parts: Sequence[Part], epoch: int) -> Iterator[Batch]:
        """Yield (images (R, 3, size, size), targets (R, C)) for each Part."""
        for part, (images, _) in zip(parts, self.data.augmented(parts, epoch), strict=True):
            yield images, sent(images.device, self.targets[part.indices])[0]


def smoothed_probe(
    job: Job, features: torch.Tensor, classes: int, *, calibrate: bool
) -> "tuple[SmoothedProbe, torch.Tensor]":
    """The smoothed probe on the pool's features (N, D), on their device, and its word on the pool, (N, C)."""
    from data_selection.judging.smoothed import fit_smoothed  # imports scikit-learn, which no other mode needs

    labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
    probe = fit_smoothed(features, labels, torch.tensor(job.ids), classes=classes, calibrate=calibrate)
    assert probe.corrected is not None  # the labels are spread unless it is told not to
    return probe, probe.corrected.cpu()


def begin_round(job: Job, learner: Learner, data: Images, number: int) -> torch.Tensor:
    """The targets of a round, kept in the output folder, and an optimiser that knows nothing of the rounds before."""
    job.log.say(f"self-training, round {number + 1} of {job.args.rounds}: embedding {len(job.train_pool)} images")
    features, _ = frozen_features(learner, needed(data.pool), 3 * job.args.batch_size)

    def make() -> torch.Tensor:
        labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
        return soft_targets(smoothed_probe(job, features, data.classes, calibrate=False)[1], job.ids, labels)

    targets = on_main(job.world, make)
    job.settings["soft_targets"] = digest(targets)
    if job.log.folder:
        with atomic_write(targets_file(job.log.folder, number)) as handle:
            np.save(handle, targets.numpy(), allow_pickle=False)
    forget(learner)
    return targets


def digest(targets: torch.Tensor) -> str:
    """SHA-256 (hex) of a table of targets: a continued run must find those that it was trained on."""
    return hashlib.sha256(targets.contiguous().numpy().tobytes()).hexdigest()


def targets_file(folder: Path, number: int) -> Path:
    """Where in the output folder the targets of a round are kept, for a run that is continued."""
    return folder / f"soft_targets_{number + 1}.npy"


def read_targets(job: Job, number: int) -> torch.Tensor:
    """The targets of a round that the run to continue began. Raises UserError where they are not there, or others."""
    if job.log.folder is None:
        raise UserError("--mode self-train continues in the --output_dir of the run, where its soft targets are")
    path = targets_file(job.log.folder, number)
    try:
        targets = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} of the run to continue cannot be read ({error}): start anew without --auto-resume"
        ) from None
    if digest(targets) != job.settings.get("soft_targets"):
        raise UserError(f"{path} is not of the run to continue: start anew without --auto-resume")
    return targets


def targets_of(job: Job, learner: Learner, data: Images, place: Place, tally: Tally) -> torch.Tensor:
    """The targets of a round: made at its first step, else those of this run, else those that it left on the disk."""
    kept = tally.targets
    if place.chunk == 0 and tally.sofar is None:
        kept.clear()
        kept[place.round] = begin_round(job, learner, data, place.round)
    elif place.round not in kept:
        kept[place.round] = on_main(job.world, lambda: read_targets(job, place.round))
    return kept[place.round]


def ends_round(job: Job, epoch: int) -> bool:
    """Whether an epoch is the last chunk of a round."""
    return epoch > job.labelled_epochs and place_of(job, epoch).chunk == chunks_of_round(job) - 1


def pool_epoch(job: Job, learner: Learner, data: Images, epoch: int, tally: Tally) -> tuple[float, int]:
    """A chunk of a round on the whole pool. Returns (mean loss, images seen).

    tally keeps the targets from chunk to chunk and counts steps left out.
    """
    args, world, place = job.args, job.world, place_of(job, epoch)
    targets = targets_of(job, learner, data, place, tally)
    total = steps_of_round(job)
    learner.scheduler = make_scheduler(args, learner.optimizer, total, epochs=1)
    learner.by_step, before = True, learner.criterion
    learner.criterion = Criterion()  # the targets are soft already
    first = place.chunk * CHUNK * job.global_batch
    order = round_order(job, place.round)[first : first + CHUNK * job.global_batch]
    steps = plan_epoch(order, job.global_batch, args.batch_size, world.rank, world.size)
    try:
        loss, left_out = train_one_epoch(
            learner, SoftImages(needed(data.pool_train), targets), steps, epoch, classes=data.classes, seed=args.seed,
            clip_grad=args.clip_grad, skip_nonfinite=args.skip_nonfinite, on_step=job.log.step,
            done=place.chunk * CHUNK, sofar=tally.take_sofar(),
        )  # fmt: skip
    except NotFinite as error:
        raise with_batch(error, epoch, order.tolist(), job.global_batch, job.log.folder, job.log.trial) from None
    finally:
        learner.criterion = before
    tally.skipped += left_out
    return loss, len(order)


def last_words(job: Job, learner: Learner, data: Images) -> dict[str, float]:
    """What the graph says in the end: pool_predictions.csv in the output folder, and its accuracy on the test images.

    The test images are embedded for that score alone.
    """
    pool, _ = frozen_features(learner, needed(data.pool), 3 * job.args.batch_size)
    test = frozen_features(learner, data.test, 3 * job.args.batch_size) if data.test else None

    def score() -> dict[str, float]:
        probe, corrected = smoothed_probe(job, pool, data.classes, calibrate=True)
        if job.log.folder:
            calibrated = at_temperature(corrected, probe.corrected_temperature)
            of_pool(job.train_pool, calibrated).write(job.log.folder / OF_POOL)
        if test is None:
            return {}
        found = probe.predict(test[0], corrected=True).argmax(1)
        return {"acc1": 100 * (found == test[1]).double().mean().item()}

    return on_main(job.world, score)
