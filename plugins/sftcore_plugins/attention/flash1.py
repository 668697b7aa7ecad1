"""PyTorch's own flash kernel of scaled dot product attention, forced: what it cannot do is refused, never done slower.

Registered in transformers as `sftcore_fa1`: names with "flash" or "sdpa" in them are taken for transformers' own. See
`sftcore_plugins.attention._per_document` for what it is given.
Shapes: B rows, H heads, T tokens, S keys, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftcore import AttentionBackend, ModelError, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import planned_device, unsupported
from sftcore_plugins.attention._per_document import DocumentAttention, Features, attend_by_sdpa

if TYPE_CHECKING:
    import torch

NAME = "sftcore_fa1"
OTHERS = 'Choose attention "varlen", "sdpa" or "eager".'
DEFAULT_MAX_LENGTH = 1024
"""Of SFTConfig, where a recipe says nothing."""


@plugin
class Flash1:
    """PyTorch's flash kernel, forced: documents one by one, for packed and padding-free batches."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        config = probe.model_config or {}
        config = config.get("text_config") or config
        return [*unsupported(BACKEND, plan, probe), *_model_problems(config, plan)]

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return BACKEND


def _model_problems(config: Mapping[str, Any], plan: Plan) -> Iterator[Problem]:
    """What the model's layers ask for and the kernel does not know."""
    if config.get("attn_logit_softcapping"):
        yield Problem("it does not support a soft-cap on scores, which the model uses.", fix=OTHERS)
    window = config.get("sliding_window")
    slides = "sliding_attention" in config.get("layer_types", ["sliding_attention"])
    longest = plan.settings.get("max_length", DEFAULT_MAX_LENGTH)
    if (
        window
        and slides
        and config.get("use_sliding_window", True)
        and planned_device(plan) != "cpu"
        and (longest is None or longest > window)
    ):
        yield Problem(
            f"on a GPU it refuses documents that are longer than the model's sliding window of {window} tokens.",
            fix=f'Set max_length to at most {window}, or choose attention "varlen".',
            severity="warning",
        )


def attend_by_flash(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    mask: torch.Tensor | None,
    features: Features,
) -> torch.Tensor:
    """(B, T, H, D), by the flash kernel and no other.

    Raises:
        ModelError: the kernel cannot: soft-cap, sinks, a mask or window on a GPU, dropout on a CPU, dtype or width.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    _refuse(query_BHTD, key_BHSD, mask, features)
    width, value_width = query_BHTD.shape[-1], value_BHSD.shape[-1]
    if value_width < width:  # the kernel wants equal widths; zeros add nothing
        value_BHSD = torch.nn.functional.pad(value_BHSD, [0, width - value_width])
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            output = attend_by_sdpa(module, query_BHTD, key_BHSD, value_BHSD, mask, features)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise ModelError(
            f"torch has no flash kernel for {query_BHTD.device.type}, "
            f"{str(query_BHTD.dtype).removeprefix('torch.')} and heads of {width} in {type(module).__name__}.",
            fix=OTHERS,
        ) from error
    return output[..., :value_width]


def _refuse(query_BHTD: torch.Tensor, key_BHSD: torch.Tensor, mask: torch.Tensor | None, features: Features) -> None:
    num_queries, num_keys = query_BHTD.shape[2], key_BHSD.shape[2]
    device = query_BHTD.device.type
    slides = features.causal and features.window is not None and features.window < num_keys and num_queries > 1
    if features.softcap is not None or features.sinks_H is not None:
        what = "a soft-cap on scores" if features.softcap is not None else "attention sinks"
        raise ModelError(f'attention "flash-1" does not support {what}, which the model uses.', fix=OTHERS)
    if device == "cpu" and features.dropout:
        raise ModelError(
            f'attention "flash-1" cannot drop attention weights on a CPU, and the model drops {features.dropout:g}.',
            fix="Set attention_dropout: 0.0 in the model's configuration, or choose another attention.",
        )
    if device != "cpu" and (mask is not None or slides):
        what = "a mask" if mask is not None else f"a sliding window, and a document has {num_keys} tokens"
        raise ModelError(f'on {device}, attention "flash-1" does not support {what}.', fix=OTHERS)


DOCUMENTS = DocumentAttention("flash-1", attend_by_flash, padding=False)
HALVES = ("float16", "bfloat16")
BACKEND = AttentionBackend(
    NAME,
    devices=("cuda", "cpu"),
    dtypes={"cuda": HALVES, "cpu": ("float32", "float64", *HALVES)},
    padding=False,
    dropout=("cuda",),
    boundaries=True,
    compilable=False,  # dynamo of torch 2.14 stops with an error at the Python loop over documents
    calls=lambda: DOCUMENTS.calls,
    register=lambda: DOCUMENTS.register(NAME),
)
