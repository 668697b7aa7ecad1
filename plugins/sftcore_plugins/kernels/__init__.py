"""Kernels, which replace parts of a model by faster ones."""
