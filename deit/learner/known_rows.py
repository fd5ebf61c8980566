"""Rows that extraction has made of the training images already: where they fit, the head needs no image decoded."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data_selection.common.errors import UserError
from data_selection.common.feature_table import load_features, sidecar
from data_selection.common.files import read_json, sha256
from data_selection.common.kinds import Log
from data_selection.common.paths import DATA_SELECTION
from data_selection.embedding.backbones import local_file, state_digest
from data_selection.embedding.preprocessing import Preprocess
from data_selection.images.pools import Pool
from data_selection.images.record import load_record, record_pool
from deit.learner.linear import classifiers
from deit.runs.checkpoints import classifier_names


def known_rows(
    args: argparse.Namespace,
    pool: Pool,
    ids: Sequence[int],
    pixels: Preprocess,
    model: nn.Module,
    source: Path | str,
    log: Log,
) -> np.ndarray | None:
    """The rows (N, D) float32 of the images `ids` of a pool, or None where no feature file has them.

    The file is --features, else the one that the subset files say they were chosen by, where it lies in extraction's
    folder or beside them. It must be of the same images by content, the same pixels and the same weights, which source
    names and the model has; else log says why not. Raises UserError where --features does not fit.
    """
    asked = Path(args.features) if args.features else None
    path = asked or at_hand(args.subset_ids or ())
    if path is None:
        return None
    rows, why = None, weights_unlike(path, args, model, source) or pixels_unlike(path, pixels)
    if not why:
        rows, why = rows_of(path, pool, ids, classifiers(model)[0].in_features)
    if rows is None and asked:
        raise UserError(
            f"--features {asked} do not hold what the head would see: {why}. Extract them with the model's weights and "
            "the pixels of training, or leave the flag out"
        )
    log(
        f"the features of the {len(ids)} training images are taken from {path}; none of the images is decoded"
        if rows is not None
        else f"{path} is not used, the training images are embedded anew: {why}"
    )
    return rows


def at_hand(subset_files: Sequence[Path | str]) -> Path | None:
    """The feature file that subset files were chosen by, None where they name none or several, or it is not there."""
    found = set()
    for file in map(Path, subset_files):
        beside = sidecar(file, "provenance")
        features = (read_json(beside).get("features") if file.suffix == ".json" and beside.exists() else None) or {}
        places = [folder / (features.get("file") or "") for folder in (DATA_SELECTION / "features", file.parent)]
        found.add(next((place for place in places if place.is_file()), None))
    return found.pop() if len(found) == 1 else None


def told_by(path: Path) -> dict[str, Any]:
    """A feature file's provenance, {} where there is none."""
    beside = sidecar(path, "provenance")
    return read_json(beside) if beside.exists() else {}


def weights_unlike(path: Path, args: argparse.Namespace, model: nn.Module, source: Path | str) -> str:
    """Why a feature file was not made by the model's weights, "" where it was."""
    backbone = told_by(path).get("backbone") or {}
    if backbone.get("n_last_blocks", 1) != 1 or backbone.get("avgpool_patchtokens"):
        return "they are of several blocks, or of patch tokens, too"
    if "weights_sha256" in backbone:
        file = source != "none" and not str(source).startswith("timm:")
        same = file and sha256(local_file(source)) == backbone["weights_sha256"]
        same = same and args.checkpoint_key == backbone.get("checkpoint_key")
    else:
        same = state_digest(model, classifier_names(model)) == backbone.get("tensors_sha256")
    return "" if same else f"they are by other weights ({backbone.get('weights', 'of an unknown backbone')})"


def pixels_unlike(path: Path, pixels: Preprocess) -> str:
    """Why a feature file is not of these pixels, "" where it is."""
    there, here = told_by(path).get("preprocess") or {}, pixels.record()
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    told = "; ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)
    return f"they are of other pixels ({told})" if names else ""


def rows_of(path: Path, pool: Pool, ids: Sequence[int], width: int) -> tuple[np.ndarray | None, str]:
    """(rows (N, width) float32 of the images by content, ""), or (None, why they are not there)."""
    table = load_features(path)
    record = load_record(path, len(table))
    if record is None:
        return None, "they have no record of their images"
    if table.features.shape[1] != width:
        return None, f"they have {table.features.shape[1]} columns, and the classifier sees {width}"
    some = {"paths": [pool.paths[i] for i in ids]} if pool.arrays is None else {"arrays": pool.arrays[list(ids)]}
    place = {value: row for row, value in enumerate(record.hashes) if value}
    rows = [place.get(value, -1) for value in record_pool(Pool(**some)).hashes]
    if -1 in rows:
        return None, f"{rows.count(-1)} of {len(ids)} training images are not in it as they are today"
    return np.asarray(table.features[rows], dtype=np.float32), ""
