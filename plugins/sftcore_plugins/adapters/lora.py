"""Adapters by PEFT: LoRA by its own options, every other method by its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sftcore import LoadedModel, Plan, Probe, Problem, hookimpl, plugin
from sftcore_plugins.adapters._peft_methods import (
    check_method,
    fields_of_lora,
    given,
    lora_options,
    make_config,
    peft_values,
    wrap,
)

if TYPE_CHECKING:
    from peft import PeftConfig

LORA_ONLY = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_parameters")
"""Options that no other method takes."""


@plugin
class LoRA:
    """Low-rank adapters (arXiv:2106.09685), and any other PEFT method.

    `peft_type` names the method as PEFT does; `arguments` are further ones of its configuration class. `config` is a
    ready PeftConfig, from Python. LoRA's rank, alpha and dropout default to 16, 32 and 0.05. `fused` has its product
    added in one operation, with the same result in less memory; false leaves it to PEFT.
    """

    r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    target_modules: str | list[str] | None = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    task_type: str = "CAUSAL_LM"
    peft_type: str = "LORA"
    fused: bool = True
    arguments: dict[str, Any] = attrs.field(factory=dict, metadata={"takes": fields_of_lora})
    config: Any = None

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["adapter"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        own = [name for name in LORA_ONLY if getattr(self, name) is not None and getattr(self, name) is not False]
        if own and self.peft_type.upper() != "LORA":
            yield Problem(
                f"only LoRA takes {', '.join(own)}, not {self.peft_type}.",
                fix="Use `arguments` for the method's own.",
            )
        if own and self.config is not None:
            yield Problem(
                f"{', '.join(own)} and a ready peft_config contradict each other.", fix="Keep one of the two."
            )
        if isinstance(self.config, Mapping):
            yield Problem("`config` takes a PeftConfig object, from Python.", fix="Use the options, or `arguments`.")
        else:
            yield from check_method(
                peft_values(self.config) if self.config is not None else self._options(), plan, probe
            )

    @hookimpl
    def wrap_model(self, loaded: LoadedModel, plan: Plan) -> LoadedModel:
        ready = self.config is not None
        return wrap(loaded, plan, self._config(), "adapter.lora", fused=self.fused, ready=ready)

    def _config(self) -> PeftConfig:
        return self.config if self.config is not None else make_config(self._options(), "adapter.lora")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"task_type": self.task_type, "peft_type": self.peft_type.upper()}
        if options["peft_type"] == "LORA":
            options |= lora_options(self.r, self.lora_alpha, self.lora_dropout)
            options |= {"use_rslora": self.use_rslora, "use_dora": self.use_dora}
        further = given(
            target_modules=self.target_modules,
            target_parameters=self.target_parameters,
            modules_to_save=self.modules_to_save,
        )
        return {**options, **further, **self.arguments}
