"""Reports without what takes their time."""

import numpy as np
import pytest

from data_selection.annotation import label_report
from deit.labelled import reporting


@pytest.fixture
def quick_report(monkeypatch):
    """A learning curve of a few fits, and a map that is two columns of the features."""
    real = reporting.learning_curve
    few = {"repeats": 1, "shares": (0.5, 1.0)}
    monkeypatch.setattr(reporting, "learning_curve", lambda *parts, **words: real(*parts, **words, **few))
    monkeypatch.setattr(
        label_report, "project_2d", lambda features, *_, **__: (np.arange(len(features)), np.array(features[:, :2]))
    )
