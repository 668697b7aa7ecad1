"""Try what plugins do to a model: attention, kernels, noise and adapters, against the model without them.

Logits and gradients of two ways are compared: the gradient of the input embeddings, which all layers have a part in,
and those of all parameters that train.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define

from sftcore.core.errors import said_by
from sftcore.core.types import PatchReport, Removable
from sftcore.documents.proof import HALVES
from sftcore.model.unwrap import causal_model
from sftcore.model.verify.structure import changed, structure_of
from sftcore.trials.layers import passed_over, reads_text, watched_layers
from sftcore.trials.measured import (
    TOLERANCES,
    Gap,
    gap_between,
    tolerance_of,
)
from sftcore.trials.outcome import PASSED, Outcome
from sftcore.trials.passes import EMBEDDINGS, ModelPasses, Passed, logits_gap, mixes_tokens, weights_sum

if TYPE_CHECKING:
    import torch

    Arguments = Mapping[str, Any]

PLAIN = ("eager", "sdpa")
"""transformers' own attentions. Others are compared with the first: scores, softmax and products step by step."""
FULL_PRECISION = 5e-5
"""Allowed relative difference in float32: two attentions differ by 2e-6 in logits, 1e-5 in gradients (SmolLM2-135M)."""


@define
class ModelTrial(ModelPasses):
    """Tries plugins on one model."""

    # --- Trials -------------------------------------------------------------------------------------------------------
    def attention(self, *, exact: bool = True) -> Outcome:
        """The attention that the model has now against transformers' own, which need no trial.

        Args:
            exact: False where it declares that it computes something else; the difference is noted then.
        """
        config = causal_model(self.model).config.get_text_config()
        name = config._attn_implementation
        if name in PLAIN:
            return PASSED
        config._attn_implementation = PLAIN[0]
        try:
            plain = self.once(padded=True)
            evaluated = self.once(padded=True, backward=False, training=False)
        except _UNSUPPORTED as error:
            return Outcome(notes=(f"it could not be compared with {PLAIN[0]} attention: {said_by(error)}",))
        finally:
            config._attn_implementation = name
        outcome = self._judge(self.as_it_is(), plain, f"{PLAIN[0]} attention", exact=exact)
        if outcome.fault or not exact:
            return outcome
        return self._evaluated(self.once(backward=False, training=False), evaluated, f"{PLAIN[0]} attention")

    def kernel(self, patch: Callable[[], PatchReport | None]) -> Outcome:
        """The model with a plugin's kernels against the model without any; `undo` has to restore it bit by bit.

        Args:
            patch: asks `patch_kernels` of the plugin; no kernel is on before.
        """
        plain, before = self.as_it_is(), weights_sum(self.model)
        trained = {id(one): name for name, one in self.model.named_parameters() if one.requires_grad}
        report = patch()
        if report is None:
            report = PatchReport()
        if report.replaced and report.undo is None:
            fault = f"it replaced {', '.join(report.replaced)} and its PatchReport has no undo"
            return Outcome(fault, "Give it an undo that puts back what was there.")
        try:
            now = {id(one) for one in self.model.parameters()}
            lost = [name for one, name in trained.items() if one not in now]
            patched = self.once()
            in_evaluation = self.once(backward=False, training=False) if report.exact else patched
        finally:
            if report.undo is not None:
                report.undo()
        if lost:
            fault = f"with it on, another tensor is {lost[0]}, and the optimizer has the one from before"
            return Outcome(fault, "Keep the parameters of the model as the objects that they are.")
        outcome = self._judge(patched, plain, "the model without it", exact=report.exact)
        if not outcome.fault and (left := self._left(plain, before, "undo")):
            return attrs.evolve(outcome, fault=left)
        if not outcome.fault and in_evaluation is not patched:
            evaluated = self.once(backward=False, training=False)
            return self._evaluated(in_evaluation, evaluated, "the model without it")
        return outcome

    def noise(self, inject: Callable[[], Removable | None]) -> Outcome:
        """Noise on and off again: off, the model is what it was, bit by bit. On, logits are finite and gradients flow.

        Args:
            inject: asks `inject_noise` of the plugin.
        """
        plain, before = self.as_it_is(), weights_sum(self.model)
        built = structure_of(self.model)
        handle = inject()
        try:
            noisy = self.once()
        finally:
            if handle is not None:
                handle.remove()
        if not bool(noisy.logits_NV.isfinite().all()):
            return Outcome("with it on, logits are NaN or Inf")
        found = noisy.measured.gradients
        if cut := [name for name, one in plain.measured.gradients.items() if one is not None and found[name] is None]:
            return Outcome(f"with it on, no gradient reaches {cut[0]}")
        if fault := self._left(plain, before, "remove"):
            return Outcome(fault)
        if left := changed(built, structure_of(self.model)):
            return Outcome(f"its remove leaves {left[0]} changed (allowed: nothing)")
        if bool((noisy.logits_NV == plain.logits_NV).all()):
            return Outcome(notes=("it changed nothing when it was tried",))
        return PASSED

    def adapter(self, *, saves: bool = False) -> Outcome:
        """What trains gets a gradient: some of it one that is not zero, and every kind of it one at all. It is saved.

        Args:
            saves: whether it writes files of its own, by `save_model`.
        """
        kept = set(self.model.state_dict(keep_vars=True))
        trained = [name for name, one in self.model.named_parameters() if one.requires_grad]
        if not saves and (lost := [name for name in trained if name not in kept]):
            return Outcome(
                f"{len(lost)} of {len(trained)} parameters that train, such as {lost[0]}, are not in the model's state "
                "dict, so that they are not saved",
                "Leave them in it, or write them in save_model.",
            )
        causal, training = causal_model(self.model), {*trained}
        with watched_layers(causal) as watched:
            gradients = self.once().measured.gradients
        of_trained = {name: one for name, one in gradients.items() if name in training or name == EMBEDDINGS}
        if (found := trained_fault(of_trained, causal)).fault:
            return found
        by_identity = {id(one): gradients.get(name) for name, one in self.model.named_parameters()}
        return Outcome(passed_over(by_identity, watched))

    def _tolerance(self) -> tuple[float, str]:
        """What two ways may differ by, and in which dtype: full precision gives on a few tokens what it gives."""
        allowed, dtype = tolerance_of(self.model, self.autocast)
        return (FULL_PRECISION if allowed == TOLERANCES["float32"] else allowed), dtype

    # --- Verdicts -----------------------------------------------------------------------------------------------------
    def _judge(self, got: Passed, wanted: Passed, other: str, *, exact: bool) -> Outcome:
        tolerance, dtype = self._tolerance()
        # a rounding error may send a token to another expert, which changes it and its gradients alone
        routed = mixes_tokens(causal_model(self.model)) and any(half in dtype for half in HALVES)
        logits = logits_gap(got.logits_NV, wanted.logits_NV, median=routed)
        gap = gap_between(got.measured, wanted.measured)
        fault = ""
        if not bool(got.logits_NV.isfinite().all()):
            fault = "its logits are NaN or Inf"
        elif not logits <= tolerance:
            fault = f"its logits differ by {logits:.2g} from {other} (allowed in {dtype}: {tolerance:.0g})"
        elif not gap.within(tolerance) and not routed:
            fault = _gradient_fault(gap, other, dtype, tolerance)
        if exact or "NaN" in fault:
            return Outcome(
                fault, "Declare it with exact=False if it is meant to compute something else." if fault else ""
            )
        said = f"declares that it computes something else: logits differ by {logits:.2g} from {other}"
        return Outcome(notes=(f"{said}, gradients by {gap.gradient:.2g}",))

    def _evaluated(self, got: Passed, wanted: Passed, other: str) -> Outcome:
        """The logits of evaluation mode, which a plugin may compute in another way."""
        tolerance, dtype = self._tolerance()
        routed = mixes_tokens(causal_model(self.model)) and any(half in dtype for half in HALVES)
        logits = logits_gap(got.logits_NV, wanted.logits_NV, median=routed)
        if logits <= tolerance:
            return PASSED
        fault = (
            f"in evaluation mode its logits differ by {logits:.2g} from {other} (allowed in {dtype}: {tolerance:.0g})"
        )
        return Outcome(fault, "Declare it with exact=False if it is meant to compute something else.")

    def _left(self, plain: Passed, before: float, task: str) -> str:
        """What is not as it was before a plugin was on, off again now."""
        if weights_sum(self.model) != before:
            return f"after {task} the weights are not those from before"
        after = self.once(backward=False)
        if bool((after.logits_NV == plain.logits_NV).all()):
            return ""
        again = self.once(backward=False)
        tolerance, _ = self._tolerance()
        gap = logits_gap(after.logits_NV, plain.logits_NV)
        if bool((after.logits_NV == again.logits_NV).all()) or not gap <= tolerance:
            return f"after {task} logits differ by {gap:.2g} from those before (allowed: 0)"
        return ""  # the model itself gives other last bits each time


