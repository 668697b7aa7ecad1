"""What other tools call values of ours, in settings that have the same name here or another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DTYPES: Mapping[str, str] = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "torch.bfloat16": "bfloat16",
    "fp16": "float16", "float16": "float16", "half": "float16", "torch.float16": "float16",
    "fp32": "float32", "f32": "float32", "float": "float32", "float32": "float32", "torch.float32": "float32",
    "auto": "auto",
}  # fmt: skip
"""Data types of weights."""

ATTENTION: Mapping[str, str] = {
    "flash_attention_2": "flash-2", "flash_attention_3": "flash-3", "flash_attn": "flash-2", "flash_attn_2": "flash-2",
    "flash_attn_3": "flash-3", "flash_attention": "flash-2", "flash": "flash-2", "fa2": "flash-2", "fa3": "flash-3",
    "flash2": "flash-2", "flash3": "flash-3", "true": "flash-2", "on": "flash-2",
    "sdpa": "sdpa", "sdp": "sdpa", "eager": "eager", "disabled": "eager", "flex": "flex", "flex_attention": "flex",
    "auto": "auto", "false": "auto", "none": "auto",
}  # fmt: skip
"""Attention implementations. "true" and "false" are those of Axolotl's switches."""

OPTIMIZERS: Mapping[str, str] = {
    "adamw": "adamw_torch", "adam": "adamw_torch", "adamw_hf": "adamw_torch", "torch.optim.adamw": "adamw_torch",
    "adamw_apex_fused": "adamw_torch_fused", "paged_adamw": "paged_adamw_32bit", "torch.optim.sgd": "sgd",
    "bitsandbytes.optim.pagedadamw8bit": "paged_adamw_8bit", "bitsandbytes.optim.pagedadamw": "paged_adamw_32bit",
    "bitsandbytes.optim.adamw8bit": "adamw_8bit", "torchao.prototype.low_bit_optim.adamw8bit": "adamw_torch_8bit",
}  # fmt: skip
"""Optimizers."""

SCHEDULES: Mapping[str, str] = {
    "cosine_with_warmup": "cosine", "linear_with_warmup": "linear", "cosine_annealing": "cosine",
    "wsd": "warmup_stable_decay",
    "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup": "cosine",
    "torchtune.modules.get_cosine_schedule_with_warmup": "cosine",
}  # fmt: skip
"""Schedules of the learning rate that have another name there."""

NEVER: Mapping[str, str] = {"never": "no", "none": "no", "off": "no", "false": "no"}
"""When nothing is evaluated, saved or logged."""

OFFLOADED = ("unsloth", "offload", "offload_disk")
"""Values of `gradient_checkpointing` that move what is kept out of the device's memory."""

LONG_ROWS: Mapping[str, str] = {
    "drop": "drop", "delete": "drop", "truncate": "cut", "right": "cut", "left": "cut", "split": "split",
    "raise": "refuse",
}  # fmt: skip
"""What becomes of rows that are too long: `excess_length_strategy` of Axolotl, `truncation_strategy` of ms-swift."""

TARGETS: Mapping[str, Any] = {"all": "all-linear", "all-linear": "all-linear"}
"""Words for the modules that an adapter goes on."""


def checkpointing(value: Any) -> Mapping[str, Any]:
    """The settings of `gradient_checkpointing` as Axolotl and Unsloth write it: a switch, or with what is offloaded."""
    if str(value).lower() in OFFLOADED:
        return {"gradient_checkpointing": True, "activation_offloading": True}
    return {"gradient_checkpointing": str(value).lower() in ("true", "1", "yes", "on")}


OF_PLUGINS: Mapping[str, Mapping[str, str]] = {
    "attention": ATTENTION,
    "adapter": {"bnb": "qlora", "quantized": "qlora", "unsloth": "unsloth-lora", "peft": "lora", "dora": "lora"},
    "loss": {"cross_entropy": "nll", "ce": "nll", "cut_cross_entropy": "cce"},
    "format": {"sharegpt_chat": "sharegpt", "chatml": "chat", "openai": "chat", "messages": "chat",
               "chat_template": "chat", "completion": "text", "instruct": "alpaca", "pretrain": "text"},
}  # fmt: skip
"""What other tools call plugins, by kind: offered where no plugin has the name."""
