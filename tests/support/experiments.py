"""A small experiment: a pool whose classes can be told apart, three methods, four evaluations."""

import json

import numpy as np
import yaml

from data_selection.common.feature_table import save_features

EVALUATIONS = {
    "5-NN": {"kind": "knn", "k": 5}, "probe": {"kind": "probe", "c": 3}, "csZ": {"kind": "smoothed"},
    "lrZ": {"kind": "smoothed", "score": "lrZ"},
}  # fmt: skip


def blobs(path, count, seed, classes=4):
    """Features (count, 8) around the corners of a simplex, and their labels, as a feature file."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    save_features(path, np.eye(8, dtype=np.float32)[labels] + generator.normal(0, 0.5, (count, 8)), labels)


def make_config(folder, **changes):
    """Write the pool and grid.yaml to a folder; changes: of the config's top-level keys. Returns the config's path."""
    for seed, name in enumerate(("one_train", "one_test")):
        if not (folder / f"{name}.npy").exists():
            blobs(folder / f"{name}.npy", 120 if name.endswith("train") else 60, seed)
    content = {
        "pools": {
            name: {"train": str(folder / f"{name}_train.npy"), "test": str(folder / f"{name}_test.npy")}
            for name in ("one",)
        },
        "methods": {"random": None, "fps": {}, "k-means": {"method": "kmeans", "max_iter": 5}},
        "budgets": [8, "10%", 30],
        "seeds": 2,
        "evaluations": EVALUATIONS,
    } | changes
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def without_times(store):
    """{digest: record without what differs from run to run} of a results.jsonl. Fails where a cell comes twice."""
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    found = {line["digest"]: {k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines}
    assert len(found) == len(lines), "a cell was computed twice"
    return found
