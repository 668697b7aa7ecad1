"""PyTorch's scaled dot product attention."""

from __future__ import annotations

from collections.abc import Iterable

from sftcore import AttentionBackend, ModelRequest, hookimpl, plugin


@plugin
class SDPA:
    """PyTorch's scaled dot product attention, with padding."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return AttentionBackend("sdpa", speed=0.5, padded_speed=1.0)
