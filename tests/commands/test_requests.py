"""What is part of a request, so that another one is not taken for made, and what is free to be chosen."""

import pytest

from data_selection.commands import run_choose
from data_selection.common.errors import UserError
from tests.commands.test_choose_images import label
from tests.support.extraction_cases import COUNT

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_waits_for_labels_is_part_of_the_request(choose, tmp_path):
    one, other = choose(tmp_path / "one"), choose(tmp_path / "other", seed=1)
    label(one, 9)
    choose(tmp_path / "two", labelled=[one], budget=5)
    with pytest.raises(UserError, match="labelled was"):  # no new label, and 12 images more that are not chosen again
        choose(tmp_path / "two", labelled=[one, other], budget=5)


def test_what_waits_for_labels_is_not_free(choose, tmp_path):
    one = choose(tmp_path / "one")
    label(one, 9)
    with pytest.raises(UserError, match=rf"outside 1\.\.{COUNT - 12}, the images without a label"):
        choose(tmp_path / "two", labelled=[one], budget=COUNT - 11)
    assert not (tmp_path / "two").exists()


def test_auto_looks_by_the_seed(choose, tmp_path, monkeypatch):
    real, seeds = run_choose.advise, []
    monkeypatch.setattr(
        run_choose, "advise", lambda *a, seed=0, **how: seeds.append(seed) or real(*a, seed=seed, **how)
    )
    choose(tmp_path / "out", method="auto", seed=5)
    assert seeds == [5]
