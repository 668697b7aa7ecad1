"""What a loader has to pass: the model that comes is the one that was asked for."""

from __future__ import annotations

from sftcore.testing.conformance.trained import TrainedTests


class LoaderTests(TrainedTests):
    """The tests of a loader."""

    kind = "loader"
    needs = ("load_model",)
