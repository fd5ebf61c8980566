"""Finds a pool's images by what other programs call them: paths from elsewhere, addresses, made-up places."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from data_selection.common.listed_names import both_forms, readings

UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio's mark before the name of an uploaded file


class Finder:
    """Finds a pool's names by what other programs call them.

    names: of the pool; asked: those that win where a bare file name fits several. places, which may be set anew for
    each file that is read: {made-up name under which an image was handed out: its own}.
    """

    def __init__(self, names: Sequence[str], asked: Sequence[str] = ()) -> None:
        self.names = set(names)
        self.asked = set(asked)
        self.places: Mapping[str, str] = {}
        self.folded: dict[str, str] | None = None
        self.ends: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self.ends[PurePosixPath(name).name].append(name)

    def find(self, file: str) -> str | None:
        """The name of the image that a program calls `file`, or None where none fits, or several alike."""
        if (placed := self.placed(file)) is not None:
            return placed
        for path in spellings(file):
            if path in self.names:
                return path
            parts = path.split("/")
            alike = self.ends.get(parts[-1], [])
            # the images that share most folders, counted from the end, with what was written
            shared = [sum(1 for _ in common_end(parts, name.split("/"))) for name in alike]
            best = [name for name, count in zip(alike, shared, strict=True) if count == max(shared, default=0)]
            wanted = [name for name in best if name in self.asked]
            for choice in (best, wanted):
                if len(choice) == 1:
                    return choice[0]
        return None

    def placed(self, file: str) -> str | None:
        """The name of the image that was handed out as `file`, in whatever folder, or None where none was."""
        for path in spellings(file) if self.places else ():
            end = path.rpartition("/")[2]
            if end in self.places and (end == path or path not in self.names):
                return self.places[end]
        return None

    def why_not(self, file: str) -> str:
        """Why no image is found by `file`, as far as there is something to say: for a message."""
        words = spellings(file)
        if any(path.rpartition("/")[2] in self.ends for path in words):
            return "; several are called so"
        if self.folded is None:
            self.folded = folded(sorted(self.names))
        meant = next((self.folded[path.casefold()] for path in words if path.casefold() in self.folded), None)
        return f"; did you mean {meant}?" if meant else ""


def folded(names: Sequence[str]) -> dict[str, str]:
    """{what a person may write for a name: the name}: other capitals, no folder, no ending where no other is so called.

    names: in sorted order.
    """
    stems: dict[str, set[str]] = defaultdict(set)
    for name in names:
        path = PurePosixPath(name)
        for bare in (path.stem, (path.parent / path.stem).as_posix()):
            stems[bare.casefold()].add(name)
    found = {bare: next(iter(called)) for bare, called in stems.items() if len(called) == 1}
    found |= {PurePosixPath(name).name.casefold(): name for name in names}
    return found | {name.casefold(): name for name in names}


def by_file_name_alone(file: str, name: str) -> bool:
    """Whether what a program calls `file` and the name that Finder has found for it lie in folders called otherwise."""
    ends = [tuple(path.split("/")) for path in spellings(file)]
    own = tuple(name.split("/"))
    return all(one[-len(own) :] != own[-len(one) :] for one in ends)


def common_end(ours: Sequence[str], theirs: Sequence[str]) -> Iterable[str]:
    """The parts that two paths have in common, from their ends."""
    for own, other in zip(reversed(ours), reversed(theirs), strict=False):
        if own != other:
            return
        yield own


def spellings(file: str) -> list[str]:
    """Paths that a program's word for a file may stand for: itself, of an address its path, uploads without mark."""
    found = [*readings(file), file.replace("\\", "/")]
    with contextlib.suppress(ValueError):  # http://[x has no host that there could be
        address = urlsplit(file)
        if address.query or address.scheme in ("http", "https", "file", "s3", "gs"):
            found += [*parse_qs(address.query).get("d", []), unquote(address.path)]
    found.append(unquote(file))
    end = found[-1].rpartition("/")[2]
    if UPLOADED.match(end):
        found.append(UPLOADED.sub("", end))
    return list(dict.fromkeys(form for path in found for form in both_forms(path.removeprefix("./"))))
