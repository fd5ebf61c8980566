"""The gradients of all processes are summed whole, in one order, and while the backward pass goes on."""

import contextlib
import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data_selection.common.distributed import World
from deit import gradients
from deit.engine import Learner, mean_loss, passes, train_one_epoch
from deit.gradients import AHEAD, FlatGradients, bucketed
from deit.losses import Criterion
from deit.samplers import plan_epoch
from deit.samples.batches import Part, Step
from deit.samples.mixing import Mixing
from tests.support.thread_world import on_ranks

ASKED = 2.0


class Spared(nn.Module):
    """Four layers, of which the second answers only where it is asked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x, spare=False):
        for number, layer in enumerate(self.layers):
            if not (spare and number == 1):
                x = layer(x).tanh()
        return x.square().sum()


def small_buckets(monkeypatch, numbers=50):
    monkeypatch.setattr(gradients, "BUCKET", 4 * numbers)


def loss_of(model, rank, number):
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(10 * rank + number))
    return model(inputs, spare=rank == 1)


@pytest.mark.parametrize("numbers", [1, 50, 10**6])
def test_the_sum_of_every_process_and_pass(monkeypatch, numbers):
    """Two passes on the first, one that spares a layer on the second, none on the third."""
    small_buckets(monkeypatch, numbers)
    passes, model = {0: 2, 1: 1, 2: 0}, Spared()

    def run(world):
        model = copies[world.rank]  # made before: threads share the generator that weights are drawn from
        flat = FlatGradients(model.parameters(), world)
        for _ in range(2):  # the second step begins anew
            flat.zero()
            mine = torch.zeros(())
            for number in range(passes[world.rank]):
                flat.last_pass = number == passes[world.rank] - 1
                loss = loss_of(model, world.rank, number)
                loss.backward()
                mine += loss.detach()
            flat.sum(mine, asked=world.rank > 0)
        return flat.loss.item(), flat.asked.item(), [parameter.grad.clone() for parameter in model.parameters()]

    copies = [copy.deepcopy(model) for _ in passes]
    losses = [loss_of(model, rank, number) for rank, count in passes.items() for number in range(count)]
    sum(losses).backward()
    for loss, asked, found in on_ranks(3, run):
        assert loss == pytest.approx(sum(losses).item())
        assert asked == ASKED
        for gradient, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


class Recording(World):
    """The first of two processes, alone; calls look() where a sum begins, and where it is waited for."""

    def begin_sum(self, tensor):
        self.look("begun", tensor)
        return lambda: self.look("waited", tensor)


def test_sums_begin_before_the_backward_pass_has_ended(monkeypatch):
    small_buckets(monkeypatch)
    world, model, seen = Recording(0, 2, torch.device("cpu")), Spared(), []
    flat = FlatGradients(model.parameters(), world)
    first = model.layers[0].weight.grad
    object.__setattr__(world, "look", lambda what, tensor: seen.append((what, bool(first.any()), tensor.clone())))
    flat.zero()
    loss_of(model, 0, 0).backward()
    assert not seen  # not the last pass of the step
    flat.zero()
    flat.last_pass = True
    loss_of(model, 0, 0).backward()
    begun = list(seen)
    assert [what for what, *_ in begun] == ["begun"] * (len(flat.buckets) - 1)
    assert not begun[0][1]  # the first layer's gradient was not there
    for (_, _, tensor), bucket in zip(begun, flat.buckets, strict=False):
        assert torch.equal(tensor, flat.whole[bucket])  # whole, when its sum began
    flat.sum(torch.ones(()), asked=False)
    assert [what for what, *_ in seen[len(begun) :]] == ["begun"] + ["waited"] * len(flat.buckets)
    seen.clear()
    flat.zero()
    flat.last_pass = True
    loss_of(model, 0, 1).backward()  # in the next step as in the first
    assert [what for what, *_ in seen] == ["begun"] * (len(flat.buckets) - 1)


def test_a_step_says_which_pass_is_its_last():
    """Three parts of a step; where a gradient arrives, the buffer knows whether another pass follows."""
    weight = torch.ones(1, requires_grad=True)
    told, gradients = [], SimpleNamespace(last_pass=False)
    weight.register_post_accumulate_grad_hook(lambda _: told.append(gradients.last_pass))
    learner = SimpleNamespace(
        world=World(0, 1, torch.device("cpu")), draws=SimpleNamespace(begin=lambda *_: None), gradients=gradients,
        one_order=contextlib.nullcontext, autocast=contextlib.nullcontext, model=lambda images: images * weight,
        scaler=torch.amp.GradScaler(enabled=False), criterion=lambda images, logits, targets: logits.sum(),
    )  # fmt: skip
    step = Step(3, [Part(*[torch.tensor([row])] * 3) for row in range(3)])
    passes(learner, iter([(torch.ones(1), None)] * 3), step, 1, Mixing(), (0, 1, 0))
    assert told == [False, False, True]


def test_alone_nothing_is_summed(monkeypatch):
    small_buckets(monkeypatch)
    world, model = Recording(0, 1, torch.device("cpu")), Spared()
    flat = FlatGradients(model.parameters(), world)
    object.__setattr__(world, "look", lambda *_: pytest.fail("a sum over one process"))
    flat.zero()
    flat.last_pass = True
    loss_of(model, 0, 0).backward()
    flat.sum(torch.ones(()), asked=True)
    assert flat.loss == 1


@pytest.mark.parametrize(
    ("sizes", "most"), [([5], 1), ([3, 4, 5, 6], 7), ([3, 4, 5, 6], 100), ([1] * 9, 1), ([8, 1], 1)]
)
def test_buckets_cover_all_numbers_from_the_end(sizes, most):
    spans, members = bucketed(sizes, most)
    assert spans[0].stop == AHEAD + sum(sizes)
    assert spans[-1].start == 0
    assert all(later.start == earlier.stop for later, earlier in pairwise(spans))
    starts = [AHEAD + sum(sizes[:number]) for number in range(len(sizes))]
    for start, size, member in zip(starts, sizes, members, strict=True):
        assert spans[member].start <= start
        assert start + size <= spans[member].stop
    assert all(span.stop - span.start >= most for span in spans[:-1])


def test_gradients_are_clipped_by_their_own_norm():
    weight = torch.nn.Parameter(torch.zeros(2))
    flat = FlatGradients([weight], World(0, 1, torch.device("cpu")))
    weight.grad.copy_(torch.tensor([0.6, 0.8]))
    flat.sum(torch.tensor(100.0), asked=False)  # the loss lies beside them
    flat.clip(0.5)
    torch.testing.assert_close(weight.grad, torch.tensor([0.3, 0.4]))


def test_processes_leave_an_epoch_with_the_mean_of_their_statistics():
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    class Data:
        def augmented(self, parts, epoch):
            return ((images[part.indices], part.indices % 2) for part in parts)

    def run(world):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        learner = Learner(
            model, torch.optim.SGD(model.parameters(), 0.1), None, False, torch.amp.GradScaler(enabled=False), None,
            SimpleNamespace(begin=lambda *_: None), FlatGradients(model.parameters(), world), Criterion(), None, world,
        )  # fmt: skip
        steps = plan_epoch(torch.arange(8), 8, 4, world.rank, 2)
        train_one_epoch(learner, Data(), steps, 1, classes=2, seed=0)
        return model[0].running_mean

    for found in on_ranks(2, run):
        torch.testing.assert_close(found, 0.1 * images.mean(0))


def test_the_loss_of_an_epoch_is_the_mean_over_its_images():
    """Steps of 3, of none that counts, and of 1."""
    losses, sizes = torch.tensor([1.0, 0.0, 5.0]).double(), torch.tensor([3, 0, 1]).double()
    assert mean_loss(losses, sizes, 1) == 2.0
