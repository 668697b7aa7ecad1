"""FlashAttention 2, by the flash-attn package and transformers' own integration of it."""

from __future__ import annotations

from collections.abc import Iterable

from sftcore import AttentionBackend, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import unsupported

BACKEND = AttentionBackend(
    "flash_attention_2",
    devices=("cuda", "xpu", "npu", "mlu", "musa"),  # those for which transformers looks for it
    dtypes=("float16", "bfloat16"),
    boundaries=True,
    speed=5.0,
    padded_speed=2.0,
)


@plugin
class Flash2:
    """FlashAttention 2 (the flash-attn package): half precision on a GPU; packed, padding-free and padded batches."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        return unsupported(BACKEND, plan, probe)

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return BACKEND
