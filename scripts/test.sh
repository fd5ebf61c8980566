#!/usr/bin/env bash
# Set up the environment where needed and run the tests; arguments go to pytest (./scripts/test.sh -k activeft).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
exec "$PY" -m pytest "$@"
