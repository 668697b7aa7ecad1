"""What a collator has to pass: every token, label and weight of its rows is in the batch, where it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

from sftcore.core.types import Plan
from sftcore.testing.conformance.trained import TrainedTests
from sftcore.testing.conformance.under_test import UnderTest
from sftcore.testing.image_runs import processor_for

TOKENS = (
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    {"input_ids": [9, 10], "labels": [-100, 10]},
)


class CollatorTests(TrainedTests):
    """The tests of a collator.

    reads_images: for a collator of a vision-language model, which is then tried with the processor of one, and trains
    one on rows with images.
    """

    kind = "collator"
    needs = ("make_collator",)
    reads_images: ClassVar[bool] = False

    def keys(self, one: UnderTest) -> dict[str, Any]:
        return {**super().keys(one), **self._of_images()}

    def _keys(self, layout: str) -> dict[str, Any]:
        return {**super()._keys(layout), **self._of_images()}

    def _claims(self, one: UnderTest, layout: str) -> dict[str, Any]:
        return {**super()._claims(one, layout), **self._of_images()}

    def _of_images(self) -> dict[str, bool]:
        return {"reads_images": True} if self.reads_images else {}

    def test_it_says_how_it_lays_rows_out(self) -> None:
        one = self.tested
        plugins = one.alone()
        if not plugins.answers("flattens"):
            return
        with one.asked("flattens"):
            said = plugins.one("flattens", plan=Plan(()))
        one.require(isinstance(said, bool), f"flattens has to answer True or False, not {said!r}.")
        rows = len(self._collate(one)(copy.deepcopy([*TOKENS]))["input_ids"])
        one.require(
            said == (rows == 1),
            f"flattens says {said}, and a batch of {len(TOKENS)} rows has {rows}.",
        )

    def test_rows_are_left_as_they_are(self) -> None:
        one = self.tested
        rows = copy.deepcopy([*TOKENS])
        with one.asked("collating"):
            self._collate(one)(rows)
        one.require(rows == [*TOKENS], "collating changes the rows themselves, which are read again in the next epoch.")

    def test_its_function_goes_to_worker_processes(self) -> None:
        one = self.tested
        collate = self._collate(one)
        with one.asked("pickling what make_collator gives, as for dataloader_num_workers,"):
            again = pickle.loads(pickle.dumps(collate))
        first, second = collate(copy.deepcopy([*TOKENS])), again(copy.deepcopy([*TOKENS]))
        one.require(
            first["input_ids"].tolist() == second["input_ids"].tolist(), "it collates differently after pickling."
        )

    def _collate(self, one: UnderTest) -> Any:
        with one.asked("make_collator"):
            collate = one.alone().one("make_collator", processor=processor_for(self.reads_images), plan=Plan(()))
        one.require(callable(collate), f"make_collator gives {type(collate).__name__}, where a function is meant.")
        return collate
