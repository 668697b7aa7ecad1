"""What an adapter has to pass: something trains, and what was trained is saved, loaded, merged and trained on."""

from __future__ import annotations

from sftcore.testing.conformance.trained import TrainedTests


class AdapterTests(TrainedTests):
    """The tests of an adapter."""

    kind = "adapter"
    needs = ("wrap_model",)
    same_training = False
