"""Attention kernels from the hub, by the package kernels and transformers' own integration of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field

from sftcore import AttentionBackend, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import unsupported

NAME = re.compile(r"[^/:@\s]+/[^/:@\s]+(@[^/:@\s]+)?(:[^/:@\s]+)?")
"""As transformers (5.17 to 5.24) knows the name of a kernel: owner/name, with a revision and a function or without."""

DEVICES = ("cuda", "xpu")


def _a_kernel(plugin: Any, attribute: Any, value: str) -> None:
    if not NAME.fullmatch(value):
        raise ValueError(f'kernel is owner/name, owner/name@revision or owner/name:function, got "{value}"')


@plugin
class Hub:
    """A kernel from the hub (owner/name[@revision][:function]): flash attention in half precision on a GPU.

    transformers loads it as the model is loaded, of owners that it does not know only where the model itself names it.
    """

    kernel: str = field(default="kernels-community/flash-attn2", validator=_a_kernel)

    @hookimpl
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        name = settings.get("attn_implementation")
        return {"kernel": name} if isinstance(name, str) and NAME.fullmatch(name) else None

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        return unsupported(self._backend, plan, probe)

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return self._backend

    @property
    def _backend(self) -> AttentionBackend:
        return AttentionBackend(
            self.kernel, devices=DEVICES, dtypes=("float16", "bfloat16"), dropout=False, boundaries=True
        )
