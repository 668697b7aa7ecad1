"""Names of other tools for settings of the model, its attention and its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore.config.foreign.entry import Foreign, Settings, as_number, chosen, is_on, nothing, only, when_on
from sftcore.config.foreign.values import ATTENTION, DTYPES, TARGETS
from sftcore.core.errors import RecipeError

_QLORA = "A base in 4 or 8 bits is part of its adapter: adapter: {qlora: {bits: 4}}."
_FULL = "Without the key adapter all weights train."
_TARGETS = "all-linear stands for all linear layers, a list for some of them."
_PARTS = "No key here trains some of the layers in full; in Python, set requires_grad of the others before SFTTrainer."
_TOKENIZER = "The tokenizer comes with the model, in its fast form."


def _bits(value: Any) -> Settings:
    bits = as_number(value)
    if bits not in (4, 8):
        raise RecipeError(f"{value!r} bits have no equivalent.", fix="A base is held in 4 or 8 bits.")
    return {"adapter.qlora.bits": int(bits)}


def _adapter(value: Any) -> Settings:
    known = {"lora": {"adapter": "lora"}, "qlora": {"adapter": "qlora"}, "full": {}, "none": {}, "": {}, "false": {}}
    if (found := known.get(str(value).lower())) is None:
        raise RecipeError(f"{value!r} has no equivalent as adapter.", fix="PEFT's other methods are peft_type of lora.")
    return found


def _of_configuration(value: Any) -> Settings:
    if not isinstance(value, Mapping):
        if is_on(value):
            raise RecipeError(f"{value!r} has no equivalent.", fix="It is a mapping here.")
        return {}
    return {f"model.init_kwargs.{name}": one for name, one in value.items()}


def _positions(value: Any) -> Settings:
    if is_on(value):
        raise RecipeError(f"{value!r} has no equivalent as it stands.")
    return {}


def _flag(name: str) -> Foreign:
    """A switch of Axolotl that chooses an attention."""
    path, kind = name.split(":")
    return Foreign(path, "attention", f"Write attention: {kind}.", rule=when_on({"attention": kind}))


ENTRIES = (
    # the model
    Foreign("base_model model_name_or_path model_id model_path model_id_or_path pretrained_model_name_or_path "
            "pretrained_model base_model_name checkpointer.checkpoint_dir checkpoint_dir hf_model", "model"),
    Foreign("model_name", "model", ""),
    Foreign("model_name model_author", "", "It is the name that self-cognition data give the model: rows of your own "
            "do that here.", "swift"),
    Foreign("model_revision revision revision_of_model", "model.revision"),
    Foreign("torch_dtype dtype model_dtype weights_dtype", "model.dtype", "It is what the weights are held in.",
            rule=chosen("model.dtype", DTYPES)),
    Foreign("bf16 bfloat16 pure_bf16", "model.dtype",
            "There the weights are bfloat16 too; here bf16 alone leaves them float32.",
            "axolotl llamafactory swift", rule=when_on({"bf16": True, "model.dtype": "bfloat16"})),
    Foreign("fp16 float16", "fp16",
            "There the weights are float16 too; here they stay float32, which float16 needs to train.",
            "axolotl llamafactory swift", rule=when_on({"fp16": True})),
    Foreign("device_map", "model.init_kwargs.device_map"),
    Foreign("max_memory", "model.init_kwargs.max_memory"),
    Foreign("low_cpu_mem_usage", "model.init_kwargs.low_cpu_mem_usage"),
    Foreign("cache_dir", "model.init_kwargs.cache_dir"),
    Foreign("overrides_of_model_config model_kwargs model_config", "model.init_kwargs",
            "Values of the model's configuration go into model: {init_kwargs: …}.", rule=_of_configuration),
    Foreign("rope_scaling rope_theta", "model.init_kwargs",
            "Rotary positions are part of the model's configuration: model: {init_kwargs: {rope_parameters: …}}, with "
            "rope_type, rope_theta and factor.", rule=_positions),
    Foreign("model_type tokenizer_type processor_type is_llama_derived_model is_mistral_derived_model "
            "is_falcon_derived_model is_qwen_derived_model base_model_config base_model_ignore_patterns "
            "tokenizer_legacy task_type", "", "The class is that of the model's own configuration.", rule=nothing),
    Foreign("tokenizer tokenizer_name tokenizer_path tokenizer_config tokenizer_name_or_path tokenizer.path "
            "tokenizer._component_", "chat_template_path", _TOKENIZER + " chat_template_path takes over another's "
            "template and tokens.", rule=nothing),
    Foreign("tokenizer_use_fast use_fast_tokenizer use_fast tokenizer_use_mistral_common", "", _TOKENIZER,
            rule=nothing),
    Foreign("unsloth use_unsloth unsloth_model", "loader", "Write loader: unsloth, with adapter: unsloth-lora.",
            rule=when_on({"loader": "unsloth", "adapter": "unsloth-lora"})),
    Foreign("unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_cross_entropy_loss unsloth_rms_norm "
            "unsloth_rope use_unsloth_gc lora_mlp_kernel lora_qkv_kernel lora_o_kernel", "",
            "Kernels are chosen by kernel: liger, or by loader: unsloth.", rule=nothing),
    Foreign("fast_inference gpu_memory_utilization float8_kv_cache vllm_gpu_memory_utilization infer_backend "
            "infer_dtype", "", "Nothing here generates texts in a training.", rule=nothing),
    # attention
    Foreign("attn_impl attn_implementation flash_attn attention_implementation attention_type attn attn_type "
            "attention_backend", "attention", "flash-2, flash-3, sdpa, eager and flex are those of transformers.",
            rule=chosen("attention", ATTENTION)),
    Foreign("flash_attention use_flash_attention use_flash_attention_2 use_flash_attn use_flash_attn_2 "
            "flash_attention_2", "attention", "Write attention: flash-2.",
            rule=lambda value: chosen("attention", ATTENTION)(value) if is_on(value) else {}),
    _flag("sdp_attention:sdpa"),
    _flag("eager_attention:eager"),
    _flag("flex_attention:flex"),
    Foreign("xformers_attention", "attention", "xFormers is not among them; attention: sdpa takes its place.",
            rule=when_on({"attention": "sdpa"})),
    Foreign("s2_attention shift_attn landmark_attention sage_attention", "", "No attention here does this."),
    Foreign("flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum "
            "flash_attn_fuse_rotary", "", "Kernels are chosen by kernel, and the loss by loss.", rule=nothing),
    # whether there is an adapter
    Foreign("finetuning_type train_type tuner_type sft_type tuner training_type peft_type peft_method", "adapter",
            _FULL, rule=_adapter),
    Foreign("peft_config peft lora_config", "adapter", "Write adapter: {lora: {r: 16}}."),
    Foreign("use_peft use_lora enable_lora", "adapter", "Write adapter: lora.", rule=when_on({"adapter": "lora"})),
    Foreign("full_finetuning full_finetune", "", _FULL, rule=nothing),
    Foreign("lora_model_dir adapter_name_or_path adapters adapter_path resume_adapter lora_path lora_checkpoint "
            "peft_model_id", "model", "A folder with an adapter can be the model itself: its training goes on."),
    Foreign("freeze_trainable_layers freeze_parameters unfrozen_parameters trainable_parameters freeze_extra_modules "
            "freeze_trainable_modules freeze_parameters_ratio freeze_layers unfreeze_layers train_layers", "", _PARTS),
    Foreign("freeze_vit freeze_vision freeze_vision_model freeze_aligner freeze_multi_modal_projector "
            "freeze_projector freeze_vision_encoder", "freeze_vision_tower",
            "It freezes the tower and what joins it to the language layers."),
    Foreign("finetune_vision_layers train_vision_tower tune_vision", "freeze_vision_tower",
            "It is the reverse of freeze_vision_tower.", rule=when_on({"freeze_vision_tower": False},
                                                                      {"freeze_vision_tower": True})),
    Foreign("freeze_llm freeze_language_model train_mm_proj_only", "", _PARTS),
    # LoRA
    Foreign("lora", "adapter.lora"),
    Foreign("qlora", "adapter.qlora"),
    Foreign("lora_r lora_rank lora_dim r peft_lora_r rank model.lora_rank", "adapter.lora.r"),
    Foreign("lora_alpha alpha peft_lora_alpha model.lora_alpha", "adapter.lora.lora_alpha"),
    Foreign("lora_dropout model.lora_dropout", "adapter.lora.lora_dropout"),
    Foreign("lora_target lora_target_modules target_modules lora_modules model.lora_attn_modules lora_attn_modules",
            "adapter.lora.target_modules", _TARGETS, rule=chosen("adapter.lora.target_modules", TARGETS)),
    Foreign("lora_target_linear lora_target_all apply_lora_to_mlp target_all_linear", "adapter.lora.target_modules",
            "Write target_modules: all-linear.", rule=when_on({"adapter.lora.target_modules": "all-linear"})),
    Foreign("lora_target_parameters target_parameters", "adapter.lora.target_parameters"),
    Foreign("lora_modules_to_save additional_target modules_to_save", "adapter.lora.modules_to_save"),
    Foreign("use_rslora lora_use_rslora peft_use_rslora rslora", "adapter.lora.use_rslora"),
    Foreign("use_dora peft_use_dora lora_use_dora dora", "adapter.lora.use_dora"),
    Foreign("lora_bias bias peft_bias", "adapter.lora.arguments.bias"),
    Foreign("loftq_config", "adapter.lora.arguments.loftq_config"),
    Foreign("init_weights init_lora_weights peft_init_lora_weights", "adapter.lora.arguments.init_lora_weights"),
    Foreign("pissa_init", "adapter.lora.arguments.init_lora_weights", "Write init_lora_weights: pissa.",
            rule=when_on({"adapter.lora.arguments.init_lora_weights": "pissa"})),
    Foreign("lora_layers_to_transform peft_layers_to_transform layers_to_transform",
            "adapter.lora.arguments.layers_to_transform"),
    Foreign("lora_layers_pattern layers_pattern peft_layers_pattern", "adapter.lora.arguments.layers_pattern"),
    Foreign("lora_fan_in_fan_out fan_in_fan_out", "adapter.lora.arguments.fan_in_fan_out"),
    Foreign("lora_task_type", "adapter.lora.task_type"),
    Foreign("create_new_adapter lora_on_cpu lora_ga_batch_size lora_dtype lora_layers", "",
            "There is nothing to set: a new adapter is made, in float32 (adapter_dtype)."),
    # bases in fewer bits
    Foreign("load_in_4bit", "adapter.qlora.bits", _QLORA, rule=when_on({"adapter.qlora.bits": 4})),
    Foreign("load_in_8bit", "adapter.qlora.bits", _QLORA, rule=when_on({"adapter.qlora.bits": 8})),
    Foreign("quantize_base", "adapter.qlora.bits", _QLORA, rule=when_on({"adapter.qlora.bits": 4})),
    Foreign("quantization_bit quant_bits bits", "adapter.qlora.bits", _QLORA, rule=_bits),
    Foreign("quantization_config bnb_config quantization bnb", "adapter.qlora", _QLORA),
    Foreign("quantization_method quant_method", "adapter.qlora", _QLORA,
            rule=only("bitsandbytes", "bnb", "bnb_4bit")),
    Foreign("quantization_type bnb_4bit_quant_type bnb_quant_type", "adapter.qlora.quant_type"),
    Foreign("bnb_4bit_compute_dtype", "adapter.qlora.compute_dtype",
            rule=chosen("adapter.qlora.compute_dtype", DTYPES)),
    Foreign("bnb_4bit_use_double_quant double_quantization use_bnb_nested_quant use_nested_quant",
            "adapter.qlora.double_quant"),
    Foreign("bnb_4bit_quant_storage", "adapter.qlora.storage_dtype",
            rule=chosen("adapter.qlora.storage_dtype", DTYPES)),
)  # fmt: skip

OF_A_MODEL = dict.fromkeys(
    ("path", "id", "name_or_path", "model", "repo", "repo_id", "checkpoint", "folder", "directory", "file"), "name"
)
"""Names of other tools for the keys of the section `model`."""
