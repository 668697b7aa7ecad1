"""What an attention has to pass: it computes what plain attention does, and keeps documents apart."""

from __future__ import annotations

from sftcore.testing.conformance.trained import TrainedTests


class AttentionTests(TrainedTests):
    """The tests of an attention. One that is meant to attend to less, as in a window, has `same_training = False`."""

    kind = "attention"
    needs = ("attention_backend",)
