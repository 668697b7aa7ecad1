"""PyTorch's flex attention, by transformers' own integration of it: compiled, with masks as sparse blocks."""

from __future__ import annotations

from collections.abc import Iterable

from sftcore import AttentionBackend, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import unsupported

BACKEND = AttentionBackend(
    "flex_attention",
    devices=("cuda", "xpu", "cpu"),
    dropout=False,
    backward=("cuda", "xpu"),  # torch 2.6 to 2.13: the CPU has the forward pass alone
)


@plugin
class Flex:
    """PyTorch's flex attention: blocks that no token may attend to cost nothing; trains on a GPU."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["attention"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        return unsupported(BACKEND, plan, probe)

    @hookimpl
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:
        return BACKEND
