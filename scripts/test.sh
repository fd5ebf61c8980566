#!/usr/bin/env bash
# Set up the environment where needed, then ruff, mypy and the tests; arguments go to pytest (./scripts/test.sh -k activeft).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m mypy data_selection deit
exec "$PY" -m pytest "$@"
