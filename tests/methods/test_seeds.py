"""Seeds reach what is drawn inside a method; images that are labelled and excluded at once are neither."""

import numpy as np
import torch

from data_selection.commands.selection import draw_rest
from data_selection.common.feature_table import FeatureTable
from data_selection.methods.configs_clusters import HerdingConfig
from data_selection.methods.configs_design import VOptimalConfig
from data_selection.methods.design.voptimal import select_voptimal
from data_selection.methods.herding import select_herding
from data_selection.methods.random_choice import select_random
from data_selection.methods.table import METHODS


def test_landmarks_by_seed():
    rows = torch.randn(150, 8, generator=torch.Generator().manual_seed(0))
    lists = [
        select_voptimal(rows, 12, config=VOptimalConfig(core=0, landmarks=15, steps=0), seed=s).tolist()
        for s in (0, 1, 0)
    ]
    assert lists[0] == lists[2] != lists[1]


def test_herding_sample_by_seed():
    rows = torch.randn(150, 8, generator=torch.Generator().manual_seed(0))
    lists = [select_herding(rows, 12, config=HerdingConfig(sample=15), seed=s).tolist() for s in (0, 1, 0)]
    assert lists[0] == lists[2] != lists[1]


def test_draws_of_their_own():
    table = FeatureTable(np.zeros((400, 2), np.float32))
    chosen = select_random(table.features, 20, seed=3).tolist()
    found = draw_rest(table, 20, chosen, {}, 3).tolist()
    assert not {*found} & {*chosen}
    assert found != select_random(table.features, 20, labelled=chosen, seed=3).tolist()


def test_bilaf_labelled_and_excluded():
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    bilaf = METHODS["bilaf"].select

    def cores(features, count, **_):
        return torch.arange(count)

    found = bilaf(rows, 12, cores=torch.tensor([0, 1, 2]), labelled=[20, 21], excluded=[21, 30])
    assert len(found) == 12
    assert not {*found.tolist()} & {20, 21, 30}
