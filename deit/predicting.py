"""What a trained model says of images, new ones too: the classes of any folder, from a checkpoint and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import torch

from data_selection.common import distributed
from data_selection.common.errors import UserError
from data_selection.common.kinds import Log
from data_selection.common.progress import OpenBar, open_bar
from data_selection.embedding.backbones import load_weights
from data_selection.images.pools import own_pool
from deit.datasets import close_workers, prepare
from deit.engine import autocast
from deit.learner.building import autocast_type, build, make_pipeline, resolve
from deit.memory import recall
from deit.options import parse
from deit.runs import checkpoints
from deit.runs.meters import RunLog
from deit.runs.predictions import Predictions
from deit.runs.stopping import workers_named
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
) -> Predictions:
    """The Predictions of a checkpoint of deit/main.py for the images of a folder or a list of paths.

    Model, pixels and class names are the checkpoint's own. temperature: the logits are divided by it; by default by
    what the run's held-out labels said, and by 1 where the pool's graph answers, which has its own. ids: places of the
    images that are asked, by default all. Raises UserError for weights alone, which don't say what they are, and
    for images that cannot be read.
    """
    if not Path(checkpoint).is_file():
        raise UserError(f"checkpoint {checkpoint} does not exist: give the checkpoint.pth of a run of deit/main.py")
    args = parse(["--data-set", "FOLDER", "--eval", "--resume", str(checkpoint), "--device", device])
    saved = recall(args, lambda _: None)
    classes = saved.get("class_names")
    if not classes:
        checkpoints.training_state(checkpoint)  # says so where the file is damaged
        raise UserError(f"{checkpoint} does not say what its classes are called: train on a folder with deit/main.py")
    pool = own_pool(images)
    pool.background = args.background
    places = range(len(pool)) if ids is None else list(ids)
    with distributed.start(device) as world:
        _, defaults = resolve(args)
        model = build(args, len(classes), RunLog("", False, quiet=True))
        load_weights(model, checkpoint, log=log)
        model = with_pool(model, checkpoint, saved).to(world.device).eval()
        of_run = None if isinstance(model, WithPool) else saved.get("temperature")
        cool = temperature or of_run or 1.0
        dtype = autocast_type(args.amp, world.device)
        found = []
        with workers_named(close_workers), open_bar(progress, len(places), "predicting", "image") as bar:
            data = prepare(pool, places, make_pipeline(args, defaults), world.device, train=False)
            for some, _ in data.plain(range(len(places)), BATCH):
                with torch.inference_mode(), autocast(world.device, dtype):
                    logits = model(some)
                found.append((logits.double() / cool).softmax(1).float().cpu())
                bar.update(len(some))
    names = pool.names or tuple(pool.paths)
    return Predictions(tuple(names[i] for i in places), torch.cat(found), tuple(classes))
