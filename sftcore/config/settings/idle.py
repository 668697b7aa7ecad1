"""Settings that do nothing, because what they belong to is not there: a run says so, and goes on.

A name that an optimizer does not know is an error, as it is in every other setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sftcore.config.processes import uses_fsdp
from sftcore.config.settings.tracker import trackers_of
from sftcore.core.errors import nearest
from sftcore.core.types import Plan, Problem

_PROJECT = "huggingface"
"""The default of `project`."""

_WITHOUT_ARGUMENTS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_bnb_8bit", "adamw_8bit",
    "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit",
    "adafactor", "lomo", "adalomo",
)  # fmt: skip
_ARGUMENTS = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}
"""What transformers reads of `optim_args`, and passes over the rest; other optimizers are those of other packages."""


def idle_problems(plan: Plan) -> Iterator[Problem]:
    """A warning for each setting of a run that nothing reads."""
    settings = plan.settings
    optimizer = settings.get("optim") or "adamw_torch"
    optimizer = str(getattr(optimizer, "value", optimizer))
    belongings = {
        "early_stopping_threshold": ("early_stopping_patience", settings.get("early_stopping_patience") is not None),
        "loss_watchdog_patience": ("loss_watchdog_threshold", settings.get("loss_watchdog_threshold") is not None),
        "liger_kernel_config": ("use_liger_kernel", settings.get("use_liger_kernel") or plan.selected("kernel")),
        "sample_temperature": ("sample_prompts", settings.get("sample_prompts")),
        "fsdp_config": ("fsdp", uses_fsdp(settings)),
        "optim_target_modules": ("a GaLore or APOLLO optimizer", optimizer.startswith(("galore", "apollo"))),
    }
    yield from _arguments(optimizer, str(settings.get("optim_args") or ""))
    if settings.get("project") not in (None, "", _PROJECT) and "trackio" not in trackers_of(settings):
        yield Problem(
            "project is read by trackio alone, which report_to does not name.",
            fix="Write tracker: {project: …} for the others.",
            severity="warning",
        )
    if plan.model.revision not in (None, "main") and Path(plan.model.name or "").expanduser().exists():
        yield Problem(
            f'the revision "{plan.model.revision}" is not read, because {plan.model.name} is on this machine.',
            "model",
            "Drop it, or give the model's hub id.",
            severity="warning",
        )
    for name, (owner, there) in belongings.items():
        if settings.get(name) and not there:
            yield Problem(
                f"{name} does nothing without {owner}.", fix=f"Set {owner}, or drop {name}.", severity="warning"
            )


def _arguments(optimizer: str, given: str) -> Iterator[Problem]:
    """Arguments in `optim_args` that transformers does not hand to this optimizer."""
    if given and optimizer in _WITHOUT_ARGUMENTS:
        others = ", and set adam_beta1, adam_beta2 and adam_epsilon" if "adamw" in optimizer else ""
        yield Problem(
            f'optim_args does nothing with optim "{optimizer}", which transformers gives none of them.',
            fix=f"Drop optim_args{others}.",
            severity="warning",
        )
    known = _ARGUMENTS.get(optimizer, ())
    for key in (part.partition("=")[0] for part in given.replace(" ", "").split(",") if "=" in part and known):
        if key not in known:
            what = f'optim "{optimizer}" has no argument "{key}".{nearest(key, known)}'
            yield Problem(what, "optim_args", f"It takes: {', '.join(known)}.")
