# Sourced by quickstart.sh and test.sh: makes the virtual environment once and puts its interpreter into $PY.
# PYTHON= chooses the interpreter it is made with (default python3), VENV= the place (default .venv).
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-$ROOT/.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
PY="$VENV/bin/python"
STAMP="$VENV/.requirements"

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# Installs requirements.txt into $VENV; called only where the stamp differs.
install_requirements() {
    command -v "$PYTHON" >/dev/null ||
        fail "no interpreter '$PYTHON': install Python 3.10 or newer, or name one, as in PYTHON=/usr/bin/python3.12 $0"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$PYTHON" --version 2>&1) is too old: 3.10 or newer is needed; name one, as in PYTHON=python3.12 $0"
    mkdir -p "$VENV" 2>/dev/null || fail "can't write $VENV: choose another place with VENV=/path $0"
    local free_mb
    free_mb=$(df -Pm "$VENV" | awk 'NR == 2 { print $4 }')
    if ! "$PY" -m pip --version >/dev/null 2>&1; then
        # without pip: made so, as by uv, or by an earlier failure. Whatever is in a folder stays there
        if [ -x "$PY" ]; then
            "$PY" -m ensurepip >/dev/null 2>&1 ||
                fail "$VENV has no pip, and '$PY -m ensurepip' failed (Debian and Ubuntu need the package python3-venv):
       choose another place with VENV=/path $0, or remove the folder"
        else
            [ -e "$VENV/pyvenv.cfg" ] || rmdir "$VENV" 2>/dev/null ||
                fail "$VENV exists and is no virtual environment: choose another place with VENV=/path $0"
            "$PYTHON" -m venv "$VENV" ||
                fail "'$PYTHON -m venv' failed (see above); Debian and Ubuntu need the package python3-venv. If $VENV is
       an old environment whose interpreter is gone, remove it"
        fi
    fi
    if ! "$PY" -c 'import torch' 2>/dev/null && [ "$free_mb" -lt 8000 ]; then
        fail "$free_mb MB are free at $VENV and PyTorch with CUDA needs about 8,000: free some, choose another disk with
       VENV=/path, or make the environment yourself with the CPU-only wheels (README.md, Installation; about 1,500 MB)"
    fi
    printf 'setting up %s (once; PyTorch is large, this takes some minutes)\n' "$VENV"
    local log="$VENV/pip.log"
    if ! "$PY" -m pip install --disable-pip-version-check -r "$ROOT/requirements.txt" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        if grep -qi 'no space left' "$log"; then
            fail "the disk is full: free some space, or choose another disk with VENV=/path"
        elif grep -qiE 'connection|resolve|timed out|network|no matching distribution' "$log"; then
            fail "pip could not reach the package registry: check the network or pip's settings (pip config list), then run again"
        fi
        fail "pip install failed; the whole output is in $log"
    fi
    cp "$ROOT/requirements.txt" "$STAMP"
}

[ -x "$PY" ] && cmp -s "$ROOT/requirements.txt" "$STAMP" || install_requirements