_UNSUPPORTED = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError, NotImplementedError)


def trained_fault(gradients: Mapping[str, torch.Tensor | None], causal: Any) -> Outcome:
    """What says that it trains and gets no gradient.

    Args:
        gradients: of the parameters that train, by name.
        causal: the causal model; of one with other parts than text, only what a text passes is looked at.
    """
    named = {name: one for name, one in gradients.items() if name != EMBEDDINGS}
    if not named:
        return Outcome("no parameter of the model trains")
    given = {name: one for name, one in named.items() if one is not None}
    moving = [name for name, one in given.items() if bool(one.any())]
    if not moving:
        return Outcome(f"none of the {len(named)} parameters that train gets a gradient: the model does not use them")
    if any(not bool(one.isfinite().all()) for one in given.values()):
        return Outcome("a gradient is NaN or Inf on ordinary tokens")
    kinds: dict[str, list[str]] = {}
    for name in named:
        kinds.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    silent = [names for names in kinds.values() if not any(name in given for name in names)]
    silent = [names for names in silent if reads_text(names[0], causal)]
    if silent:
        count = sum(map(len, silent))
        return Outcome(
            f"{count} of {len(named)} parameters that train, such as {silent[0][0]}, get no gradient: the model does "
            "not use them"
        )
    return PASSED


def _gradient_fault(gap: Gap, other: str, dtype: str, tolerance: float) -> str:
    if not gap.loss <= tolerance:
        return f"its loss differs by {gap.loss:.2g} from {other} (allowed in {dtype}: {tolerance:.0g})"
    if not gap.gradient <= tolerance:
        return f"its gradients differ by {gap.gradient:.2g} from {other} (allowed in {dtype}: {tolerance:.0g})"
    return (
        f"the gradient of {gap.worst_parameter} differs by {gap.worst:.2g} from {other} (allowed: {10 * tolerance:.0g})"
    )
