"""What runs on a GPU is imported from benchmarks/."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]
