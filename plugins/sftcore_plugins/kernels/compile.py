"""torch.compile on each decoder layer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from sftcore import LoadedModel, ModelError, PatchReport, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import decoder_layers
from sftcore_plugins.kernels._patching import InstancePatch

if TYPE_CHECKING:
    import torch

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@plugin
class Compile:
    """torch.compile on the forward of each decoder layer, in training; evaluation and generation stay as they are.

    One graph serves all layers and, with `dynamic`, all lengths: only layers that differ in kind are compiled anew.
    """

    backend: str = "inductor"
    mode: Mode = "default"
    dynamic: bool | None = True
    fullgraph: bool = False

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        where = "kernel: compile"
        if plan.settings.get("torch_compile"):
            yield Problem(
                "torch_compile compiles the whole model, and the plugin its layers.", where, "Keep one of the two."
            )
        if self.mode != "default" and self.backend != "inductor":
            yield Problem(
                f'mode "{self.mode}" is one of inductor\'s, and the backend is {self.backend}.', where, "Drop mode."
            )
        if plan.settings.get("use_cpu") and self.backend == "inductor" and not _compiler():
            yield Problem(NO_COMPILER, where, USE_EAGER)
        if plan.attention is not None and not plan.attention.compilable:
            label = ", ".join(one.label for one in plan.selected("attention")) or plan.attention.implementation
            yield Problem(
                f"{label} cannot be compiled: it declares that torch.compile cannot trace it.",
                where,
                'Drop the plugin, or choose attention "sdpa".',
            )

    @hookimpl
    def patch_kernels(self, loaded: LoadedModel, plan: Plan) -> PatchReport:
        import torch

        if self.backend == "inductor" and not torch.accelerator.is_available() and not _compiler():
            raise ModelError(f'kernel "compile": {NO_COMPILER}', fix=USE_EAGER)
        layers = decoder_layers(loaded.model)
        if not layers:
            return PatchReport(skipped={"layers": f"{type(loaded.model).__name__} has none that transformers marks"})
        patch = InstancePatch()
        for layer in layers:
            patch.set(layer, "forward", self._compiled(layer))
        return PatchReport((f"the forward of {len(layers)} layers ({self.backend})",), {}, patch.undo)

    def _compiled(self, layer: torch.nn.Module) -> Callable[..., Any]:
        import torch

        plain = layer.forward
        mode = None if self.mode == "default" else self.mode
        compiled = torch.compile(plain, backend=self.backend, mode=mode, dynamic=self.dynamic, fullgraph=self.fullgraph)

        def forward(*args: Any, **kwargs: Any) -> Any:
            # each shape and kind of mask that a trial or an evaluation brings would be compiled for a single use
            return (compiled if layer.training else plain)(*args, **kwargs)

        return forward


NO_COMPILER = "inductor writes C++ for a CPU, and no C++ compiler is installed."
USE_EAGER = "Install g++ or clang++ (or name one in CXX), or drop the plugin."


def _compiler() -> str | None:
    """The C++ compiler that inductor would find."""
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)
