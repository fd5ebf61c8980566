"""Rows that are excluded or labelled shape a choice as they should: not at all, or as chosen before."""

import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.methods.activeft import select_activeft
from data_selection.methods.bilaf.selection import select_bilaf
from data_selection.methods.configs import ActiveFTConfig
from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"activeft": {"max_iter": 4}, "bilaf": {"core_number": 3}, "zcore": {"draws": 200}, "voptimal": {"core": 5}}
LABELLED, EXCLUDED = [4, 20, 50], [0, 9, 30]


def rows(count=60):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_excluded_row_is_as_good_as_absent(name):
    """Also one of a broken image, whose features are no numbers."""
    method, spoilt = METHODS[name], rows()
    spoilt[EXCLUDED] = torch.nan
    options = {"config": method.config(**SETTINGS.get(name, {})), "seed": 3}
    model = beliefs(method, rows())
    kept = torch.tensor([i for i in range(60) if i not in EXCLUDED])
    found = method.select(spoilt, 12, labelled=LABELLED, excluded=EXCLUDED, **options, **model)
    model = {word: table[kept] for word, table in model.items()}
    labelled = torch.searchsorted(kept, torch.tensor(LABELLED))
    assert kept[method.select(rows()[kept], 12, labelled=labelled, **options, **model)].tolist() == found.tolist()


def test_a_batch_is_of_what_is_not_excluded():
    with pytest.raises(UserError, match="batch_size 58 is above the pool's 57 images"):
        select_activeft(rows(), 8, config=ActiveFTConfig(batch_size=58, max_iter=1), excluded=EXCLUDED)
    assert len(select_activeft(rows(), 8, config=ActiveFTConfig(batch_size=57, max_iter=1), excluded=EXCLUDED)) == 8


def test_a_labelled_core_is_not_counted_in_the_budget():
    assert select_bilaf(rows(), 2, cores=[1, 2, 3], labelled=[1]).tolist() == [2, 3]
