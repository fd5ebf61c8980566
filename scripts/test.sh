#!/usr/bin/env bash
# Set up the environment where needed, then ruff, mypy and the tests; arguments go to pytest (./scripts/test.sh -k activeft).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m mypy data_selection deit
# a process for each core and one more, up to 4, as many tests wait for processes that they have started; a thread for
# each: the others multiply small matrices
cores="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PY" -m pytest -n "$((cores < 4 ? cores + 1 : 4))" --dist loadfile "$@"
