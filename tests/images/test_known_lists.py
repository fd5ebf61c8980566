"""Lists that people come back with, found in a pool that has changed since."""

import json

import numpy as np
import pytest
from PIL import Image

from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, save_features
from data_selection.common.subset_files import names_digest, save_subset
from data_selection.images.known_lists import Today, find_images, of_features, of_pool
from data_selection.images.pools import Pool, open_pool
from data_selection.images.record import record_pool, save_record


def paint(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "c.png")):
        paint(tmp_path / "images" / name, i)
    return tmp_path / "images"


@pytest.fixture
def chosen(folder, tmp_path):
    """A subset file of b/1.png and a/1.png with the record of its images."""
    pool = open_pool(str(folder))
    record = record_pool(pool).rows([2, 0])
    images = {"name": list(record.names), "hash": list(record.hashes)}
    features = {"shape": [4, 2], "names_sha256": names_digest(pool.names)}
    return save_subset(tmp_path / "chosen.json", [2, 0], {"images": images, "features": features})


def found(sources, folder, **settings):
    """Names of what is found, and what was said."""
    pool, said = open_pool(str(folder)), []
    ids = find_images(sources, of_pool(pool), log=said.append, **settings)
    return [pool.names[i] for i in ids], said


def test_a_list_is_found_after_files_came_went_and_moved(folder, chosen):
    assert found([chosen], folder) == (["b/1.png", "a/1.png"], [])
    paint(folder / "0.png", 77)  # sorts first
    (folder / "a/2.png").unlink()
    (folder / "b/1.png").rename(folder / "z.png")
    names, said = found([chosen], folder)
    assert names == ["z.png", "a/1.png"]
    assert said == [f"{chosen}: of 2 images, 1 under another name"]
    paint(folder / "a/1.png", 99)
    names, said = found([chosen], folder)
    assert names == ["z.png", "a/1.png"]
    assert said == [f"{chosen}: of 2 images, 1 under another name and 1 with another content under their name"]


def test_an_image_that_is_gone_is_named(folder, chosen):
    (folder / "b/1.png").unlink()
    with pytest.raises(UserError, match=r"chosen\.json: 1 of 2 images are not in the training set: 'b/1\.png'"):
        found([chosen], folder)
    names, said = found([chosen], folder, missing="skip")
    assert names == ["a/1.png"]
    assert said[0].endswith("'b/1.png'; left out")


def test_names_csv_and_folders_are_lists_too(folder, chosen, tmp_path):
    (tmp_path / "names.txt").write_text("/elsewhere/images/a/2.png\nc.png\n")
    (tmp_path / "labels.csv").write_text("file,label\ntrain/a/1.png,cat\nc.png,dog\n")
    paint(tmp_path / "labelled" / "cat" / "new_name.png", 2)  # b/1.png
    sources = [tmp_path / name for name in ("names.txt", "labels.csv", "labelled")]
    assert found(sources[:1], folder)[0] == ["a/2.png", "c.png"]
    names, said = found(sources, folder)
    assert names == ["a/2.png", "c.png", "a/1.png", "b/1.png"]  # each once
    assert said == [f"{sources[2]}: of 1 images, 1 under another name"]
    assert found([chosen, *sources[:1]], folder)[0] == ["b/1.png", "a/1.png", "a/2.png", "c.png"]
    for name in ("none.txt", "none.json", "none"):
        with pytest.raises(UserError, match=rf"list .*{name} does not exist: a subset file, .* is needed"):
            found([tmp_path / name], folder)


def test_a_list_without_a_record_counts_positions_of_the_same_images_only(folder, tmp_path):
    pool = open_pool(str(folder))
    path = save_subset(tmp_path / "old.json", [3, 1], {"features": {"shape": [4, 2], "names_sha256": "other"}})
    with pytest.raises(UserError, match=r"old\.json was chosen from 4 images of other names, or in another order"):
        found([path], folder)
    save_subset(path, [3, 1], {"features": {"shape": [5, 2]}})
    with pytest.raises(UserError, match=r"old\.json was chosen from 5 images, but the training set has 4"):
        found([path], folder)
    save_subset(path, [3, 1], {"features": {"shape": [4, 2], "names_sha256": names_digest(pool.names)}})
    assert found([path], folder)[0] == ["c.png", "a/2.png"]
    save_subset(path, [3, 1])
    assert found([path], folder)[0] == ["c.png", "a/2.png"]


def test_a_feature_file_is_a_pool_with_or_without_a_record(folder, chosen, tmp_path):
    pool = open_pool(str(folder))
    record = record_pool(pool)
    order = [3, 0, 2, 1]
    names = [pool.names[i] for i in order]
    save_features(tmp_path / "F.npy", np.ones((4, 2), np.float32), names=names)
    table = FeatureTable(np.ones((4, 2)), None, tuple(names), tmp_path / "F.npy")
    assert find_images([chosen], of_features(table)) == [2, 1]  # by name
    save_record(tmp_path / "F.npy", record.rows(order))
    assert find_images([chosen], of_features(table)) == [2, 1]
    bare = FeatureTable(np.ones((4, 2)))
    with pytest.raises(UserError, match=r"the images of the features have no names to find others by"):
        find_images([folder], of_features(bare))
    assert find_images([chosen], Today(4, None, lambda: None, "a pool")) == [2, 0]  # by position


def test_a_record_that_does_not_fit_its_list_is_refused(folder, chosen):
    chosen.write_text(json.dumps([2, 0, 1]))
    with pytest.raises(UserError, match=r"chosen\.provenance\.json does not tell the 3 images of chosen\.json"):
        found([chosen], folder)


def test_rows_of_images_without_names_are_told_where_they_are_others(tmp_path):
    pixels = np.arange(4, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)[[0, 1, 0, 3]]
    hashes = record_pool(Pool(arrays=pixels)).rows([2, 3]).hashes
    path = save_subset(tmp_path / "bare.json", [2, 3], {"images": {"name": None, "hash": list(hashes)}})
    said = []
    assert find_images([path], of_pool(Pool(arrays=pixels)), log=said.append) == [2, 3]
    assert said == []
    assert find_images([path], of_pool(Pool(arrays=pixels[[3, 1, 0]])), log=said.append) == [2, 0]
    assert said == [f"{path}: of 2 images, 1 in another row"]
    path.write_text('["2", 3]')
    with pytest.raises(UserError, match=r"bare\.provenance\.json does not tell the 2 images of bare\.json"):
        find_images([path], of_pool(Pool(arrays=pixels)))
