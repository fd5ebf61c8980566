"""One module per subject of scripts/benchmark.py: measurements and the tables that they print."""
