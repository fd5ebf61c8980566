"""Dependencies point one way: entries and scripts -> cli -> algorithms -> leaves (read from the source with ast)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAVES = {
    "errors", "files", "checks", "distributed", "feature_table", "subset_files", "progress", "similarity", "pools",
    "backbones", "downloads", "dataset_files", "inaturalist", "embedding", "packed_blocks", "list_files",
}  # fmt: skip
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


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_direction(path):
    mine, package = dotted(path), path.relative_to(ROOT).parts[0]
    for other in imports(path):
        assert other not in {dotted(entry) for entry in ENTRIES}, f"{mine} imports the entry {other}"
        name = other.removeprefix("data_selection.")
        if package == "deit":
            assert other.startswith("deit") or name in LEAVES | {"data_selection"}, f"{mine} imports {other}, no leaf"
        else:
            assert not other.startswith("deit"), f"{mine} imports {other}"
            if mine.removeprefix("data_selection.") in LEAVES:
                assert name in LEAVES | {"data_selection"}, f"the leaf {mine} imports {other}"
            if not name.startswith("cli") or path in ENTRIES:
                continue
            assert mine.startswith("data_selection.cli"), f"{mine} imports the command line {other}"


def test_bilaf_does_not_know_activeft():
    for path in (ROOT / "data_selection").glob("bilaf*.py"):
        assert not any("activeft" in name for name in imports(path))


def test_no_module_is_named_like_a_standard_one():
    import sys

    for path in [*MODULES, *(ROOT / "scripts").glob("*.py")]:
        assert path.stem.startswith("__") or path.stem not in sys.stdlib_module_names, path
