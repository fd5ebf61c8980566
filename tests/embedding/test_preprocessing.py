"""Which pixels a model sees."""

import pytest

from data_selection.common.errors import UserError
from data_selection.embedding.preprocessing import preprocess_of


def test_an_unknown_model_is_named_with_its_neighbours():
    with pytest.raises(UserError, match=r"unknown backbone 'timm:resnet1': .*close: resnet18"):
        preprocess_of("timm:resnet1")
    with pytest.raises(UserError, match=r"no weights called resnet10t\.nothere \(known: resnet10t\.c3_in1k\)"):
        preprocess_of("resnet10t.nothere")
