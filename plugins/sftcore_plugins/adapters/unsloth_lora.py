"""LoRA by Unsloth, whose kernels compute adapter and layer together."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from sftcore import LoadedModel, ModelError, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import selective_of
from sftcore_plugins.adapters._peft_methods import check_method


@plugin
class UnslothLoRA:
    """LoRA by unsloth.FastLanguageModel.get_peft_model, on a model that Unsloth loaded.

    Unsloth's kernels serve adapters without dropout and bias, so those are off by default. `offload_checkpoints` is
    Unsloth's gradient checkpointing, which keeps activations in host memory. What is saved is a plain PEFT adapter.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    offload_checkpoints: bool = False

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["adapter"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        where = "adapter: unsloth-lora"
        if not probe.ready_model and not any(one.name == "unsloth" for one in plan.selected("loader")):
            yield Problem("the model is not loaded by Unsloth.", where, "Add loader: unsloth, or use adapter: lora.")
        if self.offload_checkpoints and not plan.settings.get("gradient_checkpointing"):
            yield Problem(
                "offload_checkpoints needs gradient checkpointing, and the run has none.",
                where,
                "Set gradient_checkpointing: true, or drop offload_checkpoints.",
            )
        if self.offload_checkpoints and selective_of(plan.settings):
            yield Problem(
                "Unsloth's checkpointing recomputes all of a layer, and selective keeps a part of it.",
                where,
                "Drop offload_checkpoints, or selective from gradient_checkpointing_kwargs.",
            )
        named = {"target_modules": self.target_modules, "modules_to_save": self.modules_to_save}
        size = {"r": self.r, "lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout}
        yield from check_method({"peft_type": "LORA", **size, **named}, plan, probe)

    @hookimpl
    def wrap_model(self, loaded: LoadedModel, plan: Plan) -> LoadedModel:
        from unsloth import FastLanguageModel

        if not hasattr(loaded.model, "for_training"):
            raise ModelError(
                f"{type(loaded.model).__name__} was not made by Unsloth, whose adapter needs a model of its own.",
                where="adapter: unsloth-lora",
                fix="Pass a model of unsloth.FastLanguageModel, or use adapter: lora.",
            )
        checkpointing = bool(plan.settings.get("gradient_checkpointing"))
        targets = {} if self.target_modules is None else {"target_modules": self.target_modules}
        model = FastLanguageModel.get_peft_model(
            loaded.model,
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            modules_to_save=self.modules_to_save,
            random_state=plan.settings.get("seed", 42),
            use_gradient_checkpointing="unsloth" if self.offload_checkpoints else checkpointing,
            **targets,
        )
        return attrs.evolve(loaded, model=model)
