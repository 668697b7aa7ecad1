"""What noise has to pass: it changes training, and nothing else."""

from __future__ import annotations

from typing import Any

from sftcore.testing.conformance.trained import TrainedTests
from sftcore.testing.conformance.under_test import UnderTest


class NoiseTests(TrainedTests):
    """The tests of noise: with its options it changes the loss, and once it is removed nothing of it is left."""

    kind = "noise"
    needs = ("inject_noise",)
    same_training = False

    def _judge(self, one: UnderTest, found: dict[str, Any], where: str) -> None:
        __tracebackhide__ = True
        super()._judge(one, found, where)
        one.require(
            not any("changed nothing" in note for note in found["notes"]),
            f"{where}it changes nothing while the model trains. Return what takes it off, and test it with "
            "options with which it is heard.",
        )
