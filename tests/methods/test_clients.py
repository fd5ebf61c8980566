"""Whom the methods of coverage serve where budgets are large, and whom they choose once all are served."""

import functools

import pytest
import torch

from data_selection.methods.configs_design import FacilityConfig, MaxHerdingConfig, UncertaintyHerdingConfig
from data_selection.methods.design.doubt import select_uncertainty_herding
from data_selection.methods.design.facility import select_facility, select_maxherding

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 150
PROBABILITIES = (2 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))).softmax(1)
COVERING = [
    (select_facility, FacilityConfig),
    (select_maxherding, MaxHerdingConfig),
    (functools.partial(select_uncertainty_herding, probabilities=PROBABILITIES), UncertaintyHerdingConfig),
]
CERTAIN = functools.partial(select_uncertainty_herding, probabilities=torch.eye(4)[[0] * COUNT])


@pytest.fixture(scope="module")
def rows():
    """25 rows around each of 6 centres in turn."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=draw)
    return centres.repeat_interleave(25, 0) + 0.5 * torch.randn(COUNT, 8, generator=draw)


@pytest.mark.parametrize(("select", "config"), COVERING)
def test_three_clients_for_each_label_at_least(rows, select, config):
    lists = [select(rows, 9, config=config(clients=count), labelled=[3, 40]).tolist() for count in (1, 33, 90)]
    assert lists[0] == lists[1] != lists[2]


@pytest.mark.parametrize(("select", "config"), [*COVERING, (CERTAIN, UncertaintyHerdingConfig)])
def test_a_pool_sorted_by_class_is_covered_evenly_whatever_the_clients(rows, select, config):
    """Also by a model without doubt, which leaves the cover of all rows alike."""
    chosen = select(rows, 60, config=config(clients=10))
    assert ((chosen // 25).bincount(minlength=6) >= 3).all()
    assert select(rows, 30, config=config(clients=COUNT)).tolist() == select(rows, 60).tolist()[:30]
    if select is CERTAIN:
        labelled = [0, 60]  # which say the width
        even = functools.partial(select_uncertainty_herding, probabilities=torch.full((COUNT, 4), 0.25))
        assert select(rows, 20, labelled=labelled).tolist() == even(rows, 20, labelled=labelled).tolist()


@pytest.mark.parametrize(("select", "config"), COVERING)
def test_copies_of_what_is_chosen_come_in_a_random_order(rows, select, config):
    copies = rows[:150:30].repeat_interleave(30, 0)
    lists = [select(copies, 75, seed=seed).tolist() for seed in (0, 1)]
    assert (torch.tensor(lists).div(30, rounding_mode="floor")[0].bincount(minlength=5) >= 7).all()
    assert select(copies, 40).tolist() == lists[0][:40] != lists[1][:40]


DOUBTED = list(range(4, 150, 30))  # images that a model is in doubt of; it is certain of all others
HALVES = torch.eye(4)[[0] * COUNT].index_copy(0, torch.tensor(DOUBTED), torch.tensor([[0.5, 0.5, 0, 0]] * 5))


@pytest.fixture(scope="module")
def pair(rows):
    """The two rows that are nearest to each other: labelled, they make a width that further labels do not change."""
    units = torch.nn.functional.normalize(rows, dim=1)
    return divmod(int(torch.cdist(units, units).fill_diagonal_(torch.inf).argmin()), COUNT)


def test_what_is_chosen_for_the_doubt_covers_the_rest_too(rows, pair):
    """Once the doubt is covered the choice goes on as if its first images had been labelled."""
    whole = select_uncertainty_herding(rows, 14, labelled=pair, probabilities=HALVES).tolist()
    assert sorted(whole[:5]) == DOUBTED
    rest = CERTAIN(rows, 9, labelled=[*pair, *whole[:5]]).tolist()
    assert rest == whole[5:] != CERTAIN(rows, 9, labelled=pair).tolist()


def test_only_images_in_doubt_are_clients(rows, pair):
    """Of a few clients none is wasted on what the model knows."""
    config = UncertaintyHerdingConfig(clients=1)
    assert select_uncertainty_herding(rows, 1, config=config, labelled=pair, probabilities=HALVES).item() in DOUBTED
