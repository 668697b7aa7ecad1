"""What a loss has to pass."""

from __future__ import annotations

from sftcore.testing.conformance.trained import TrainedTests


class LossTests(TrainedTests):
    """The tests of a loss."""

    kind = "loss"
    needs = ("make_loss",)
    same_training = False
