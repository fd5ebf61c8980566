"""setup.sh and environments that are there already, with a stand-in for the interpreter."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/bash
echo "$*" >> "$SAID"
case "$*" in
    *ensurepip*) [ -n "$ENSUREPIP" ] && touch "$(dirname "$0")/pip" ;;
    "-m venv --clear"*) rm -r "$4" ;;
    "-m pip --version") [ -e "$(dirname "$0")/pip" ] ;;
esac
"""


@pytest.mark.parametrize("works", ["yes", ""])
def test_an_environment_without_pip_keeps_what_is_in_it(tmp_path, works):
    """uv makes such ones."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyvenv.cfg", "notes.txt", "bin/python"):
        (tmp_path / ".venv" / name).write_text(PYTHON)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    said = {"SAID": str(tmp_path / "said"), "ENSUREPIP": works, "PYTHON": str(tmp_path / ".venv" / "bin" / "python")}
    environment = {name: value for name, value in os.environ.items() if name != "VENV"} | said
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (tmp_path / ".venv" / "notes.txt").exists()
    if works:
        assert done.returncode == 0, done.stderr
        assert "-m pip install" in (tmp_path / "said").read_text()
    else:
        assert done.returncode == 2
        assert "has no pip, and" in done.stderr
