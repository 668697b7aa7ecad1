"""Refuses keys that nobody reads, and offers the key that was meant: a near one, or ours for another tool's name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sftcore.core.errors import RecipeError, UnknownKeyError, near_name
from sftcore.core.types import KINDS

REQUIRED = {"model": "model: HuggingFaceTB/SmolLM2-135M-Instruct", "data": "data: train.jsonl"}
"""The keys that a recipe needs, each with an example."""

_EVAL = "data.eval"
_SHARE = "data.eval_fraction"
_TRACKER = "report_to"
ELSEWHERE = {
    # training
    "lr": "learning_rate", "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "steps": "max_steps",
    "batch_size": "per_device_train_batch_size", "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size", "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps", "lr_scheduler": "lr_scheduler_type", "optimizer": "optim",
    "scheduler": "lr_scheduler_type", "warmup": "warmup_steps", "output": "output_dir", "out": "output_dir",
    "resume": "resume_from_checkpoint", "auto_resume_from_checkpoints": "resume_from_checkpoint",
    "checkpoint": "resume_from_checkpoint", "deepspeed_config": "deepspeed", "use_liger": "use_liger_kernel",
    "liger": "use_liger_kernel", "enable_liger_kernel": "use_liger_kernel", "cpu": "use_cpu", "no_cuda": "use_cpu",
    "device": "use_cpu", "log_steps": "logging_steps", "log_every": "logging_steps", "plot_loss": _TRACKER,
    "save_every": "save_steps", "eval_every": "eval_steps", "early_stopping": "early_stopping_patience",
    "patience": "early_stopping_patience", "callback": "callbacks", "pad_to_sequence_len": "pad_to_multiple_of",
    "wandb_project": _TRACKER, "wandb_entity": _TRACKER, "wandb_name": "run_name", "swanlab_project": _TRACKER,
    # rows and tokens
    "sequence_len": "max_length", "cutoff_len": "max_length", "block_size": "max_length", "seq_len": "max_length",
    "seq_length": "max_length", "max_len": "max_length", "model_max_length": "max_length",
    "sample_packing": "packing", "eval_sample_packing": "eval_packing", "text_column": "dataset_text_field",
    "text_field": "dataset_text_field", "chat_template": "chat_template_path", "template": "chat_template_path",
    "train_on_responses_only": "assistant_only_loss", "train_on_inputs": "completion_only_loss",
    "mask_prompt": "completion_only_loss", "preprocessing_num_workers": "dataset_num_proc",
    "dataset_processes": "dataset_num_proc", "num_proc": "dataset_num_proc", "overwrite_cache": "dataset_cache",
    "load_from_cache_file": "dataset_cache", "dataset_prepared_path": "dataset_cache",
    "special_tokens": "eos_token",
    # data
    "datasets": "data", "dataset": "data", "dataset_name": "data", "dataset_path": "data", "train": "data.train",
    "train_data": "data.train", "train_file": "data.train", "train_dataset": "data.train", "files": "data.train",
    "data_path": "data.train", "eval": _EVAL, "eval_data": _EVAL, "eval_file": _EVAL, "eval_dataset": _EVAL,
    "val_dataset": _EVAL, "test_datasets": _EVAL, "validation": _EVAL, "eval_fraction": _SHARE,
    "val_set_size": _SHARE, "val_size": _SHARE, "test_split_size": _SHARE, "split_dataset_ratio": _SHARE,
    "dataset_train_split": "data.split", "split": "data.split", "max_samples": "data.rows", "max_rows": "data.rows",
    "max_train_samples": "data.rows", "dataset_test_split": "data.eval_split", "dataset_config": "data.config",
    "stopping_strategy": "data.stop", "mix_strategy": "data.stop", "stop": "data.stop",
    "dataset_streaming": "data.streaming", "streaming": "data.streaming",
    # model and plugins
    "base_model": "model", "model_name_or_path": "model", "model_name": "model", "model_id": "model",
    "model_path": "model", "model_revision": "model.revision", "revision": "model.revision",
    "torch_dtype": "model.dtype", "dtype": "model.dtype", "device_map": "model.init_kwargs.device_map",
    "flash_attention": "attention", "flash_attn": "attention", "attn_impl": "attention",
    "attn_implementation": "attention", "peft_config": "adapter", "peft": "adapter", "use_peft": "adapter",
    "lora": "adapter.lora", "lora_r": "adapter.lora.r", "lora_rank": "adapter.lora.r",
    "lora_alpha": "adapter.lora.lora_alpha", "lora_dropout": "adapter.lora.lora_dropout",
    "lora_target": "adapter.lora.target_modules", "lora_target_modules": "adapter.lora.target_modules",
    "lora_target_linear": "adapter.lora.target_modules", "lora_modules_to_save": "adapter.lora.modules_to_save",
    "load_in_4bit": "adapter.qlora", "load_in_8bit": "adapter.qlora", "quantization_bit": "adapter.qlora",
    "finetuning_type": "adapter",
}  # fmt: skip
"""Names of other tools, and short ones, for our keys: they are offered when an unknown key is refused."""

OF_A_SOURCE = {
    "dataset": "path", "file": "path", "files": "path", "file_name": "path", "data_files": "path", "train": "path",
    "hf_hub_url": "path", "dataset_name": "path", "id": "path", "dataset_path": "path",
    "fraction": "weight", "proportion": "weight", "probability": "weight", "interleave_prob": "weight",
    "ratio": "weight", "share": "weight", "sampling_weight": "weight",
    "max_rows": "rows", "num_samples": "rows", "max_samples": "rows", "limit": "rows", "num_rows": "rows",
    "type": "format", "formatting": "format", "subset": "config", "dataset_config": "config", "label": "name",
}  # fmt: skip
"""Names of other tools for the keys of one source of `data`."""


def wrong_keys(raw: Mapping[str, Any], known: Iterable[str], *, where: str) -> Iterator[RecipeError]:
    """The error of a recipe that lacks `model` or `data`, or has keys that nobody reads: one for all of them.

    Args:
        raw: the recipe's plain values.
        known: the keys that somebody reads.
        where: the recipe, in errors.

    Yields:
        nothing, an UnknownKeyError where one key is unknown and none is missing, or else a RecipeError.
    """
    names = tuple(known)
    missing = [section for section in REQUIRED if raw.get(section) in (None, "")]
    unknown = {str(key): meant(str(key), names, missing) for key in raw if key not in names}
    if not missing and not unknown:
        return
    if not missing and len(unknown) == 1:
        ((key, offer),) = unknown.items()
        yield UnknownKeyError(key, names, where=where, meant=offer or None)
        return
    wrong = [f'the key "{section}" is missing' for section in missing]
    wrong += [f'unknown key "{key}"' + (f' (did you mean "{near}"?)' if near else "") for key, near in unknown.items()]
    offered = {near.partition(".")[0] for near in unknown.values()}
    examples = [REQUIRED[section] for section in missing if section not in offered]
    fix = f"Add {'a line' if len(examples) == 1 else 'lines'} such as: {' and '.join(examples)}" if examples else ""
    yield RecipeError(f"{'; '.join(wrong)}.", where=where, fix=fix)


def meant(key: str, known: Collection[str], missing: Collection[str] = ()) -> str:
    """The key that was probably meant, one of the missing where it is near; empty if none is.

    >>> meant("mdoel", ["model", "mode"], ["model"]), meant("lora_rank", ["adapter"]), meant("zzz", ["model"])
    ('model', 'adapter.lora.r', '')
    """
    short = key.lower().replace("-", "_")
    ours = ELSEWHERE.get(short, "")
    if (section := ours.partition(".")[0]) in known:
        return ours
    if section in KINDS:  # in Python, plugins are chosen elsewhere
        of_python = ["peft_config", "plugins"] if section == "adapter" else ["plugins"]
        return next((one for one in of_python if one in known), "") or near_name(short, known)
    return near_name(short, missing) or near_name(short, known)


def meant_inside(section: str, key: str, known: Collection[str]) -> str | None:
    """The key of a section that another tool calls so; None where there is none.

    >>> meant_inside("data", "validation", ["train", "eval", "eval_fraction"])
    'eval'
    """
    head, _, inner = ELSEWHERE.get(key, "").partition(".")
    return inner if head == section and inner in known else None


def meant_of_source(_: str, key: str, known: Collection[str]) -> str | None:
    """The key of a source of `data` that another tool calls so; None where there is none.

    >>> meant_of_source("source", "num_samples", ["path", "rows"])
    'rows'
    """
    found = OF_A_SOURCE.get(key.lower())
    return found if found in known else None
