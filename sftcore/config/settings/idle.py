"""Settings that do nothing, because what they belong to is not there: a run says so, and goes on."""

from __future__ import annotations

from collections.abc import Iterator

from sftcore.config.processes import uses_fsdp
from sftcore.config.settings.tracker import trackers_of
from sftcore.core.types import Plan, Problem

_PROJECT = "huggingface"
"""The default of `project`."""


def idle_problems(plan: Plan) -> Iterator[Problem]:
    """A warning for each setting of a run that nothing reads."""
    settings = plan.settings
    optimizer = settings.get("optim")
    optimizer = str(getattr(optimizer, "value", optimizer))
    belongings = {
        "early_stopping_threshold": ("early_stopping_patience", settings.get("early_stopping_patience") is not None),
        "loss_watchdog_patience": ("loss_watchdog_threshold", settings.get("loss_watchdog_threshold") is not None),
        "liger_kernel_config": ("use_liger_kernel", settings.get("use_liger_kernel") or plan.selected("kernel")),
        "sample_temperature": ("sample_prompts", settings.get("sample_prompts")),
        "fsdp_config": ("fsdp", uses_fsdp(settings)),
        "optim_target_modules": ("a GaLore or APOLLO optimizer", optimizer.startswith(("galore", "apollo"))),
    }
    if settings.get("project") not in (None, "", _PROJECT) and "trackio" not in trackers_of(settings):
        yield Problem(
            "project is read by trackio alone, which report_to does not name.",
            fix="Write tracker: {project: …} for the others.",
            severity="warning",
        )
    for name, (owner, there) in belongings.items():
        if settings.get(name) and not there:
            yield Problem(
                f"{name} does nothing without {owner}.", fix=f"Set {owner}, or drop {name}.", severity="warning"
            )
