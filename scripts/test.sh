#!/usr/bin/env bash
# Set up the environment where needed, then ruff, mypy and the tests; arguments go to pytest (./scripts/test.sh -k activeft).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m mypy data_selection deit
# a process for each core, up to 4, and a thread for each process: most tests wait or multiply small matrices
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PY" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
