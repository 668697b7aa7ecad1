"""What noise has to pass: it changes training, and nothing else."""

from __future__ import annotations

from sftcore.testing.conformance.trained import TrainedTests


class NoiseTests(TrainedTests):
    """The tests of noise."""

    kind = "noise"
    needs = ("inject_noise",)
    same_training = False
