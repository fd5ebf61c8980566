"""Images that are drawn at random beside a choice: which they are, that they are marked, and that later rounds know."""

import json
import re

import numpy as np
import pytest

from data_selection.annotation.run_folder import check_names
from data_selection.commands.run_choose import choose_images
from data_selection.commands.selection import CHECK_SEED, draw_rest
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable
from data_selection.methods.random_choice import select_random
from tests.support.extraction_cases import COUNT
from tests.support.labelled_runs import word
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = {"method": "kmeans", "model": "demo_vit", "device": "cpu", "num_workers": 0}


def record(run):
    return json.loads((run / "subset.provenance.json").read_text())


def test_a_choice_keeps_its_images_and_gets_others_at_random(folder, tmp_path, capsys):
    plain = choose_images(folder, 15, tmp_path / "plain", **WORDS)
    both = choose_images(folder, 15, tmp_path / "both", check=10, **WORDS)
    said = capsys.readouterr().out
    assert f"15 of {COUNT} images chosen by kmeans in " in said
    assert ", 10 drawn at random from the rest" in said
    drawn = record(both.folder)["check"]
    assert len(set(drawn)) == 10
    assert set(both.files) == {*plain.files, *drawn}
    assert not {*plain.files} & {*drawn}
    assert both.files == sorted(both.files)  # nobody who labels sees which is which
    assert check_names(both.folder) == drawn
    assert check_names(plain.folder) == []
    with pytest.raises(UserError, match="check was 10, now 20"):
        choose_images(folder, 15, tmp_path / "both", check=20, **WORDS)

    write_answers(both.folder / "annotate.csv", {name: word(name) for name in both.files})
    capsys.readouterr()
    after = choose_images(folder, 5, tmp_path / "after", check=10, labelled=[both.folder], **WORDS)
    assert re.search(r"\n5 images: .*; 10 more were drawn at random, to judge by\n", capsys.readouterr().out)
    own = record(after.folder)["check"]
    assert not {*own} & {*both.files}
    assert check_names(after.folder) == [*drawn, *own]
    later = choose_images(folder, 5, tmp_path / "later", labelled=[both.folder], **WORDS)
    assert check_names(later.folder) == drawn


def test_the_rest_is_drawn_evenly_and_never_what_is_chosen():
    table = FeatureTable(np.zeros((60, 2), dtype=np.float32))
    chosen, excluded = list(range(0, 60, 3)), [1, 2]
    counts = np.zeros(60)
    for seed in range(300):
        drawn = draw_rest(table, 10, chosen, {"excluded": excluded}, seed).tolist()
        assert len(set(drawn)) == 10
        counts[drawn] += 1
    assert counts[[*chosen, *excluded]].sum() == 0
    rest = counts[counts > 0]
    assert len(rest) == 38
    assert abs(rest / 300 - 10 / 38).max() < 4 * (10 / 38 / 300) ** 0.5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"check": 9}, r"--check 9: from fewer than 10 images nothing can be told"),
        ({"check": -1}, r"--check -1: "),
        ({"check": 20, "budget": 60}, rf"--budget 60 is outside 1\.\.{COUNT - 20}, .*less the 20 of --check"),
    ],
)
def test_too_few_or_too_many_are_refused(folder, tmp_path, words, says):
    with pytest.raises(UserError, match=says):
        choose_images(folder, words.pop("budget", 10), tmp_path / "run", **WORDS, **words)
    assert not (tmp_path / "run").exists()


def test_the_seed_of_what_is_drawn_stays():
    """Another one would draw other images for a command that is repeated years later."""
    table = FeatureTable(np.zeros((50, 2), np.float32), None)
    for seed, own in ((3, 3 + CHECK_SEED), (2**32 - 1, CHECK_SEED - 1)):
        expected = select_random(table.features, 5, labelled=[1], seed=own).tolist()
        assert draw_rest(table, 5, [1], {}, seed).tolist() == expected
