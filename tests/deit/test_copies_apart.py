"""Images that are equal to the byte and have two labels are told like one image that has."""

import shutil

import numpy as np
import pytest

from data_selection.commands.any_method import main_select
from data_selection.commands.run_choose import choose_images
from data_selection.common.errors import UserError
from tests.support.labelled_runs import train
from tests.support.pages import write_answers

pytestmark = pytest.mark.usefixtures("one_thread", "quick_report")


@pytest.fixture
def copied(folder, tmp_path):
    """(pool, run): of two images that are not chosen together by the commands, one a copy, both labelled by hand."""
    pool, run = shutil.copytree(folder, tmp_path / "pool"), tmp_path / "run"
    done = choose_images(folder, 8, tmp_path / "first", method="random", model="demo_vit", device="cpu", num_workers=0)
    shutil.copyfile(pool / done.files[0], pool / "copy.png")
    choose_images(pool, 8, run, method="random", model="demo_vit", device="cpu", num_workers=0, images="none")
    words = {name: "ab"[place % 2] for place, name in enumerate(done.files)}
    return pool, run, words, done.files[0]


def test_copies_with_two_labels_are_named_before_work(copied, tmp_path):
    pool, run, words, first = copied
    table = tmp_path / "table.csv"
    write_answers(table, words | {"copy.png": "b"})
    told = (
        f"1 images have copies, equal to the byte, with another label: {first} ('a' in {table}) and copy.png ('b' in "
    )
    flags = ["--features", str(next((run / "features").glob("*.npy"))), "--labelled", str(table), "--output_dir",
             str(tmp_path), "--method", "auto", "--budget", "3", "--device", "cpu"]  # fmt: skip
    again = {"model": "demo_vit", "device": "cpu", "num_workers": 0, "images": "none"}
    for work in (
        lambda: train(run, labels=[table], partial=True),
        lambda: choose_images(pool, 3, tmp_path / "two", labelled=[table], **again),
        lambda: main_select(flags),
    ):
        write_answers(table, words | {"copy.png": "b"})
        with pytest.raises(UserError) as caught:
            work()
        assert told in str(caught.value)
        write_answers(table, words | {"copy.png": "a"})
        work()
    assert np.load(flags[1]).shape[0] == len(list(pool.iterdir()))
