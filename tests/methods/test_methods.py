"""What every selection method promises, checked for every row of the table."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from data_selection.common.errors import UserError
from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs

SMALL = {"activeft": {"max_iter": 4}, "kmeans": {"max_iter": 5}, "zcore": {"draws": 500}}
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(params=sorted(METHODS))
def select(request):
    """The method with a quick configuration."""
    method = METHODS[request.param]
    config = method.config(**SMALL.get(request.param, {}))
    return lambda features, budget, **options: method.select(
        features, budget, config=config, **beliefs(method, features), **options
    )


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 10, generator=generator)
    return centres.repeat(20, 1) + 0.3 * torch.randn(120, 10, generator=generator)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_one_signature(method):
    parameters = inspect.signature(method.select).parameters
    assert list(parameters)[:2] == ["features", "budget"]
    for name, default in {"labelled": (), "excluded": (), "seed": 0, "device": None, "progress": None}.items():
        assert parameters[name].default == default
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert isinstance(parameters["config"].default, method.config)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", [1, 2, 17, 120])
def test_length_distinct_repeatable_and_input_untouched(select, features, budget, device):
    before = features.clone()
    ids = select(features, budget, seed=3, device=device)
    assert ids.dtype == torch.int64
    assert ids.device.type == "cpu"
    assert len(set(ids.tolist())) == budget
    assert 0 <= min(ids) <= max(ids) < 120
    assert torch.equal(ids, select(features, budget, seed=3, device=device))
    assert torch.equal(features, before)


def test_kinds_of_input(select, features):
    expected = select(features, 9)
    assert torch.equal(select(features.numpy(), 9), expected)
    assert torch.equal(select(features.double().numpy(), 9), expected)
    assert torch.equal(select(features.clone().requires_grad_(), 9), expected)
    assert len(select(features.half(), 9)) == 9
    assert len(select(features[:1], 1)) == 1


def test_labelled_and_excluded_are_never_chosen(select, features):
    ids = select(features, 30, labelled=[3, 50, 1], excluded=[7, 119])
    assert not set(ids.tolist()) & {3, 50, 1, 7, 119}
    ids = select(features, 117, labelled=[4], excluded=[8, 9])
    assert sorted(ids.tolist()) == sorted(set(range(120)) - {4, 8, 9})


def test_repeated_and_zero_rows(select, features):
    assert len(set(select(features[:10].repeat(6, 1), 25).tolist())) == 25
    assert len(set(select(F.pad(features[:30], (0, 0, 0, 30)), 45).tolist())) == 45


def test_bad_requests(select, features):
    for budget in (0, -1, 121):
        with pytest.raises(UserError, match=r"outside 1\.\.120"):
            select(features, budget)
    with pytest.raises(UserError, match=r"outside 1\.\.118"):
        select(features, 119, labelled=[1], excluded=[2])
    with pytest.raises(UserError, match=r"labelled id 120 is outside"):
        select(features, 3, labelled=[120])
    with pytest.raises(UserError, match="float type"):
        select(features.long(), 3)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"random", "margin"}))  # these read no features
def test_nan_is_refused(name, features):
    broken = features.clone()
    broken[77, 3] = torch.nan
    with pytest.raises(UserError, match="first in row 77"):
        METHODS[name].select(broken, 5, **beliefs(METHODS[name], broken))


@pytest.mark.parametrize("name", sorted(name for name, method in METHODS.items() if method.rounds))
def test_methods_of_rounds_need_fitting_probabilities(name, features):
    select, even = METHODS[name].select, torch.full((120, 4), 0.25)
    with pytest.raises(UserError, match=r"no probabilities: give .* or begin without a model by voptimal"):
        select(features, 5)
    with pytest.raises(UserError, match=r"shape \(119, 4\): a row for each of the 120 images"):
        select(features, 5, probabilities=even[1:])
    for wrong in (even * 2, even - torch.tensor([0.5, -0.5, 0, 0]), even * torch.nan):
        with pytest.raises(UserError, match="each row's sum 1"):
            select(features, 5, probabilities=wrong)
