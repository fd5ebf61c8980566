"""SHA-256 of files, kept so that a second start is quick."""

import json
from pathlib import Path
from typing import Any

from data_selection.common.files import atomic_write, read_json, sha256


class Hashes:
    """SHA-256 of files, kept in a folder with their sizes and times so that a second start is quick."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hashes.json"
        self.kept: dict[str, list[Any]] = read_json(self.path) if self.path.exists() else {}

    def of(self, path: Path) -> str:
        """Hex SHA-256 of a file's bytes."""
        found = path.stat()
        told = [found.st_size, found.st_mtime_ns]
        name = str(path.resolve())
        if self.kept.get(name, [])[:2] != told:
            self.kept[name] = [*told, sha256(path)]
            with atomic_write(self.path, "w") as handle:
                json.dump(self.kept, handle)
        return str(self.kept[name][2])
