"""Pictures and tables of selections."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from data_selection.images.pools import load_demo
from data_selection.judging.report import STEPS, contact_sheet, draw_selections, markdown_table, project_2d


@pytest.fixture(scope="module")
def images():
    return load_demo()["train_images"][:300]


def test_map_holds_a_sample_and_every_image_asked_for(images):
    features = images.reshape(300, -1).astype(np.float32)
    rows, points = project_2d(features, keep=[299, 3], shown=60)
    assert 60 <= len(rows) <= 62
    assert {299, 3} <= set(rows.tolist())
    assert (rows[1:] > rows[:-1]).all()
    assert points.shape == (len(rows), 2)
    again = project_2d(features, keep=[299, 3], shown=60)
    assert (again[0] == rows).all()


def test_the_map_moves_a_bar_to_its_end_and_prints_nothing(images, capsys):
    moved = []

    class Counted(tqdm):
        def update(self, n=1):
            moved.append(n)

    project_2d(images[:40].reshape(40, -1).astype(np.float32), progress=partial(Counted, disable=True))
    assert sum(moved) == STEPS
    assert len(moved) >= 8
    assert capsys.readouterr().out == ""


def test_picture_is_a_png_that_differs_between_selections(images, tmp_path):
    features = images.reshape(300, -1).astype(np.float32)
    pictures = []
    for name, chosen in (("a", [0, 1, 2]), ("b", [50, 51, 52])):
        path = tmp_path / f"{name}.png"
        draw_selections(
            path, features, {"one": chosen, "two": [7]}, images.__getitem__, captions={"one": "x", "two": "y"}
        )
        pictures.append(np.asarray(Image.open(path).convert("L")))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


def test_contact_sheet_places_images_row_by_row():
    tiles = [np.full((2, 2), value, dtype=np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(tiles, gap=1)
    assert sheet.shape == (5, 5)
    assert (sheet[:2, :2] == 10).all()
    assert (sheet[:2, 3:] == 20).all()
    assert (sheet[3:, :2] == 30).all()
    assert (sheet[3:, 3:] == 255).all()


def test_markdown_table_is_aligned():
    lines = markdown_table(["a", "long"], [["xyz", 1], ["b", 22]]).splitlines()
    assert lines == ["| a   | long |", "|-----|------|", "| xyz | 1    |", "| b   | 22   |"]


def test_the_map_is_of_directions(images):
    features = images[:15].reshape(15, -1).astype(np.float32)
    lengths = 2.0 ** np.arange(15, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(project_2d(features * lengths)[1], project_2d(features)[1])


@pytest.mark.parametrize("features", [np.zeros((20, 8)), np.full((20, 1), 3.0), np.ones((3, 4))])
def test_features_without_any_spread_are_one_point(features):
    """scikit-learn would end the process."""
    rows, points = project_2d(features.astype(np.float32))
    assert len(rows) == len(features)
    np.testing.assert_array_equal(points, np.zeros((len(features), 2)))


def test_one_column_makes_a_map():
    assert np.isfinite(project_2d(np.arange(-10, 10, dtype=np.float32)[:, None])[1]).all()
