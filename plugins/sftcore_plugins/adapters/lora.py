"""Adapters by PEFT: LoRA by its own options, every other method by its configuration."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sftcore import LoadedModel, ModelError, Plan, Probe, Problem, hookimpl, plugin

if TYPE_CHECKING:
    from peft import PeftConfig

_LORA_ONLY = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")


@plugin
class LoRA:
    """Low-rank adapters (arXiv:2106.09685), and any other PEFT method.

    `peft_type` names the method as PEFT does; `arguments` are further ones of its configuration class. `config` is a
    ready PeftConfig, from Python. LoRA's rank, alpha and dropout default to 16, 32 and 0.05.
    """

    r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    task_type: str = "CAUSAL_LM"
    peft_type: str = "LORA"
    arguments: dict[str, Any] = attrs.field(factory=dict)
    config: Any = None

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["adapter"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        given = [name for name in _LORA_ONLY if getattr(self, name)]
        if given and self.peft_type.upper() != "LORA":
            yield Problem(
                f"only LoRA takes {', '.join(given)}, not {self.peft_type}.",
                fix="Use `arguments` for the method's own.",
            )
        if given and self.config is not None:
            yield Problem(
                f"{', '.join(given)} and a ready peft_config contradict each other.", fix="Keep one of the two."
            )
        if isinstance(self.config, Mapping):
            yield Problem("`config` takes a PeftConfig object, from Python.", fix="Use the options, or `arguments`.")

    @hookimpl
    def wrap_model(self, loaded: LoadedModel, plan: Plan) -> LoadedModel:
        from peft import PeftModel, get_peft_model

        if isinstance(loaded.model, PeftModel):
            raise ModelError(
                "the model is a PeftModel already, and the run asks for another adapter around it.",
                fix="Drop peft_config to train its adapter on, or merge it first: model.merge_and_unload().",
            )
        config = self.config if self.config is not None else self._config()
        if getattr(config, "task_type", None) is None:
            config.task_type = "CAUSAL_LM"  # without it PEFT's wrapper does not pass labels on
        try:
            with warnings.catch_warnings():
                # peft 0.21 reads an attribute that transformers 5.24 renamed; users can do nothing about it
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                model = get_peft_model(loaded.model, config)
        except ValueError as error:
            raise ModelError(f"PEFT refuses this adapter: {error}", where="adapter.lora") from error
        if plan.settings.get("gradient_checkpointing"):
            # Frozen embeddings give checkpointed layers inputs without gradients
            model.enable_input_require_grads()
        trainable, total = model.get_nb_trainable_parameters()
        note = f"{config.peft_type.value}: {trainable:,} of {total:,} parameters train ({100 * trainable / total:.2f}%)"
        return attrs.evolve(loaded, model=model, notes=(*loaded.notes, note))

    def _config(self) -> PeftConfig:
        from peft import get_peft_config

        options: dict[str, Any] = {"task_type": self.task_type, "peft_type": self.peft_type.upper()}
        if options["peft_type"] == "LORA":
            options |= {
                "r": self.r or 16,
                "lora_alpha": self.lora_alpha or 32,
                "lora_dropout": 0.05 if self.lora_dropout is None else self.lora_dropout,
                "use_rslora": self.use_rslora,
                "use_dora": self.use_dora,
            }
        for name in ("target_modules", "modules_to_save"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        try:
            return get_peft_config({**options, **self.arguments})
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"PEFT knows no such configuration: {error}.", where="adapter.lora") from error
