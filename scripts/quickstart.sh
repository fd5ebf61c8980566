#!/usr/bin/env bash
# Set up the environment where needed and run the whole main job on the embedded data (README.md, Quickstart).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PY" "$ROOT/scripts/quickstart.py" "$@"
