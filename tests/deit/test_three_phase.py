"""The last head of --mode three-phase: fitted to every image as it is and in as many views, each of the same weight."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from data_selection.common.distributed import World
from deit import epochs as deit_epochs
from deit.engine import Learner
from deit.epochs import VIEWS, Tally, fit_light_head, one_epoch
from deit.job import decode, new_learner, open_job
from deit.learner import linear
from deit.learner.linear import augmented_features, frozen_features
from deit.options import parse
from deit.samplers import plan_epoch
from tests.support.thread_world import on_ranks
from tests.support.trainer_runs import few_shot, make_colours

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
SMOOTHING, IMAGES, FEW = 0.2, 12, 3
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Twelve images of two colours, a step of them on each process in two passes."""
    images = make_colours(tmp_path_factory.mktemp("images"), train=IMAGES // 2)
    words = few_shot(images, mode="three-phase", finetune=images / "sighted.pth", smoothing=SMOOTHING, batch_size=3)
    return open_job(parse(words), ALONE)


@pytest.fixture
def fitted(job, monkeypatch):
    """A function of the number of processes: (features, targets) that the head was fitted to, on each of them."""
    tables, data = {}, decode(job, frozen=False, train=True, test=False)
    monkeypatch.setattr(deit_epochs, "VIEWS", FEW)
    monkeypatch.setattr(deit_epochs, "set_head", lambda learner, *given: tables.update({learner.world.rank: given}))

    def fit(size):
        learners = [new_learner(job, job.args.finetune) for _ in range(size)]

        def run(world):
            learners[world.rank].world = world
            fit_light_head(dataclasses.replace(job, world=world), learners[world.rank], data, 5)

        on_ranks(size, run)
        return [tables[rank] for rank in range(size)]

    return fit


def test_every_image_counts_once_over_all_its_views(job, fitted):
    ((features, targets),) = fitted(1)
    assert len(features) == len(targets) == (1 + FEW) * IMAGES
    labels = torch.tensor([job.train_pool.label(i) for i in job.ids])
    wanted = one_hot(labels, 2) * (1 - SMOOTHING) + SMOOTHING / 2
    torch.testing.assert_close(targets.view(1 + FEW, IMAGES, 2).sum(0), wanted)
    views = features.view(1 + FEW, IMAGES, -1)
    for place, one in enumerate(views):
        assert all((one - other).norm(dim=1).max() > 1e-3 for other in views[:place])


def test_the_average_of_the_weights_gets_no_head_that_was_fitted_to_other_features(job):
    learner = new_learner(job, job.args.finetune)
    average = learner.ema.module
    with torch.no_grad():
        for value in average.parameters():  # as after a training
            value.mul_(0.9)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    fit_light_head(job, learner, decode(job, frozen=False, train=True, test=False), 5)
    assert learner.model.head.weight.abs().max() > 0.01
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())


def test_every_view_has_draws_of_its_own(fitted, monkeypatch):
    epochs = []
    monkeypatch.setattr(
        deit_epochs, "augmented_features", lambda *some: epochs.append(some[3]) or augmented_features(*some)
    )
    fitted(1)
    assert epochs == [5, 6, 7]


def test_two_processes_see_the_views_of_one(fitted):
    ((alone, _),) = fitted(1)
    for features, _ in fitted(2):
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-4)


class Same:
    """Images that augmentation leaves as they are."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def plain(self, indices, batch):
        yield self.images[list(indices)], torch.zeros(len(indices), dtype=torch.int64)

    def augmented(self, parts, epoch):
        for part in parts:
            yield self.images[part.indices], torch.zeros(len(part.indices), dtype=torch.int64)


class TwoHeads(nn.Module):
    """As a distilled model: two classifiers, each of its own token."""

    def __init__(self):
        super().__init__()
        self.head, self.head_dist = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x) + self.head_dist(x**2)


def test_a_distilled_models_views_are_seen_by_both_its_classifiers(monkeypatch):
    monkeypatch.setattr(linear, "classifier_layers", lambda model: [model.head, model.head_dist])
    learner = Learner(TwoHeads(), *[None] * 8, None, ALONE)
    data = Same(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)))
    parts = [part for step in plan_epoch(torch.randperm(7), 3, 2) for part in step.parts]
    seen = augmented_features(learner, data, parts, 1, 7)
    torch.testing.assert_close(seen, (data.images + data.images**2) / 2)
    torch.testing.assert_close(seen, frozen_features(learner, data, 7).features)


def test_the_images_per_second_count_every_view(job, monkeypatch):
    monkeypatch.setattr(deit_epochs, "fit_light_head", lambda *_: 0.5)
    tally, learner = Tally(None), SimpleNamespace(rate=0.1, by_step=True)
    one_epoch(job, learner, SimpleNamespace(pool_rows=None), job.labelled_epochs + 1, tally)
    assert tally.images == (1 + VIEWS) * IMAGES


@pytest.mark.parametrize(("by_step", "rate"), [(True, 0.25), (False, 0.5)])
def test_the_rate_of_an_epoch_is_that_of_its_last_step(job, monkeypatch, by_step, rate):
    learner = SimpleNamespace(rate=0.5, by_step=by_step)
    monkeypatch.setattr(deit_epochs, "train_epoch", lambda *_: (setattr(learner, "rate", 0.25) or 1.0, 4))
    line = one_epoch(job, learner, SimpleNamespace(pool_rows=None), 2, Tally(None))
    assert line == {"train_lr": rate, "train_loss": 1.0}
