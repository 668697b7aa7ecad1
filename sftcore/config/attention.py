"""Compares what an attention plugin declares with a run: before torch is imported, and again with the loaded model.

An attention plugin's `check` calls `unsupported`, for the device, dtype and dropout that settings and files tell.
`shortcomings` is called again once the model is loaded.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftcore.core.types import AttentionBackend, Plan, Probe, Problem

DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
"""The names of the attention dropout in model configurations."""


def unsupported(backend: AttentionBackend, plan: Plan, probe: Probe) -> Iterator[Problem]:
    """Problems of a run with this attention, as far as they can be known without torch."""
    device = planned_device(plan)
    dtype = planned_dtype(plan, probe, device)
    for what, fix in shortcomings(backend, device, dtype, probe.model_config or {}, padded=pads(plan)):
        yield Problem(f"it {what}.", fix=fix)


def shortcomings(
    backend: AttentionBackend, device: str | None, dtype: str | None, config: Mapping[str, Any], *, padded: bool
) -> Iterator[tuple[str, str]]:
    """What the attention does not support, as a verb phrase with a fix; None stands for what is not known."""
    if device is not None and backend.devices and device not in backend.devices:
        yield _missing("device", device, backend.devices)
    dtypes = backend.dtypes
    if isinstance(dtypes, Mapping):
        dtypes = dtypes.get(device or "", ())
    if dtype is not None and dtypes and dtype not in dtypes:
        yield _missing("dtype", dtype, dtypes)
    if padded and not backend.padding:
        yield (
            "does not accept padding, but this run's batches are padded",
            "Set padding_free: true (with max_length: null) or packing: true, or choose another attention.",
        )
    if not _does(backend.backward, device):
        yield (
            f"has no backward pass{_on(backend.backward, device)}, so it cannot be trained with",
            "Choose another attention.",
        )
    dropped = next((name for name in DROPOUTS if config.get(name)), None)
    if dropped and not _does(backend.dropout, device):
        yield (
            f"has no attention dropout{_on(backend.dropout, device)}, but the model's {dropped} is {config[dropped]}",
            f"Set {dropped}: 0.0 in the model's configuration, or choose another attention.",
        )


def speed_on(backend: AttentionBackend, device: str, *, shared: bool) -> float:
    """How fast it is on this device, with documents that share a row or with padded rows; 0 where it does not say."""
    declared = backend.speed if shared else backend.padded_speed
    return declared.get(device, 0.0) if isinstance(declared, Mapping) else declared


def device_of(settings: Mapping[str, Any]) -> str:
    """The device that a run most likely has, told without torch; the trainer asks torch."""
    return planned_device(Plan((), settings)) or ("mps" if sys.platform == "darwin" else "cuda")


def planned_device(plan: Plan) -> str | None:
    """ "cpu" if the run can have no other device, otherwise None."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        build = ""
    # torch's wheels for Linux without a build tag are those for CUDA
    cuda = sys.platform == "linux" and (not build or build.startswith("cu"))
    return "cpu" if plan.settings.get("use_cpu") or build == "cpu" or (hidden and cuda) else None


def planned_dtype(plan: Plan, probe: Probe, device: str | None) -> str | None:
    """The dtype of attention, by the settings or the model's configuration; None if it is not decided yet."""
    settings = plan.settings
    if settings.get("bf16") or settings.get("fp16"):
        return "bfloat16" if settings.get("bf16") else "float16"
    if probe.ready_model or (settings.get("bf16") is None and device != "cpu"):
        return None  # the device then decides about bf16
    config = probe.model_config or {}
    saved = config.get("dtype", config.get("torch_dtype"))
    return saved if plan.model.dtype == "auto" else plan.model.dtype or "float32"


def pads(plan: Plan) -> bool:
    """Whether the run's collator may pad rows; False for packed blocks, and for a user's own collator."""
    packing = plan.settings.get("packing") and plan.settings.get("eval_packing") is not False
    return (plan.flattened is False or plan.open_layout) and not packing


def _does(declared: bool | tuple[str, ...], device: str | None) -> bool:
    """Whether it is supported on this device, or on any device if this one is not known."""
    return declared if isinstance(declared, bool) else device is None or device in declared


def _on(declared: bool | tuple[str, ...], device: str | None) -> str:
    return "" if isinstance(declared, bool) or device is None else f" on the device {device}"


def _missing(kind: str, taken: str, declared: Sequence[str]) -> tuple[str, str]:
    return (
        f"does not support the {kind} {taken}",
        f"It supports: {', '.join(declared)}. Change the {kind}, or choose another attention.",
    )
