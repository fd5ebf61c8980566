"""Faults planted one at a time into a copy of the repository, to see whether the tests that concern them fail."""

import ast
import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.mutant_tables import NOTHING, TESTS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("deit", "data_selection", "scripts/experiments")  # what faults are planted into
FEW = 8  # test files that import a module, beyond which it is everybody's
CARRIED = ("data_selection", "deit", "tests", "configs", "scripts", "subsets", "pyproject.toml", "requirements.txt")
LEFT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "outputs", "features")

SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
TEXTLESS = (ast.Raise, ast.Assert, ast.JoinedStr, ast.arg, ast.AnnAssign)  # messages and types: nothing in here counts


@dataclass(frozen=True)
class Fault:
    """One change of a file: a span of its text and what stands there instead."""

    path: str  # from the root
    line: int
    kind: str
    start: int  # places in the file's bytes
    end: int
    text: str

    def planted(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def told(self, source: bytes) -> str:
        old = " ".join(source[self.start : self.end].decode().split())
        return f"{old} -> {self.text}"

    def harmless(self, source: bytes) -> str:
        """Why this fault changes nothing, "" where it should."""
        line = source.decode().splitlines()[self.line - 1]
        return next(
            (
                why
                for (path, kind, pattern), why in NOTHING.items()
                if re.match(path, self.path) and re.match(kind, self.kind) and re.search(pattern, line)
            ),
            "",
        )


def faults_of(path: str, source: bytes) -> list[Fault]:
    """Every fault that can be planted into one file."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Fault] = []

    def plant(kind: str, node: ast.AST, text: str) -> None:
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        found.append(Fault(path, node.lineno, kind, start, end, text))

    def visit(node: ast.AST) -> None:
        for kind, where, text in changes(node):
            plant(kind, where, text)
        hidden = [node.returns] if isinstance(node, ast.FunctionDef) else []
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.AnnAssign) and child.value is not None:
                visit(child.value)
            elif not isinstance(child, TEXTLESS) and child not in hidden:
                visit(child)

    visit(ast.parse(source))
    return found


def changes(node: ast.AST):
    """Yield (kind, node whose text is replaced, new text) for one node of the tree."""
    tests = [node.test] if isinstance(node, (ast.If, ast.IfExp)) else getattr(node, "ifs", [])
    for test in tests:
        if ast.unparse(test) not in ("TYPE_CHECKING", "not __package__"):
            yield "if turned round", test, f"(not ({ast.unparse(test)}))"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value:
        yield "constant halved", node, repr(node.value // 2 if type(node.value) is int else node.value / 2)
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield "operator swapped", node, f"({ast.unparse(ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right))})"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        operators = [SWAPPED[type(node.ops[0])](), *node.ops[1:]]
        yield "operator swapped", node, f"({ast.unparse(ast.Compare(node.left, operators, node.comparators))})"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call left out", node, "..."
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg is not None:
                kept = [other for other in node.keywords if other is not keyword]
                yield f"argument {keyword.arg} dropped", node, ast.unparse(ast.Call(node.func, node.args, kept))


def draw(count: int, seed: int, only: str = "") -> list[Fault]:
    """`count` faults drawn at random, spread evenly over the modules whose path begins with `only`."""
    chance, by_module = random.Random(seed), []
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if tests_of(name) and name.startswith(only):
            some = faults_of(name, path.read_bytes())
            chance.shuffle(some)
            by_module.append(some)
    chance.shuffle(by_module)
    drawn = [some[turn] for turn in range(count) for some in by_module if turn < len(some)]
    return drawn[:count]


def tests_of(path: str) -> list[str]:
    """The test files that concern a module, from the root: those of TESTS, then those that import it, where few do."""
    entry = next((tests for prefix, tests in TESTS.items() if path == prefix or path.startswith(prefix)), ())
    found = [f"tests/{name}" for name in entry]
    more = importers().get(path.removesuffix(".py").replace("/", "."), [])
    return found + [test for test in more if len(more) <= FEW and not any(test.startswith(name) for name in found)]


@functools.cache
def importers() -> dict[str, list[str]]:
    """{module: the test files that import it or a name of it}; without that of the pages, which no copy carries."""
    found: dict[str, list[str]] = {}
    for test in sorted({*(ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests" / "test_documentation.py"}):
        names: set[str] = set()
        for node in ast.walk(ast.parse(test.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        for name in names:
            found.setdefault(name, []).append(test.relative_to(ROOT).as_posix())
    return found


# Runs in the copy: the slow imports once, then a fork for each line of pytest's arguments, which it answers in one line
NURSERY = """
import json, os, signal, sys, time
import pytest, torch, torchvision, timm, timm.optim, timm.scheduler, timm.data
import scipy.sparse.csgraph, sklearn.linear_model
torch.set_num_threads(1)
for line in sys.stdin:
    words, limit = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        kept = os.open(words.pop(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 0), os.dup2(kept, 1), os.dup2(kept, 2)
        sys.path[:0] = [os.getcwd()]
        code = pytest.main(words)
        sys.stdout.flush()
        os._exit(int(code))
    end, status = time.monotonic() + limit, None
    while status is None and time.monotonic() < end:
        done, how = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(how) if done else time.sleep(0.05)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if status is None:
        os.waitpid(child, 0)
    print("timeout" if status is None else status, flush=True)
"""


class Copy:
    """A copy of the repository in which tests run with and without a fault."""

    def __init__(self, folder: Path, limit: float = 300.0) -> None:
        """limit: seconds for the tests of one fault; one that takes longer is neither found nor passed."""
        self.folder, self.limit = folder / "copy", limit
        for name in CARRIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name, ignore=LEFT, symlinks=True)
            elif source.exists():
                shutil.copy2(source, self.folder / name)
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY], cwd=self.folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, tests: list[str], limit: float | None = None) -> tuple[str, str]:
        """(`0` where all pass, else pytest's status or `timeout`; what pytest said at the end)."""
        said = self.folder.parent / "said.txt"
        words = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line", *tests, str(said)]
        self.nursery.stdin.write(json.dumps([words, limit or self.limit]) + "\n")
        self.nursery.stdin.flush()
        return self.nursery.stdout.readline().strip(), said.read_text(errors="replace")[-2000:]

    def judge(self, fault: Fault) -> tuple[str, str]:
        """(`killed`, `survived` or `timed out`, the first test that fails with a fault)."""
        path = self.folder / fault.path
        whole = path.read_bytes()
        path.write_bytes(fault.planted(whole))
        try:
            status, said = self.run(tests_of(fault.path))
        finally:
            path.write_bytes(whole)
        word = {"0": "survived", "timeout": "timed out"}.get(status, "killed")
        return word, failed_in(said).split(" - ")[0] or status

    def close(self) -> None:
        self.nursery.stdin.close()
        self.nursery.wait()


def failed_in(said: str) -> str:
    """The line of the first test that failed, of what pytest said; "" where none did."""
    return next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
