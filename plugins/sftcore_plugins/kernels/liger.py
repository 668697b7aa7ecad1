"""Liger's Triton kernels for rotary embeddings, norms and MLPs (Hsu et al. 2024, arXiv:2410.10989)."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftcore import LoadedModel, ModelError, PatchReport, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import triton_is_interpreted
from sftcore_plugins.kernels._patching import InstancePatch, confined_to

if TYPE_CHECKING:
    import torch

MLPS = {"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh",), "relu_squared": ("relu2",)}
"""Liger's names of MLP kernels, and the activations of a model's configuration that each of them computes."""

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Switches for what is a loss here, and a plugin of its own."""

KERNELS = ("rope", "rms_norm", "layer_norm", *MLPS, *LOSSES)
"""Every switch of Liger's functions that patch a model."""


@plugin
class Liger:
    """Liger's kernels for rotary embeddings, norms and MLPs, on this run's model alone.

    The loss is a plugin of its own: `loss: liger`.
    """

    rope: bool = True
    rms_norm: bool = True
    layer_norm: bool = True
    mlp: bool = True

    @hookimpl
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if not settings.get("use_liger_kernel"):
            return None
        config = dict(settings.get("liger_kernel_config") or {})
        mlps = [config.pop(name) for name in MLPS if name in config]
        kernels = {name: value for name, value in config.items() if name not in LOSSES}
        return {**kernels, **({"mlp": all(mlps)} if mlps else {})}

    @hookimpl
    def claims(self) -> Iterable[str]:
        return [f"kernel.{name}" for name in ("rope", "rms_norm", "mlp") if getattr(self, name)]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        yield from _check_device(plan)

    @hookimpl
    def patch_kernels(self, loaded: LoadedModel, plan: Plan) -> PatchReport:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        _refuse_device()
        model = _causal_of(loaded.model)
        _refuse_unsloth(model)
        kind = model.config.model_type
        wanted = [name for name in ("rope", "rms_norm", "layer_norm", "mlp") if getattr(self, name)]
        if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            return PatchReport(skipped=dict.fromkeys(wanted, f"Liger does not know {kind}"))
        known = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[kind]).parameters
        patch, replaced, skipped = InstancePatch(), [], {}
        for name in wanted:
            switches = [one for one in (MLPS if name == "mlp" else [name]) if one in known]
            for switch in switches:
                # off by default means that Liger only keeps the name for the sake of its callers
                why = "Liger has none for it" if not known[switch].default else _why_not(switch, model)
                count = 0
                if not why:
                    count, why = _apply(switch, model, patch)
                if count:
                    replaced.append(f"{switch} of {count} modules")
                else:
                    skipped[switch] = why or f"no module of {kind} has it"
        return PatchReport(tuple(replaced), skipped, patch.undo)


def _apply(switch: str, model: torch.nn.Module, patch: InstancePatch) -> tuple[int, str]:
    """Have Liger replace one thing in this model: how many of its modules changed, or why Liger cannot."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    one = InstancePatch()
    try:
        with confined_to(model, one):
            _apply_liger_kernel_to_instance(model, **{name: name == switch for name in KERNELS})
    except (ImportError, AttributeError, TypeError, KeyError) as error:
        # it reads names of transformers' modules, which differ between versions
        one.undo()
        versions = [importlib.metadata.version(name) for name in ("liger-kernel", "transformers")]
        return 0, f"Liger {versions[0]} cannot patch it in transformers {versions[1]} ({error})"
    patch.extend(one)
    return one.modules, ""


def _why_not(switch: str, model: Any) -> str:
    """Why this kernel would not compute what the model computes, or cannot run here; an empty string if it can."""
    config = model.config.get_text_config()
    if switch in MLPS:
        activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
        if activation not in MLPS[switch]:
            return f"it computes {MLPS[switch][0]}, and the model {activation}"
    return _interpreter_fails(switch) if triton_is_interpreted() else ""


def _interpreter_fails(switch: str) -> str:
    """What Triton's interpreter, which knows less than its compiler, says of a kernel on four numbers."""
    import torch
    from liger_kernel.ops import LigerGELUMulFunction, LigerSiLUMulFunction
    from liger_kernel.transformers import LigerRMSNorm
    from liger_kernel.transformers.relu_squared import LigerReLUSquared

    ones = torch.ones(1, 4)
    trials: dict[str, Any] = {
        "rms_norm": lambda: LigerRMSNorm(4)(ones.clone()),
        "swiglu": lambda: LigerSiLUMulFunction.apply(ones, ones, 1.0, 1.0),
        "geglu": lambda: LigerGELUMulFunction.apply(ones, ones),
        "relu_squared": lambda: LigerReLUSquared()(ones),
    }
    try:
        trials.get(switch, str)()
    except Exception as error:  # Triton wraps whatever a kernel raises
        return f"Triton's interpreter cannot run it ({type(error).__name__}: {error})"
    return ""


# --- Devices, as in the loss of the same name -----------------------------------------------------------------------
def _check_device(plan: Plan) -> Iterator[Problem]:
    """On a CPU, Triton runs in its interpreter only."""
    if plan.settings.get("use_cpu") and not triton_is_interpreted():
        what = "Liger's kernels need a GPU, and the run asks for the CPU (use_cpu)."
        yield Problem(what, "kernel: liger", fix=WITHOUT_GPU)


def _refuse_device() -> None:
    """The same, once torch can be asked.

    Raises:
        ModelError: there is no accelerator, and no interpreter was asked for.
    """
    import torch

    if not torch.accelerator.is_available() and not triton_is_interpreted():
        raise ModelError('kernel "liger" needs a GPU, and there is none.', fix=WITHOUT_GPU)


WITHOUT_GPU = (
    "Drop it (use_liger_kernel), or set TRITON_INTERPRET=1 before Triton is imported, to try it slowly in Triton's "
    "interpreter."
)


def _causal_of(model: Any) -> Any:
    """The causal model inside PEFT's wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _refuse_unsloth(model: Any) -> None:
    if hasattr(model, "for_training") and hasattr(model, "for_inference"):
        raise ModelError(
            'the model was made by Unsloth, which has kernels of its own, and kernel "liger" would replace them.',
            fix="Drop the kernel (use_liger_kernel), or load the model with transformers.",
        )
