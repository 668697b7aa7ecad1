"""What a loader has to pass: the model and the tokenizer that come are those that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from sftcore.core.types import ModelRequest
from sftcore.testing import short_runs
from sftcore.testing.conformance.trained import TrainedTests
from sftcore.testing.conformance.under_test import UnderTest


class LoaderTests(TrainedTests):
    """The tests of a loader.

    writer: for a loader of other files than those of `save_pretrained`, a function as "module:name" that is given a
    model, its tokenizer and a folder, writes them there and returns what a recipe calls the model.
    """

    kind = "loader"
    needs = ("load_model",)
    writer: ClassVar[str] = ""

    def test_it_loads_the_tokenizer_that_was_saved(self, tmp_path: Path) -> None:
        one = self.tested
        self._skip(one, "padded")
        plugins = one.alone()
        if not plugins.answers("load_processor"):
            return
        name = short_runs.written(self.writer, tmp_path / "model")
        with one.asked("load_processor"):
            found = plugins.one("load_processor", request=ModelRequest(name, dtype="float32"))
        text = "say hello, world 0123"
        one.require(
            hasattr(found, "decode"), f"load_processor gives {type(found).__name__}, where a tokenizer is meant."
        )
        one.require(found.decode(found(text)["input_ids"]) == text, "its tokenizer loses part of a text.")

    def keys(self, one: UnderTest) -> dict[str, Any]:
        return {**super().keys(one), **({"writer": self.writer} if self.writer else {})}

    def _claims(self, one: UnderTest, layout: str) -> dict[str, Any]:
        return {**super()._claims(one, layout), "writer": self.writer}
