"""Cut cross-entropy: the head and the loss in one kernel, which computes logits in blocks and keeps none of them.

Wijmans et al. 2024, arXiv:2411.09009; the package cut-cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from attrs import frozen

from sftcore import LoadedModel, LossFunction, LossOutput, ModelError, Plan, Probe, Problem, hookimpl, plugin
from sftcore_plugins.losses._linear_head import adapted_head, plain_linear

if TYPE_CHECKING:
    import torch

CHUNK = 1024
"""Supervised positions whose most likely token is found at once: so many rows of logits exist at a time."""
OTHERS = 'Use loss "nll", which runs everywhere and calls the head as a module.'


@plugin
class CutCrossEntropy:
    """Cut cross-entropy (the cut-cross-entropy package): no logits in memory; half precision on an NVIDIA GPU.

    The kernel reads the head's weight itself, so the head must be a plain linear layer without a bias. It adds up the
    gradient of that weight in half precision, and leaves out what is below a rounding error of it. It computes no
    entropy, so the run logs none; the accuracy takes a product with the head of its own, without gradients.
    """

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["loss.cross_entropy"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        settings = plan.settings
        if settings.get("use_cpu"):
            yield Problem("cut cross-entropy needs a GPU, and the run asks for the CPU (use_cpu).", "loss: cce", OTHERS)
        if settings.get("bf16") is False and not settings.get("fp16") and plan.model.dtype == "float32":
            what = "cut cross-entropy computes in half precision, and the run in float32 (bf16: false)."
            yield Problem(what, "loss: cce", 'Set bf16: true, or use loss "nll".')
        for adapter in plan.selected("adapter"):
            if head := adapted_head(adapter.options):
                what = f"{adapter.label} puts an adapter on {head}, whose weight the kernel reads without it."
                yield Problem(what, "loss: cce", OTHERS)

    @hookimpl
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:
        import torch

        if not torch.cuda.is_available():
            raise ModelError('loss "cce" needs an NVIDIA GPU, and there is none.', fix=OTHERS)
        return CutCrossEntropyLoss()


@frozen
class CutCrossEntropyLoss:
    """See `sftcore.LossFunction` for shapes and dtypes."""

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        num_items: torch.Tensor,
    ) -> LossOutput:
        import torch

        if not len(labels):  # a zero that still reaches every parameter
            return LossOutput(head(hidden).float().sum(), None, labels.sum())
        module = getattr(head, "module", None)
        if module is None:
            raise ModelError('loss "cce" reads the weight of the head, and the run builds all logits.', fix=OTHERS)
        from cut_cross_entropy import linear_cross_entropy

        linear = plain_linear(module, loss="cce", fix=OTHERS)
        if linear.bias is not None:
            raise ModelError('loss "cce": the head has a bias, which the kernel does not add.', fix=OTHERS)
        states = _half(hidden * head.scale if head.scale != 1 else hidden)  # type: ignore[attr-defined]
        found = linear_cross_entropy(
            states,
            linear.weight,
            labels,
            softcap=head.softcap,  # type: ignore[attr-defined]
            reduction="sum" if weights is None else "none",
        )
        total = found if weights is None else (found * weights).sum()
        with torch.no_grad():
            pairs = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
            correct = torch.stack([(head(some).argmax(-1) == wanted).sum() for some, wanted in pairs]).sum()
        return LossOutput(total.float() / num_items.clamp(min=1e-6), None, correct)


def _half(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states in the dtype of autocast, if they are in float32.

    Raises:
        ModelError: there is no autocast.
    """
    import torch

    if hidden.dtype in (torch.float16, torch.bfloat16):
        return hidden
    if not torch.is_autocast_enabled(hidden.device.type):
        raise ModelError(
            f'loss "cce" computes in half precision, and the hidden states are {hidden.dtype}.',
            fix='Set bf16: true, or use loss "nll".',
        )
    return hidden.to(torch.get_autocast_dtype(hidden.device.type))
