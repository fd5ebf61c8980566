"""iNaturalist's lists: order, ranks of the taxonomy, missing files; and the trainer on them."""

import json

import pytest

from data_selection.common.errors import UserError
from data_selection.images.inaturalist import CATEGORIES, read_inaturalist
from data_selection.images.pools import Pool, open_pool
from deit.main import main
from deit.options import RANKS
from deit.samples.sources import open_images
from tests.support.trainer_runs import command, log_lines, write_images

TAXA = [{"id": 7, "name": "Zea mays", "genus": "Zea", "kingdom": "Plantae"},
        {"id": 3, "name": "Felis catus", "genus": "Felis", "kingdom": "Animalia"},
        {"id": 5, "name": "Felis silvestris", "genus": "Felis", "kingdom": "Animalia"}]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Six training and three validation images of three species, in no order of names."""
    for part, species in (("train", (7, 3, 5, 7, 3, 5)), ("val", (5, 7, 3))):
        names = [f"train_val2018/Any/{taxon}/{9 - k}{part}.jpg" for k, taxon in enumerate(species)]
        write_images(tmp_path, names)
        images = [{"id": 100 + k, "file_name": name} for k, name in enumerate(names)]
        marks = [{"id": k, "image_id": 100 + k, "category_id": taxon} for k, taxon in enumerate(species)]
        (tmp_path / f"{part}2018.json").write_text(json.dumps({"images": images, "annotations": marks[::-1]}))
    (tmp_path / "categories.json").write_text(json.dumps(TAXA))
    return tmp_path


def test_images_keep_the_order_of_the_list(root):
    pool = Pool(**read_inaturalist(root, True, year=2018))
    assert pool.class_names == ("Felis catus", "Felis silvestris", "Zea mays")
    assert pool.labels == [2, 0, 1, 2, 0, 1]
    assert [name.split("/")[-1] for name in pool.names] == [f"{9 - k}train.jpg" for k in range(6)]
    assert open_pool("INAT", "val", root).labels == [1, 2, 0]
    assert pool[0][0].size == (40, 30)


def test_classes_are_those_of_the_training_images_for_both_parts(root):
    val = json.loads((root / "val2018.json").read_text())
    val["annotations"] = [mark | {"category_id": 7} for mark in val["annotations"]]
    (root / "val2018.json").write_text(json.dumps(val))
    pool = open_pool("INAT", "val", root)
    assert (pool.labels, pool.classes) == ([2, 2, 2], 3)


def test_a_rank_joins_species(root):
    train, val = open_images("INAT", root, category="genus")
    assert (train.class_names, train.labels, val.labels) == (("Felis", "Zea"), [1, 0, 0, 1, 0, 0], [0, 1, 0])
    assert CATEGORIES == RANKS


def test_what_is_missing_is_named(root):
    with pytest.raises(UserError, match=r"2019 needs train2019\.json, val2019\.json in"):
        read_inaturalist(root, True, year=2019)
    with pytest.raises(UserError, match="unknown category 'kind'"):
        read_inaturalist(root, True, year=2018, category="kind")
    with pytest.raises(UserError, match="lack 'family'"):
        read_inaturalist(root, True, year=2018, category="family")
    (root / "train_val2018" / "Any" / "7" / "9train.jpg").unlink()
    with pytest.raises(UserError, match=r"9train\.jpg of iNaturalist 2018 does not exist: unpack"):
        read_inaturalist(root, True, year=2018)


@pytest.mark.parametrize("name", ["INAT", "INATSUBSET"])
def test_the_trainer_reads_them(root, name, tmp_path):
    (root / "subset.json").write_text("[0, 1, 2, 4]")
    subset = root / "subset.json" if name.endswith("SUBSET") else None
    main(command(root, tmp_path / "out", data_set=name, subset_ids=subset, finetune="none", epochs=1,
                 inat_category="kingdom"))  # fmt: skip
    assert log_lines(tmp_path / "out")[0]["test_acc5"] == 100  # two classes
