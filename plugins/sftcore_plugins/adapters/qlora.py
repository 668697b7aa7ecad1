"""LoRA on a base that bitsandbytes quantises while it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import attrs

from sftcore import (
    LoadedModel,
    LoadOptions,
    ModelRequest,
    Plan,
    Probe,
    Problem,
    get_kbit_device_map,
    hookimpl,
    plugin,
)
from sftcore.plugin_api import quantisation_of
from sftcore_plugins.adapters._peft_methods import check_method, fields_of_lora, given, lora_options, make_config, wrap


@plugin
class QLoRA:
    """Low-rank adapters on a 4-bit or 8-bit base (arXiv:2305.14314), by bitsandbytes.

    `bits` is 4 or 8. `compute_dtype` and `storage_dtype` belong to 4 bits: products are computed in the first (the
    model's own dtype by default), and the packed weights are held in the second, which FSDP needs to be the model's
    own too. The other options are those of `lora`.
    """

    bits: Literal[4, 8] = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    storage_dtype: Literal["uint8", "float32", "bfloat16", "float16"] | None = None
    r: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    target_modules: str | list[str] = "all-linear"
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    fused: bool = True
    arguments: dict[str, Any] = attrs.field(factory=dict, metadata={"takes": fields_of_lora})

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["adapter"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        four_bit = given(compute_dtype=self.compute_dtype, storage_dtype=self.storage_dtype)
        if self.bits == 8 and (four_bit or self.quant_type == "fp4"):
            names = [*four_bit, *(["quant_type"] if self.quant_type == "fp4" else [])]
            yield Problem(f"{', '.join(names)} belong to 4 bits, and bits is 8.", fix="Leave them out, or set bits: 4.")
        asked = [name for name in ("load_in_4bit", "load_in_8bit", "quantization_config") if _asks(plan.model, name)]
        if asked:
            yield Problem(
                f"{' and '.join(asked)} of model_init_kwargs and the adapter's own bits ask for two quantisations.",
                fix="Keep one: drop them, or use adapter lora, which trains on a base that is quantised already.",
            )
        if (plan.model.name or "").lower().endswith(".gguf"):
            yield Problem(
                "a GGUF file is quantised in its own way, and its weights are turned back into floats.",
                fix="Use adapter lora on it, or save the model as a folder first (model.save_pretrained).",
            )
        saved = (probe.model_config or {}).get("quantization_config") or {}
        if saved and not saved.get(f"load_in_{self.bits}bit"):
            how = saved.get("quant_method", "another way")
            yield Problem(
                f"the model is quantised already ({how}), and not to {self.bits} bits by bitsandbytes.",
                fix="Use adapter lora, which trains on it as it is, or name the unquantised model.",
            )
        yield from check_method(self._options(), plan, probe, self._quantised())

    def _quantised(self) -> dict[str, Any]:
        return {f"load_in_{self.bits}bit": True, "bnb_4bit_quant_storage": self.storage_dtype}

    @hookimpl
    def load_options(self, request: ModelRequest) -> LoadOptions:
        from transformers import BitsAndBytesConfig

        dtype = request.dtype if request.dtype not in (None, "auto") else "bfloat16"
        config = (
            BitsAndBytesConfig(load_in_8bit=True)
            if self.bits == 8
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.quant_type,
                bnb_4bit_use_double_quant=self.double_quant,
                bnb_4bit_compute_dtype=self.compute_dtype or dtype,
                bnb_4bit_quant_storage=self.storage_dtype,
            )
        )
        place = {} if "device_map" in request.init_kwargs else given(device_map=get_kbit_device_map())
        return LoadOptions({"quantization_config": config, **place})

    @hookimpl
    def wrap_model(self, loaded: LoadedModel, plan: Plan) -> LoadedModel:
        if not quantisation_of(loaded.model):
            note = "the given model is not quantised; qlora quantises only what the run itself loads"
            loaded = attrs.evolve(loaded, notes=(*loaded.notes, note))
        return wrap(loaded, plan, make_config(self._options(), "adapter.qlora"), "adapter.qlora", fused=self.fused)

    def _options(self) -> dict[str, Any]:
        further = given(target_parameters=self.target_parameters, modules_to_save=self.modules_to_save)
        return {
            "task_type": "CAUSAL_LM",
            "peft_type": "LORA",
            "target_modules": self.target_modules,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            **lora_options(self.r, self.lora_alpha, self.lora_dropout),
            **further,
            **self.arguments,
        }


def _asks(request: ModelRequest, name: str) -> bool:
    return request.init_kwargs.get(name) not in (None, False)
