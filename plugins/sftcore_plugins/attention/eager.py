"""Attention as plain matrix products."""

from __future__ import annotations

from collections.abc import Iterable

from sftcore import AttentionBackend, ModelRequest, hookimpl, plugin


@plugin
class Eager:
    """Attention as plain matrix products: slow, and right on every device."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return AttentionBackend("eager", speed=0.1, padded_speed=0.2)
