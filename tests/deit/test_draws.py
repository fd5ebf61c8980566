"""Hashed random numbers, seeded drop layers and mixing: right distribution, and rows that do not know their process."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from data_selection.embedding.backbones import build_model
from deit.samplers import split_rows
from deit.samples.draws import SeededDropout, SeededDropPath, hashed, seed_drop_layers, seeded, uniform
from deit.samples.mixing import Mixing, draw, mix


def splitmix(*keys):
    """The same hash on Python's unbounded integers."""
    mask, h = (1 << 64) - 1, 0
    for key in keys:
        h = (h + key + 1) * 0x9E3779B97F4A7C15 & mask
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & mask
        h = (h ^ h >> 27) * 0x94D049BB133111EB & mask
        h ^= h >> 31
    return h


@pytest.mark.parametrize("keys", [(0,), (1, 2, 3), (2**40, 7), (0, 0, 0, 0)])
def test_hash_matches_unbounded_integers(keys):
    assert hashed(*keys).item() & (1 << 64) - 1 == splitmix(*keys)


def test_uniform_numbers_are_uniform_and_uncorrelated():
    x = uniform(3, torch.arange(400)[:, None], torch.arange(400))
    assert x.min() >= 0
    assert x.max() < 1
    assert (x.flatten().histc(16, 0, 1) / x.numel() * 16 - 1).abs().max() < 0.05
    neighbours = torch.corrcoef(torch.stack([x[:-1].flatten(), x[1:].flatten(), x[:-1].roll(1, 1).flatten()]))
    assert (neighbours - torch.eye(3)).abs().max() < 0.01


def test_seeded_gives_the_global_generators_back():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    with seeded(5):
        first = torch.rand(1).item(), random.random(), np.random.rand()
    with seeded(5):
        assert (torch.rand(1).item(), random.random(), np.random.rand()) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_drop_path_keeps_its_rate_and_mean():
    model = nn.Sequential(SeededDropPath(0.3, None))
    draws = seed_drop_layers(nn.Sequential(nn.Dropout(0.5)), 0)
    model[0].draws = draws
    draws.begin(1, 1, torch.arange(20000), torch.device("cpu"))
    out = model(torch.ones(20000, 3))
    assert ((out == 0).all(1) | (out == 1 / 0.7).all(1)).all()
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_dropout_keeps_its_rate_value_by_value():
    model = nn.Sequential(nn.Dropout(0.2))
    draws = seed_drop_layers(model, 0)
    assert type(model[0]) is SeededDropout
    draws.begin(1, 1, torch.arange(50), torch.device("cpu"))
    out = model(torch.ones(50, 400))
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (out == 0).float().mean(0).std() < 0.1
    assert torch.equal(model.eval()(torch.ones(2, 2)), torch.ones(2, 2))


def test_masks_do_not_depend_on_the_split():
    model = build_model("demo_vit", 10, drop_rate=0.2, drop_path_rate=0.5)
    draws = seed_drop_layers(model, 1)
    model.train()
    images = torch.rand(7, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    def run(rows):
        draws.begin(2, 3, rows, torch.device("cpu"))
        return model(images[rows])

    with torch.no_grad():
        whole = run(torch.arange(7))
        for rows in split_rows(7, 3):
            torch.testing.assert_close(run(rows), whole[rows])
        draws.begin(2, 4, torch.arange(7), torch.device("cpu"))
        assert not torch.allclose(model(images), whole)


def test_a_layer_that_is_called_more_often_has_masks_of_its_own_each_time():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, images):
            return torch.stack([self.drop(images) for _ in range(7)], dim=1)

    model, images = Parallel(), torch.ones(6, 64)
    draws = seed_drop_layers(model, 0)

    def run(rows):
        draws.begin(1, 1, rows, torch.device("cpu"))
        return model(images[rows])

    whole = run(torch.arange(6))
    assert len({tuple(mask.flatten().tolist()) for mask in whole.unbind(1)}) == 7
    for rows in (torch.arange(2), torch.arange(2, 6)):
        assert torch.equal(run(rows), whole[rows])


@pytest.mark.parametrize("part", ["rel_pos", "shared_rel_pos", "meta_mlp"])
def test_a_table_of_offsets_has_one_mask_in_every_pass_of_a_step(part):
    """timm's swinv2_cr, rmlp and relpos models drop values of a table whose rows are of places, not of images."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(part, nn.ModuleList([nn.Dropout(0.5), nn.Dropout(0.5)]))
            self.drop = nn.Dropout(0.5)

        def forward(self, images):
            return torch.cat([drop(torch.ones(9, 8)) for drop in self.get_submodule(part)]), self.drop(images)

    model, images = Attention(), torch.ones(6, 64)
    draws = seed_drop_layers(model, 0)

    def run(rows, step=1):
        draws.begin(1, step, rows, torch.device("cpu"))
        return model(images[rows])

    table, whole = run(torch.arange(6))
    for rows in (torch.arange(3), torch.arange(3, 6), torch.arange(2, 6)):  # 9 rows are three times 3, and not of 4
        again, some = run(rows)
        assert torch.equal(again, table)
        assert torch.equal(some, whole[rows])
    assert not torch.equal(run(torch.arange(6), step=2)[0], table)
    assert len({tuple(row.tolist()) for row in table}) == 18  # each layer has a mask of its own


MIXINGS = [
    Mixing(mixup=0.8, prob=1.0), Mixing(cutmix=1.0, prob=1.0, mode="elem"),
    Mixing(mixup=0.8, cutmix=1.0, prob=0.7, mode="pair"), Mixing(minmax=(0.2, 0.8), prob=1.0, mode="elem"),
    Mixing(mixup=0.8, minmax=(0.2, 0.8), prob=1.0),
]  # fmt: skip


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("size", [6, 7])
def test_mixing_does_not_depend_on_the_split_and_targets_tell_the_share(mixing, size):
    labels = torch.arange(size)
    images = one_hot(labels, size).float()[:, :, None, None].expand(-1, -1, 16, 16)  # channel c is image c's share
    keys = {"seed": 3, "epoch": 1, "step": 2}
    mixed, targets = mix(images, labels, size, torch.arange(size), size, mixing, **keys)
    torch.testing.assert_close(mixed.mean((2, 3)), targets)  # CutMix's clipped box counts as it is
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    assert not torch.equal(targets, one_hot(labels, size).float())
    for rows in split_rows(size, 3):
        part = mix(images[rows], labels[rows], size, rows, size, mixing, **keys)
        torch.testing.assert_close(part[0], mixed[rows])
        torch.testing.assert_close(part[1], targets[rows])


def test_mixing_draws_have_the_asked_chances():
    share, cut, _ = draw(20000, 32, 32, Mixing(mixup=1.0, cutmix=1.0, prob=0.5, switch_prob=0.3, mode="elem"), 0)
    assert (share < 1).mean() == pytest.approx(0.5, abs=0.02)
    assert cut.mean() == pytest.approx(0.15, abs=0.02)
    assert share[(share < 1) & ~cut].mean() == pytest.approx(0.5, abs=0.02)
