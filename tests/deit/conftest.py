"""Reports without what takes their time, and jobs of a test module's images."""

import numpy as np
import pytest
import torch

from data_selection.annotation import label_report
from data_selection.common.distributed import World
from deit.job import open_job
from deit.labelled import reporting
from deit.options import parse
from deit.selftrain import pool_epochs
from tests.support.trainer_runs import command


@pytest.fixture
def quick_report(monkeypatch):
    """A learning curve of a few fits, and a map that is two columns of the features."""
    real = reporting.learning_curve
    few = {"repeats": 1, "shares": (0.5, 1.0)}
    monkeypatch.setattr(reporting, "learning_curve", lambda *parts, **words: real(*parts, **words, **few))
    monkeypatch.setattr(
        label_report, "project_2d", lambda features, *_, **__: (np.arange(len(features)), np.array(features[:, :2]))
    )


@pytest.fixture
def job_of(images):
    """A function of flags: the opened Job, as trainer.finetune has it when it asks for the time."""

    def make(**flags):
        job = open_job(parse(command(images, **flags)), World(0, 1, torch.device("cpu")))
        job.pool_epochs = pool_epochs(job)
        return job

    return make
