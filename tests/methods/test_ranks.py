"""Three processes with unlike free memory choose what one does, by every method."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from data_selection.common import distributed
from data_selection.common.errors import UserError
from data_selection.methods import clusters
from data_selection.methods.configs import ActiveFTConfig, BiLAFConfig
from data_selection.methods.table import METHODS
from data_selection.nearest import pool_reader
from tests.support.beliefs import beliefs
from tests.support.ranks import as_ranks
from tests.support.thread_world import on_ranks

TABLE = Path(__file__).parents[1] / "data" / "FM3000_train.npy"
SPAN = 128  # rows: else 500 would be one span, of one rank
CASES = {name: (name, {}) for name in METHODS} | {
    "activeft": ("activeft", {"config": ActiveFTConfig(max_iter=20, lr=0.05)}),
    "minibatch": ("activeft", {"config": ActiveFTConfig(max_iter=20, lr=0.05, batch_size=400)}),
    "bilaf": ("bilaf", {"cores": range(0, 500, 50)}),
    "bilaf_little": ("bilaf", {"cores": range(0, 1500, 100), "config": BiLAFConfig(max_memory=0.01)}),
}


def choose(rank, out):
    table = np.load(TABLE)[:1500, :-1]
    pools = {case: table if case == "bilaf_little" else table[:500] for case in CASES}  # whose memory does not do
    if rank is None:
        return {
            case: METHODS[name].select(pools[case], 30, **options, **beliefs(METHODS[name], pools[case]))
            for case, (name, options) in CASES.items()
        }
    pool_reader.available_memory = lambda: (1 << 23) * 4**rank  # before LOCAL_WORLD_SIZE
    pool_reader.MIN_SPAN_ROWS = SPAN
    with distributed.start("cpu"):
        torch.save(choose(None, None), out / f"{rank}.pt")
    return None


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    as_ranks(3, choose, out)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_reader, "MIN_SPAN_ROWS", SPAN)
        return choose(None, None)


@pytest.mark.parametrize("case", CASES)
def test_the_lists_of_one(lists, alone, case):
    for some in lists:
        assert some[case].equal(alone[case])


def test_ranks_agree_whether_each_can_keep_the_pool(monkeypatch):
    here = threading.local()

    def keep(world):
        here.world = world
        with pytest.raises(UserError, match=r"but 1e-09 GB are free for each of 2 processes"):
            clusters.resident_rows(torch.ones(4, 2), torch.arange(4), torch.device("cpu"), "it")
        return True

    monkeypatch.setattr(clusters, "current_world", lambda device: here.world)
    monkeypatch.setattr(clusters, "own_memory", lambda device: (10**9, 1)[here.world.rank])
    assert on_ranks(2, keep) == [True, True]
