"""Every method's settings are checked, and its bars of progress come to their end."""

import dataclasses

import pytest
import torch

from data_selection.common.errors import UserError
from data_selection.methods.table import METHODS
from tests.support.beliefs import beliefs

NUMBERS = [
    (name, field.name)
    for name, method in METHODS.items()
    for field in dataclasses.fields(method.config)
    if any(word in str(field.type) for word in ("int", "float"))
]


@pytest.mark.parametrize(("name", "field"), NUMBERS)
@pytest.mark.parametrize("value", [-1, float("nan")], ids=str)
def test_a_number_without_a_meaning_is_refused(name, field, value):
    with pytest.raises(UserError, match=field):
        METHODS[name].config(**{field: value})


class Counted:
    """Bars that note how far each came."""

    def __init__(self):
        self.bars = []

    def __call__(self, *, total, desc, unit):
        self.bars.append(bar := One(total, desc))
        return bar


class One:
    def __init__(self, total, name):
        self.total, self.name, self.done = total, name, 0

    def update(self, count):
        self.done += count

    def set_postfix_str(self, text):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_bars_come_to_their_end(name):
    method, counted = METHODS[name], Counted()
    features = torch.randn(150, 6, generator=torch.Generator().manual_seed(0))
    method.select(features, 12, progress=counted, **beliefs(method, features))
    assert [(bar.name, bar.done) for bar in counted.bars] == [(bar.name, bar.total) for bar in counted.bars]
    assert counted.bars or name in ("random", "margin")
