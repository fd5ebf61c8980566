"""Dependencies point one way, room by room; read from the source with ast."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A room may import itself and what stands in the rows below it; `a b` in one row: neither imports the other.
ROOMS = ("commands", "annotation", "judging", "embedding methods", "images nearest", "common", "demo")
TRAINER = {  # of deit: what a room, or a module at the top, may import besides itself
    "samples": set(),
    "runs": set(),
    "losses": set(),
    "gradients": set(),
    "samplers": {"samples"},
    "datasets": {"samples"},
    "engine": {"gradients", "losses", "samples", "runs"},
    "learner": {"engine", "gradients", "losses", "samples", "runs"},
    "memory": {"samples", "runs"},
    "job": {"option_checks", "memory", "learner", "engine", "datasets", "samplers", "samples", "runs"},
    "selftrain": {"job", "learner", "engine", "losses", "samplers", "samples", "runs"},
    "smoothing": {"job", "learner", "engine", "selftrain", "runs"},
    "epochs": {"smoothing", "selftrain", "job", "learner", "engine", "samplers", "samples", "runs"},
    "crossval": {"epochs", "selftrain", "job", "learner", "engine", "samples", "runs"},
    "option_checks": {"runs"},
    "recipes": set(),
    "flags": {"recipes"},
    "options": {"flags", "option_checks", "recipes"},
    "choosing": {"crossval", "job", "learner", "runs", "selftrain", "smoothing", "timing"},
    "timing": {"crossval", "epochs", "selftrain", "job", "learner", "engine", "runs"},
    "trainer": {
        "choosing",
        "smoothing",
        "timing",
        "memory",
        "selftrain",
        "crossval",
        "epochs",
        "job",
        "learner",
        "engine",
        "datasets",
        "samples",
        "runs",
    },
    "predicting": {"smoothing", "options", "memory", "learner", "engine", "datasets", "samples", "runs"},
    "main": {"options", "trainer"},
    "labelled": {"predicting", "options", "recipes", "trainer", "smoothing", "learner", "samples", "runs"},
}
MODULES = sorted(path for folder in ("data_selection", "deit") for path in (ROOT / folder).rglob("*.py"))
ENTRIES = {path for path in MODULES if "__main__" in path.read_text()}


def imports(path):
    """Full dotted names of the project modules that a file imports, at any depth of the code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    names = {dotted(module) for module in MODULES}
    return found & names


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name):
    """The room of a dotted name: data_selection.nearest.narrow -> nearest; a package itself: ""."""
    return name.split(".")[1] if "." in name else ""


def below(name):
    """Rooms of data_selection that the room may import, itself among them."""
    row = next(i for i, rooms in enumerate(ROOMS) if name in rooms.split())
    return {name} | {other for rooms in ROOMS[row + 1 :] for other in rooms.split()} | {""}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_direction(path):
    mine = dotted(path)
    for other in imports(path):
        assert other not in {dotted(entry) for entry in ENTRIES}, f"{mine} imports the entry {other}"
        if mine.startswith("deit"):
            if other.startswith("data_selection"):
                top = "annotation" if room(mine) == "labelled" else "judging"
                assert room(other) in below(top), f"{mine} imports {other}, above deit's reach"
            elif room(mine):
                allowed = TRAINER[room(mine)] | {room(mine), ""}
                assert room(other) in allowed, f"{mine} imports {other}; {room(mine)} may import {sorted(allowed)}"
            continue
        assert not other.startswith("deit"), f"{mine} imports {other}"
        if path not in ENTRIES and room(mine):
            assert room(other) in below(room(mine)), f"{mine} imports {other}, a room above or beside"
        elif path in ENTRIES:
            assert room(other) in {"commands", "common", ""}, f"the entry {mine} does more than call a command: {other}"


def test_every_room_says_what_it_is_for():
    rooms = {path.parent for path in MODULES if path.parent.parent in (ROOT / "data_selection", ROOT / "deit")}
    for folder in rooms:
        if folder.name[0].islower() and folder.name != "sample_tools":  # the others are the papers' own folders
            lines = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())).splitlines()
            assert len(lines) >= 1, folder


def test_bilaf_does_not_know_activeft():
    for path in (ROOT / "data_selection" / "methods" / "bilaf").glob("*.py"):
        assert not any("activeft" in name for name in imports(path))


def test_no_module_is_named_like_a_standard_one():
    for path in [*MODULES, *(ROOT / "scripts").rglob("*.py")]:
        assert path.stem.startswith("__") or path.stem not in sys.stdlib_module_names, path


@pytest.mark.parametrize("folder", ["data_selection", "deit", "scripts", "tests"])
def test_no_file_is_too_long_to_read(folder):
    long = {path.name: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {name: lines for name, lines in long.items() if lines > 300}
