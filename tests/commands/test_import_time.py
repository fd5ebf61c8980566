"""What a command reads its flags with imports nothing slow: --help and a mistake are answered at once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"torch", "timm", "torchvision", "sklearn", "scipy", "matplotlib"}
PARSERS = [
    "from data_selection.commands.extract import build_parser as build",
    "from data_selection.commands.any_method import build_parser as build",
    "from data_selection.commands.activeft import build_parser; build = lambda: build_parser('activeft_cifar')",
    "from data_selection.commands.bilaf import build_parser; build = lambda: build_parser('density_cluster')",
    "from data_selection.commands.choose_images import build_parser as build",
    "from deit.options import build_parser as build",
]


@pytest.mark.parametrize("line", PARSERS, ids=lambda line: line.split()[1])
def test_a_parser_is_built_without_slow_imports(line):
    code = f"import sys\n{line}\nbuild().format_help()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not SLOW & set(done.stdout.split())
