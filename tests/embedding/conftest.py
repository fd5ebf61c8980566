"""A folder of images, and which of them an extraction has embedded."""

import pytest

from data_selection.embedding import extraction
from tests.support.changing_folder import paint


@pytest.fixture
def greys(tmp_path):
    for i in range(9):
        paint(tmp_path / "pool" / f"{i}.png", 20 * i)
    return tmp_path / "pool"


@pytest.fixture
def embedded(monkeypatch):
    """Row numbers that were embedded, by the extraction since the last look."""
    seen = []
    real = extraction.batches

    def noted(pool, parts, *args):
        seen.append([pool.names[row] for part in parts for row in part])
        return real(pool, parts, *args)

    monkeypatch.setattr(extraction, "batches", noted)
    return seen
