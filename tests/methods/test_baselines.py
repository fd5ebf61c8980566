"""Random, farthest point and k-means."""

import pytest
import torch
import torch.nn.functional as F

from data_selection.common.errors import UserError
from data_selection.methods.configs import DISTANCES, FarthestConfig, KMeansConfig
from data_selection.methods.farthest import select_farthest
from data_selection.methods.kmeans import select_kmeans
from data_selection.methods.random_choice import select_random
from data_selection.methods.starts import plus_plus
from tests.support import oracles


def blobs(per_blob, blobs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(blobs, 12, generator=generator), dim=1)
    return (centres[:, None] + 0.05 * torch.randn(blobs, per_blob, 12, generator=generator)).flatten(0, 1)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_farthest_point_is_k_center_greedy(distance):
    rows = blobs(20, 10)
    ids = select_farthest(rows, 25, config=FarthestConfig(distance), seed=3).tolist()
    assert ids == oracles.farthest_points(F.normalize(rows, dim=1), 25, ids[0])


def test_farthest_point_goes_on_from_labelled_ones():
    rows = blobs(20, 10)
    ids = select_farthest(rows, 25, seed=3).tolist()
    assert select_farthest(rows, 15, labelled=ids[:10]).tolist() == ids[10:]


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_reaches_every_blob(distance):
    ids = select_farthest(blobs(20, 6), 18, config=FarthestConfig(distance))
    assert set((ids // 20).tolist()) == set(range(6))


def test_plus_plus_spreads_and_skips_copies():
    rows = blobs(1, 8).repeat(5, 1)  # 8 distinct rows
    ids = plus_plus(rows, 8, torch.arange(40), torch.empty(0, dtype=torch.int64), 0, None)
    assert set((ids % 8).tolist()) == set(range(8))
    ids = plus_plus(rows, 40, torch.arange(40), torch.empty(0, dtype=torch.int64), 0, None)
    assert sorted(ids.tolist()) == list(range(40))


@pytest.mark.parametrize("batch_size", [8192, 20])
def test_kmeans_takes_one_sample_per_blob(batch_size):
    rows, config = blobs(30, 6), KMeansConfig(batch_size=batch_size)
    assert set((select_kmeans(rows, 6, config=config) // 30).tolist()) == set(range(6))
    ids = select_kmeans(rows, 4, config=config, labelled=[3, 40])  # blobs 0 and 1 are served
    assert set((ids // 30).tolist()) == {2, 3, 4, 5}


def test_random_is_uniform_over_candidates():
    rows = torch.randn(10, 2)
    seen = {i for seed in range(60) for i in select_random(rows, 2, seed=seed, excluded=[4], labelled=[0]).tolist()}
    assert seen == set(range(10)) - {0, 4}


def test_bad_settings():
    with pytest.raises(UserError, match="use one of euclidean"):
        FarthestConfig("manhattan")
    with pytest.raises(UserError, match="max_iter 0"):
        KMeansConfig(max_iter=0)
