"""The parts of `benchmarks/gpu.py`: what is checked and measured, and the processes that do it."""
