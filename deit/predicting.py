"""What a trained model says of images, new ones too: the classes of any folder, from a checkpoint and nothing else."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from data_selection.common import distributed
from data_selection.common.errors import UserError
from data_selection.common.kinds import Log
from data_selection.common.progress import OpenBar, open_bar
from data_selection.common.system import cores
from data_selection.embedding.backbones import load_weights
from data_selection.images.label_files import some
from data_selection.images.pools import Pool, asked_pool
from deit.datasets import WORKERS
from deit.engine import autocast
from deit.learner.building import autocast_type, build, make_pipeline, resolve
from deit.learner.linear import classifiers
from deit.memory import recall
from deit.options import parse
from deit.runs import checkpoints
from deit.runs.meters import RunLog
from deit.runs.predictions import Predictions
from deit.samples.pipeline import Pipeline
from deit.samples.sources import say_of_unread
from deit.samples.tensor_images import EvaluationImages
from deit.smoothing import WithPool, with_pool

BATCH = 256


def predict(
    checkpoint: Path | str,
    images: Path | str,
    *,
    temperature: float | None = None,
    device: str = "auto",
    ids: Sequence[int] | None = None,
    log: Log = print,
    progress: OpenBar | None = None,
    inputs: list[torch.Tensor] | None = None,
) -> Predictions:
    """The Predictions of a checkpoint of deit/main.py for the images of a folder or a list of paths, or an image.

    Model, pixels and class names are the checkpoint's own. temperature: the logits are divided by it; by default by
    what the run's held-out labels said, and by 1 where the pool's graph answers, which has its own. ids: places of the
    images that are asked, by default all. inputs: gets what the classifier sees, (n, D) on the CPU, batch by batch.
    Images that cannot be read, or whose endings are not, are left out, and told. Raises UserError for weights alone,
    which don't say what they are, and where no image can be read.
    """
    if not Path(checkpoint).is_file():
        raise UserError(f"checkpoint {checkpoint} does not exist: give the checkpoint.pth of a run of deit/main.py")
    args = parse(["--data-set", "FOLDER", "--eval", "--resume", str(checkpoint), "--device", device])
    saved = recall(args, lambda _: None)
    classes = saved.get("class_names")
    if not classes:
        checkpoints.training_state(checkpoint)  # says so where the file is damaged
        raise UserError(f"{checkpoint} does not say what its classes are called: train on a folder with deit/main.py")
    pool = asked_pool(images)
    pool.background = args.background
    say_of_unread(log, asked=pool)
    places = range(len(pool)) if ids is None else list(ids)
    with distributed.start(device) as world:
        _, defaults = resolve(args)
        model = build(args, len(classes), RunLog("", False, quiet=True))
        load_weights(model, checkpoint, log=log)
        if inputs is not None:
            classifiers(model)[0].register_forward_pre_hook(lambda _, seen: inputs.append(seen[0].float().cpu()))
        model = with_pool(model, checkpoint, saved).to(world.device).eval()
        of_run = None if isinstance(model, WithPool) else saved.get("temperature")
        cool = temperature or of_run or 1.0
        dtype = autocast_type(args.amp, world.device)
        pipeline = make_pipeline(args, defaults)
        found: list[torch.Tensor] = []
        faults: dict[int, str] = {}
        with open_bar(progress, len(places), "predicting", "image") as bar:
            for rows, read in pictures(pool, places, pipeline):
                faults |= {
                    row: str(error) for row, error in zip(rows, read, strict=True) if isinstance(error, UserError)
                }
                seen = [torch.from_numpy(pixels) for pixels in read if not isinstance(pixels, UserError)]
                if seen:
                    held = EvaluationImages(torch.stack(seen), torch.zeros(len(seen)), pipeline, world.device, seed=0)
                    for batch, _ in held.plain(range(len(seen)), BATCH):
                        with torch.inference_mode(), autocast(world.device, dtype):
                            logits = model(batch)
                        found.append((logits.double() / cool).softmax(1).float().cpu())
                bar.update(len(rows))
    if not found:
        first = f", first {next(iter(faults.values()))}" if faults else ""
        raise UserError(f"none of the {len(places)} images of {images} can be read{first}: give others")
    names = pool.names or tuple(pool.paths)
    known, unread = tuple(names[i] for i in places if i not in faults), tuple(names[i] for i in faults)
    if faults:
        why = some([fault.replace("\n", " ") for fault in faults.values()])
        log(f"{len(faults)} of {len(places)} images are left out: {why}")
    return Predictions(known, torch.cat(found), tuple(classes), unread)


def pictures(
    pool: Pool, places: Sequence[int], pipeline: Pipeline
) -> Iterator[tuple[Sequence[int], list[np.ndarray | UserError]]]:
    """Yield (places, of each what evaluation sees as uint8 (size, size, 3), or why it cannot be read), BATCH at a time.

    The next ones are decoded meanwhile.
    """

    def read(place: int) -> np.ndarray | UserError:
        try:
            return pipeline.pixels(pool.image(place))
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(WORKERS, cores())) as workers:
        parts = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
        ahead = [workers.map(read, part) for part in parts[:1]]
        for number, part in enumerate(parts):
            ahead += [workers.map(read, after) for after in parts[number + 1 : number + 2]]
            yield part, list(ahead.pop(0))
