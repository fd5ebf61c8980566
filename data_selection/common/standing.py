"""What stands where a subset list is to go: nothing, the same list, or one that was chosen otherwise."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from data_selection.common.errors import UserError
from data_selection.common.feature_table import FeatureTable, sidecar
from data_selection.common.files import read_json
from data_selection.common.subset_files import load_subset, names_files
from data_selection.common.subset_names import setting_word

SAME_LIST = ("slice", "max_memory")  # settings that never change a list
Standing = Literal["nothing", "same", "other"]


def standing(path: Path, table: FeatureTable, record: Callable[[], dict[str, Any]], *, overwrite: bool) -> Standing:
    """What is there of a subset file chosen from a table: `nothing`, the `same` list, or an `other` to be replaced.

    record: gives the provenance that the new list would have; asked where a list is there. overwrite: whatever list is
    there is to be replaced. Raises UserError for one that was chosen otherwise, telling how, unless it is to be
    replaced; and for a file of names that is there without a list: somebody's own.
    """
    if not path.exists():
        strange = next((file for file in names_files(path, table) if file.exists()), None)
        if strange:
            raise UserError(f"{strange} is there, and no list of ours: move it, or choose another --filename")
        return "nothing"
    if overwrite:
        return "other"
    beside = sidecar(path, "provenance")
    if not beside.exists():
        differing = ["it has no record of how it was chosen"]
    else:
        differing = differences(read_json(beside), record())
        count = len(load_subset(path, len(table))) if not differing else record()["budget"]
        differing += [f"it holds {count} images, not {record()['budget']}"] if count != record()["budget"] else []
    if differing:
        raise UserError(
            f"{path} is there, and was chosen otherwise: {'; '.join(differing)}. Choose another --filename or "
            "--output_dir, or replace it with --overwrite"
        )
    return "same"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What decides a list and differs between two provenances, in words; empty where the lists are the same."""
    old, new = decisive(before), decisive(now)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if "features" in names:  # other images, or only others' numbers: say which
        sources = [(told.get("features") or {}).get("provenance") or {} for told in (before, now)]
        old["features"], new["features"] = (
            f"{told['features']} of {source.get('source', 'an unknown pool')}"
            for told, source in zip((old, new), sources, strict=True)
        )
    return [f"{name} {setting_word_of(old.get(name))} there, {setting_word_of(new.get(name))} now" for name in names]


def decisive(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a provenance decides its list, by the words that a message has for it."""
    features = record.get("features") or {}
    config = {name: value for name, value in (record.get("config") or {}).items() if name not in SAME_LIST}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    return {
        "method": record.get("method"),
        "budget": record.get("budget"),
        "seed": record.get("seed"),
        "pool": (features.get("shape") or [None])[0],
        "columns": (features.get("shape") or [None])[-1],
        "features": (features.get("sha256") or "")[:8] or None,
        "names": (features.get("names_sha256") or "")[:8] or None,
        **plain,
        **(record.get("taken") or {}),
    }


def setting_word_of(value: object) -> str:
    """A setting in a message."""
    return "none" if value is None else value if isinstance(value, str) else setting_word(value)
