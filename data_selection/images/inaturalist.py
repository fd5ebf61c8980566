"""iNaturalist 2018 and 2019 as published: COCO-like lists of images, and categories.json with the taxonomy."""

from pathlib import Path

from data_selection.common.errors import UserError
from data_selection.common.files import read_json
from data_selection.images.dataset_files import PoolParts

CATEGORIES = ("kingdom", "phylum", "class", "order", "supercategory", "family", "genus", "name")


def find_lists(root: Path, year: int) -> dict[str, Path]:
    """{`train`, `val`, `categories`: its file} of a year in its folder. Raises UserError where one is not there."""
    lists = {
        "train": root / f"train{year}.json",
        "val": root / f"val{year}.json",
        "categories": root / "categories.json",
    }
    missing = [path.name for path in lists.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"iNaturalist {year} needs {', '.join(missing)} in {root}: fetch the lists and images of the competition "
            "and give their folder with --data-path"
        )
    return lists


def read_inaturalist(root: Path | str, train: bool, *, year: int, category: str = "name") -> PoolParts:
    """A year's training or validation images in the order of {train,val}{year}.json, as the keywords of a Pool.

    root: the folder with train{year}.json, val{year}.json, categories.json and the images under the names that the
    lists give them. category: of CATEGORIES, the rank of the taxonomy that makes a class; classes are numbered in
    sorted order of those with training images.
    Raises UserError where a file is missing or has another form.

    Deviation from the released trainer: it looks for images without the kingdom's folder in their path, and numbers the
    classes as they first appear.
    """
    root = Path(root)
    if category not in CATEGORIES:
        raise UserError(f"unknown category {category!r} of iNaturalist: use one of {', '.join(CATEGORIES)}")
    lists = find_lists(root, year)
    train_list = read_json(lists["train"])
    chosen = train_list if train else read_json(lists["val"])
    try:
        word = {entry["id"]: str(entry[category]) for entry in read_json(lists["categories"])}
        class_names = sorted({word[entry["category_id"]] for entry in train_list["annotations"]})
        number = {name: i for i, name in enumerate(class_names)}
        label = {entry["image_id"]: number[word[entry["category_id"]]] for entry in chosen["annotations"]}
        names = [entry["file_name"] for entry in chosen["images"]]
        labels = [label[entry["id"]] for entry in chosen["images"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the lists of iNaturalist {year} in {root} lack {error} (categories.json needs {category!r}, each "
            "image an annotation, each class a training image): fetch them again"
        ) from None
    paths = [str(root / name) for name in names]
    if not Path(paths[0]).is_file():
        raise UserError(f"{paths[0]} of iNaturalist {year} does not exist: unpack the images into {root}")
    return {"paths": paths, "labels": labels, "names": names, "classes": len(class_names), "class_names": class_names}
