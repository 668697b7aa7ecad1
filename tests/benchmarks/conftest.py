"""Tests of what stands in benchmarks/, whose scripts import each other by their names."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]
