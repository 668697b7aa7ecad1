"""Liger's cross-entropy, fused with the head or on its logits."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sftcore import (
    LoadedModel,
    LossFunction,
    LossOutput,
    ModelError,
    Plan,
    Probe,
    Problem,
    RecipeError,
    hookimpl,
    plugin,
)
from sftcore.plugin_api import triton_is_interpreted
from sftcore_plugins.losses._linear_head import adapted_head, plain_linear

if TYPE_CHECKING:
    import torch

WRONG_VERSIONS = ("0.8.0", "0.8.1")


@plugin
class LigerLoss:
    """Liger's cross-entropy, fused with the head: neither the logits nor their gradient ever exist whole.

    The fused kernel reads the head's weight itself, so the head must be a plain linear layer. `fused: false` calls the
    head as a module, of any kind, and gives all its logits to Liger's kernel. Liger computes no entropy: the run logs
    none.
    """

    fused: bool = True
    accumulate_in_float32: bool = True

    @hookimpl
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if not settings.get("use_liger_kernel"):
            return None
        config = settings.get("liger_kernel_config") or {}
        whole = bool(config.get("cross_entropy", False))
        fused = bool(config.get("fused_linear_cross_entropy", not whole))
        if whole and fused:
            raise RecipeError(
                "cross_entropy and fused_linear_cross_entropy exclude each other.",
                where="liger_kernel_config",
                fix="Set one of them to false.",
            )
        return {} if fused else {"fused": False} if whole else None

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["loss.cross_entropy"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        if plan.settings.get("use_cpu") and not triton_is_interpreted():
            what = "Liger's loss needs a GPU, and the run asks for the CPU (use_cpu)."
            yield Problem(what, "loss: liger", fix=WITHOUT_GPU)
        yield from _wrong_version()
        for adapter in plan.selected("adapter") if self.fused else ():
            if head := adapted_head(adapter.options):
                yield Problem(
                    f"{adapter.label} puts an adapter on {head}, whose weight the fused kernel reads without it.",
                    "loss: liger",
                    NOT_FUSED,
                )

    @hookimpl
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:
        import torch

        if not torch.accelerator.is_available() and not triton_is_interpreted():
            raise ModelError('loss "liger" needs a GPU, and there is none.', fix=WITHOUT_GPU)
        return LigerCrossEntropy(self.fused, self.accumulate_in_float32)


WITHOUT_GPU = (
    "Drop it (use_liger_kernel), or set TRITON_INTERPRET=1 before Triton is imported, to try it slowly in Triton's "
    "interpreter."
)
NOT_FUSED = (
    "Use loss: {liger: {fused: false}} (with use_liger_kernel, liger_kernel_config: {cross_entropy: true}), "
    'or loss "nll".'
)


@attrs.frozen
class LigerCrossEntropy:
    """See `sftcore.LossFunction` for shapes and dtypes. `float32` accumulates the gradient of the head's weight so."""

    fused: bool
    float32: bool

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        num_items: torch.Tensor,
    ) -> LossOutput:
        if not len(labels):  # a zero that still reaches every parameter
            return LossOutput(head(hidden).float().sum(), None, labels.sum())
        reduction = "sum" if weights is None else "none"
        module = getattr(head, "module", None)
        if self.fused and module is not None:
            found = self._fused(hidden, head, plain_linear(module, loss="liger", fix=NOT_FUSED), labels, reduction)
        else:
            from liger_kernel.transformers.functional import liger_cross_entropy

            logits = head(hidden)
            found = liger_cross_entropy(logits, labels, reduction=reduction, return_predicted_tokens=True)
        total = found.loss if weights is None else (found.loss * weights).sum()
        correct = (found.predicted_tokens == labels).sum()
        return LossOutput(total.float() / num_items.clamp(min=1e-6), None, correct)

    def _fused(self, hidden: Any, head: Any, linear: torch.nn.Linear, labels: Any, reduction: str) -> Any:
        import torch
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        if torch.is_grad_enabled() and not hidden.requires_grad and linear.weight.requires_grad:
            # Liger takes gradients where its input wants one, and here the head alone trains
            hidden = hidden.detach().requires_grad_()
        bias = linear.bias
        if head.scale != 1:
            hidden, bias = hidden * head.scale, None if bias is None else bias * head.scale
        return liger_fused_linear_cross_entropy(
            hidden,
            linear.weight,
            labels,
            bias=bias,
            reduction=reduction,
            softcap=head.softcap,
            accum_dtype=torch.float32 if self.float32 else None,
            return_predicted_tokens=True,
        )


def _wrong_version() -> Iterator[Problem]:
    """Releases whose fused kernel is wrong where the loss is weighted; the extra refuses them too, without a reason."""
    try:
        version = importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return
    if version in WRONG_VERSIONS:
        what = f"liger-kernel {version} scales the gradients of all tokens by the weight of the first one."
        yield Problem(what, "loss: liger", 'Install a later one: pip install "sftcore[liger]".')
