"""What kernels have to pass: the model computes the same with them, and is what it was without them."""

from __future__ import annotations

from sftcore.testing.conformance.trained import TrainedTests


class KernelTests(TrainedTests):
    """The tests of kernels."""

    kind = "kernel"
    needs = ("patch_kernels",)
