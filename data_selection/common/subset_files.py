"""Subset lists: budgets, reading, checking, writing with provenance."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_selection.common.checks import check_ids
from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, sidecar, write_sidecar
from data_selection.common.files import atomic_write, read_json, sha256
from data_selection.common.kinds import Ids, Log
from data_selection.common.listed_names import quoted
from data_selection.common.paths import ROOT

CHECK = "check"  # in a list's record: names of those of its images that were drawn at random, to judge by


def budget_from_percent(pool_size: int, percent: float | str) -> int:
    """Images that `percent` (0-100; number or text) of a pool makes, rounded down exactly: 0.29 % of 50,000 is 145.

    The released programs compute in binary floating point and lose one image at some percents.
    """
    try:
        exact = Decimal(str(percent))
    except InvalidOperation:
        raise UserError(f"percent {percent!r} is not a number") from None
    whole = exact.is_finite() and 0 <= exact <= 100  # beyond, it may have more digits than memory
    budget = int(exact * pool_size / 100) if whole else 0
    if budget < 1:
        what = "a budget of 0" if whole else "no budget"
        raise UserError(
            f"{percent} % of {pool_size} images is {what}; allowed: 1..{pool_size} images, so at least "
            f"{100 / pool_size:.6g} % and at most 100 %"
        )
    return budget


def load_subset(path: Path | str, pool_size: int, repeats: Log | None = None) -> torch.Tensor:
    """The ids of a subset file: an int64 tensor in file order, each in 0..pool_size-1, none repeated.

    repeats: called with a warning where ids come more than once, as in some published lists; each is then taken once.
    Raises UserError where the file is missing, no JSON list of whole numbers, empty, out of range or repeating.
    """
    values = read_json(path)
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise UserError(f"subset file {path} must be a non-empty JSON list of whole numbers")
    distinct = list(dict.fromkeys(values))
    if repeats is not None and len(distinct) < len(values):
        repeats(f"warning: subset file {path} has {len(values)} entries, {len(distinct)} distinct: each is taken once")
        values = distinct
    return check_ids(values, pool_size, f"subset file {path}:")


def save_subset(path: Path | str, ids: Ids, provenance: dict[str, Any] | None = None, *, order: str = "given") -> Path:
    """Write ids as the released programs do, a bare JSON array; order: `given` (BiLAF) or `sorted` (ActiveFT).

    The provenance (a dictionary) goes to X.provenance.json beside it, written first: a subset without its provenance
    never appears. Returns the path.
    """
    values = torch.as_tensor(ids).tolist()
    if order == "sorted":
        values.sort()
    write_sidecar(path, "provenance", provenance)
    with atomic_write(path, "w") as handle:
        json.dump(values, handle)
    return Path(path)


def save_names(path: Path | str, table: FeatureTable) -> list[Path]:
    """Write the names of a subset file's images beside it, one a line (see quoted), for annotators and other programs.

    One file, X.txt, in the subset's order; for the pool PascalVOC two, as released: X_VOC2007.txt and X_VOC2012.txt,
    each sorted (ids of 2012 have an underscore). Returns the files written, none where the table has no names.
    """
    if table.names is None:
        return []
    names, files = [table.names[i] for i in load_subset(path, len(table)).tolist()], names_files(path, table)
    lists = [names]
    if len(files) == 2:
        lists = [sorted(name for name in names if ("_" in name) == later) for later in (False, True)]
    for file, chosen in zip(files, lists, strict=True):
        with atomic_write(file, "w") as handle:
            handle.writelines(f"{quoted(name)}\n" for name in chosen)
    return files


def names_files(path: Path | str, table: FeatureTable) -> list[Path]:
    """Where save_names writes."""
    path = Path(path)
    if table.names is None:
        return []
    if (pool_provenance(table).get("pool") or {}).get("name") == "PascalVOC":
        return [path.with_name(f"{path.stem}_VOC{year}.txt") for year in (2007, 2012)]
    return [path.with_suffix(".txt")]


def pool_provenance(table: FeatureTable) -> dict[str, Any]:
    """The provenance beside the table's feature file, {} where there is none."""
    source = sidecar(table.path, "provenance") if table.path else None
    return read_json(source) if source and source.exists() else {}


def describe(
    table: FeatureTable,
    *,
    method: str,
    config: dict[str, Any],
    seed: int,
    budget: int,
    taken: Mapping[str, str] | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """The provenance of a selection: method, config, seed, budget, feature file, backbone, versions, command.

    table: the one selected from. taken: of the images that were labelled or excluded, number and digest in one word.
    """
    return {
        "method": method,
        "config": config,
        "seed": seed,
        "budget": budget,
        "taken": dict(taken or {}),
        "features": {
            "file": Path(table.path).name if table.path else None,
            "shape": list(table.features.shape),
            "sha256": sha256(table.path) if table.path else None,
            "names_sha256": names_digest(table.names) if table.names else None,
            "provenance": pool_provenance(table) or None,
        },
        "versions": versions(),
        "command": command if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def names_digest(names: Sequence[str]) -> str:
    """Hex digest of a pool's names in order: with another one, ids mean other images."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def versions() -> dict[str, str | None]:
    """Versions that a result may depend on, and this project's commit where it is a checkout."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "commit": commit(),
    }  # fmt: skip


def commit() -> str | None:
    """The checkout's commit, with -dirty where files differ from it, or None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
