"""What plugins have to pass that take part in training: trials and short runs, on a CPU and on an accelerator."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest

from sftcore.testing import short_runs
from sftcore.testing.conformance.base import PluginTests
from sftcore.testing.conformance.under_test import UnderTest

TOLERANCE = 2e-4
"""How far apart losses and gradient norms in float32 may be, relative to them: sums are taken in another order."""


class TrainedTests(PluginTests):
    """The tests of a plugin that takes part in training.

    layouts: how documents are laid out in the batches that it is tried with; a plugin that takes no packed rows leaves
    "packed" out. recipe: further keys of the recipes of the short runs. same_training: whether losses and gradients
    with it have to be those without it. on_standin: False where it needs a library's kernels for a device.
    """

    layouts: ClassVar[tuple[str, ...]] = tuple(short_runs.LAYOUTS)
    recipe: ClassVar[dict[str, Any]] = {}
    same_training: ClassVar[bool] = True
    on_standin: ClassVar[bool] = True

    @pytest.mark.parametrize("layout", [*short_runs.LAYOUTS])
    def test_its_claims_hold(self, layout: str) -> None:
        one = self.tested
        with one.asked(f"trying it on {layout} rows"):
            self._judge(one, short_runs.here(**self._claims(one, layout)), "")

    @pytest.mark.parametrize("layout", [*short_runs.LAYOUTS])
    def test_a_run_trains_with_it(self, layout: str) -> None:
        one = self.tested
        if one.kind == "attention":  # one that is not for these rows or this device, which a run refuses
            self._done(one, short_runs.here(**self._claims(one, layout)), "its trial")
        with one.asked(f"training {layout} rows"):
            found = self._done(one, short_runs.here(**self._training(one, layout)), f"a run on {layout} rows")
        one.require(
            all(map(math.isfinite, (*found["losses"], *found["grad_norms"]))),
            f"the losses of {layout} rows are {found['losses']}, their gradient norms {found['grad_norms']}.",
        )
        one.require(all(found["grad_norms"]), f"no parameter has a gradient on {layout} rows.")
        if self.same_training:
            plain = short_runs.here("train", plugins={}, **self._keys(layout))
            off = short_runs.differences(found, plain, TOLERANCE)
            one.require(not off, f"{layout} rows train differently with it: {off} without it.")

    def test_an_accelerator_computes_the_same(self) -> None:
        one = self.tested
        if reason := short_runs.standin_missing() or ("" if self.on_standin else "the stand-in cannot run its library"):
            pytest.skip(reason)
        calls = self.calls_on_accelerator(one)
        answers = iter(short_runs.there(calls))
        skipped = []
        for layout in self.layouts:
            claims, trained = next(answers), next(answers)
            if "skipped" in claims:
                skipped.append(claims["skipped"])
                continue
            self._judge(one, claims, "on an accelerator, ")
            found = self._done(one, trained, f"on an accelerator, a run on {layout} rows")
            one.require(found["device"] != "cpu", "its run does not take the accelerator.")
            here = self._done(one, short_runs.here(**self._training(one, layout)), f"a run on {layout} rows")
            off = short_runs.differences(found, here, TOLERANCE)
            one.require(not off, f"an accelerator trains {layout} rows differently: {off} on a CPU.")
        if len(skipped) == len(self.layouts):
            pytest.skip(skipped[0])

    def calls_on_accelerator(self, one: UnderTest) -> list[dict[str, Any]]:
        """What is asked of a process with the stand-in accelerator."""
        return [call for layout in self.layouts for call in (self._claims(one, layout), self._training(one, layout))]

    # --- What is asked ------------------------------------------------------------------------------------------------
    def keys(self, one: UnderTest) -> dict[str, Any]:
        """The keys of a recipe with which the plugin is used."""
        return {one.kind: {one.name: dict(one.options)}}

    def _keys(self, layout: str) -> dict[str, Any]:
        # one attention on both devices: another would shuffle which random numbers go where
        attention = {} if self._brings_attention() else {"attention": "sdpa"}
        return {"layout": layout, "bf16": False, **attention, **self.recipe}

    def _brings_attention(self) -> bool:
        """Whether the plugin is one, has one of its own, or is used with a loader, which may have one."""
        claims: Iterable[str] = getattr(self.tested.made(), "claims", tuple)()
        return self.kind == "attention" or "attention" in claims or "loader" in self.recipe

    def _claims(self, one: UnderTest, layout: str) -> dict[str, Any]:
        self._skip(one, layout)
        call = {"layout": layout, "kind": one.kind, "name": one.name, "options": dict(one.options)}
        return {"task": "claims", "plugins": self._plugins(one), **call}

    def _training(self, one: UnderTest, layout: str) -> dict[str, Any]:
        self._skip(one, layout)
        return {"task": "train", "plugins": self._plugins(one), **self._keys(layout), **self.keys(one)}

    def _plugins(self, one: UnderTest) -> dict[str, dict[str, str]]:
        return {} if one.entry.distribution == "sftcore" else {one.kind: {one.name: one.entry.value}}

    def _skip(self, one: UnderTest, layout: str) -> None:
        if one.entry.missing:
            pytest.skip(f"it needs {', '.join(one.entry.missing)}")
        if layout not in self.layouts:
            pytest.skip(f"it is not for {layout} rows")

    # --- What is said -------------------------------------------------------------------------------------------------
    def _judge(self, one: UnderTest, found: dict[str, Any], where: str) -> None:
        """Fail the test if a claim does not hold."""
        __tracebackhide__ = True
        said = self._done(one, found, f"{where}its trial")
        if said["fault"]:
            fault = f"{where}{said['fault']}"
            one.require(False, f"{fault}. {said['fix']}".rstrip())

    def _done(self, one: UnderTest, found: dict[str, Any], what: str) -> dict[str, Any]:
        """What a task came to; skips the test if the task could not be done here, and fails it if it was refused."""
        __tracebackhide__ = True
        if "skipped" in found:
            pytest.skip(found["skipped"])
        one.require("error" not in found, f"{what} ends in {str(found.get('error')).strip().rpartition(chr(10))[2]}")
        refused = found.get("refused", "")
        if refused and not _has_gpu() and any(word in refused for word in ("GPU", "cuda", "CUDA")):
            pytest.skip(f"there is no GPU here: {refused}")
        one.require(not refused, f"{what} is refused: {refused}")
        return found


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
