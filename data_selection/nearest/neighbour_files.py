"""The file of a pool's nearest neighbours, which lies beside its features: its name, what is in it, reading it."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

FORMAT = 1
HASH_BYTES = 16


@dataclass(frozen=True)
class Neighbours:
    """A pool's neighbours: index (N, k) int64, similarity (N, k) float32, as graph.nearest_neighbours gives them.

    centre: (D,) float32, which was taken off the unit rows. hashes: (N, 16) uint8, of the rows that they are of.
    """

    index: torch.Tensor
    similarity: torch.Tensor
    centre: torch.Tensor
    hashes: np.ndarray

    def first(self, k: int) -> "Neighbours":
        """The k nearest of them."""
        return Neighbours(self.index[:, :k], self.similarity[:, :k], self.centre, self.hashes)


def row_hashes(features: np.ndarray | torch.Tensor) -> np.ndarray:
    """(N, 16) uint8: a hash of each row's bytes as float32."""
    result = np.empty((len(features), HASH_BYTES), dtype=np.uint8)
    for start in range(0, len(features), 4096):
        part = features[start : start + 4096]
        rows = np.ascontiguousarray(part.detach().float().cpu() if torch.is_tensor(part) else part, dtype=np.float32)
        for place, row in enumerate(rows, start):
            result[place] = np.frombuffer(hashlib.blake2b(row, digest_size=HASH_BYTES).digest(), dtype=np.uint8)
    return result


def neighbours_file(features: Path | str) -> Path:
    """X.neighbours.npz of a feature file X.npy."""
    path = Path(features)
    return path.with_name(f"{path.stem}.neighbours.npz")


def read_neighbours(path: Path) -> Neighbours | None:
    """What is kept in X.neighbours.npz; None where it is not there, or cannot be read and is made anew."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if int(kept["format"]) != FORMAT:
                return None
            hashes = kept["hashes"]
            index, similarity, centre = (torch.from_numpy(kept[name]) for name in ("index", "similarity", "centre"))
            if index.ndim != 2 or index.shape != similarity.shape or len(index) != len(hashes):
                return None
            return Neighbours(index.long(), similarity, centre, hashes)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
