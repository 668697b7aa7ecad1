"""FlashAttention 3, by its package flash_attn_interface and transformers' own integration of it."""

from __future__ import annotations

from collections.abc import Iterable

from sftcore import AttentionBackend, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import unsupported

BACKEND = AttentionBackend(
    "flash_attention_3",
    devices=("cuda",),
    dtypes=("float16", "bfloat16"),
    dropout=False,
    boundaries=True,
    speed=6.0,
    padded_speed=2.5,
)


@plugin
class Flash3:
    """FlashAttention 3 (the flash-attn-3 package, built for Hopper): half precision; all kinds of batches."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        return unsupported(BACKEND, plan, probe)

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return BACKEND
