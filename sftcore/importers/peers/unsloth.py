"""Unsloth: Python scripts and notebooks with FastLanguageModel, get_peft_model and SFTTrainer."""

from __future__ import annotations

from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.peers import shared, trl
from sftcore.importers.peers.launch import environment
from sftcore.importers.peers.shared import dtype, field, lora
from sftcore.importers.peers.templates import template
from sftcore.importers.read import python
from sftcore.importers.read.python import (
    ALPACA,
    CONFIG,
    MARKERS,
    MODEL,
    OURS,
    PEFT,
    PLAIN_ARGUMENTS,
    RENDERS,
    TEMPLATE,
    TOKENIZER,
    TRAINER,
)
from sftcore.importers.read.source import FILL, Key

VERSION = "2026.10"
_OPTIONS = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora")
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_USUAL: dict[str, Any] = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": _TARGETS}
_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 4,
    "weight_decay": 0.001,
    "warmup_steps": 0.1,
    "seed": 3407,
    "optim": "adamw_8bit",
    "learning_rate": 5e-5,
    "logging_steps": 1,
}
"""Defaults that Unsloth gives TRL's SFTConfig once it is imported."""
_SAME = {
    "fix_tokenizer": "",
    "fast_inference": "nothing is generated in training",
    "max_lora_rank": "",
    "disable_log_stats": "",
    "gpu_memory_utilization": "nothing is generated in training",
    "use_exact_model_name": "",
    "device_map": "the trainer puts the model on its device",
    "token": "",
    "float8_kv_cache": "",
    "text_only": "",
    "offload_embedding": "",
}


def fill(draft: Draft) -> None:
    """Fill in what a script with Unsloth says."""
    draft.put(
        "model.name",
        draft.get((MODEL, "model_name"), draft.get((MODEL, "pretrained_model_name_or_path"), FILL)),
        (MODEL, "model_name"),
    )
    said = dtype(draft.get((MODEL, "dtype"))) if draft.has((MODEL, "dtype")) else None
    draft.put(
        "model.dtype",
        said or "bfloat16",
        (MODEL, "dtype"),
        note="" if said else "Unsloth's default, where the GPU has it",
    )
    full = bool(draft.get((MODEL, "full_finetuning")))
    _loading(draft, full)
    trl.python_data(draft)
    _rows(draft)
    trl.of_trainer(draft)
    _arguments(draft)
    _tokens(draft)
    for name, value in (draft.get(MODEL) or {}).items():
        key: Key = (MODEL, name)
        if not draft.knows(key):
            if value is None or name in _SAME:
                draft.same(_SAME.get(name) or "nothing has to be set for it", key)
            else:
                draft.left("an argument of FastLanguageModel.from_pretrained", key)
    for name, value in (draft.get(PEFT) or {}).items():
        key = (PEFT, name)
        if not draft.knows(key):
            usual = value in (None, "none", True, False, {}, OURS) or name == "max_seq_length"
            why = (
                "the adapter's first weights are drawn by the run's seed"
                if name == "random_state"
                else "an option of get_peft_model"
            )
            draft.same("nothing has to be set for it", key) if usual else draft.left(why, key)
    environment(draft)
    shared.remaining(draft, "unsloth", groups=(CONFIG, PLAIN_ARGUMENTS, TRAINER))
    plain = draft.get(CONFIG) is None and draft.get(PLAIN_ARGUMENTS) is not None
    usual_arguments = dict(shared.BASE_DEFAULTS) if plain else dict(_DEFAULTS)
    if "max_steps" in draft.entries and "optim" in usual_arguments and draft.without_gpu:
        usual_arguments.pop("optim")
    shared.defaults(draft, usual_arguments)


def _loading(draft: Draft, full: bool) -> None:
    """The loader and the adapter: Unsloth's own, or without a GPU what gives the same weights."""
    four = (
        draft.get((MODEL, "load_in_4bit"), True)
        and not full
        and not draft.get((MODEL, "load_in_8bit"))
        and not draft.get((MODEL, "load_in_16bit"))
    )
    eight = bool(draft.get((MODEL, "load_in_8bit"))) and not full
    keys: list[Key] = [
        (MODEL, k)
        for k in ("load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning", "max_seq_length")
        if draft.has((MODEL, k))
    ]
    length = draft.get((MODEL, "max_seq_length"), 2048)
    of_adapter: list[Key] = [(PEFT, "model")] if draft.has((PEFT, "model")) else []
    options: dict[str, Key] = {name: (PEFT, name) for name in _OPTIONS}
    checkpoints = draft.get(
        (PEFT, "use_gradient_checkpointing"), draft.get((MODEL, "use_gradient_checkpointing"), "unsloth")
    )
    for group in (PEFT, MODEL):
        if draft.has((group, "use_gradient_checkpointing")):
            draft.use("gradient_checkpointing", (group, "use_gradient_checkpointing"))
    if draft.without_gpu or eight:
        if draft.without_gpu:
            draft.left_of_gpu.append("Unsloth's loader and kernels")
        bits = 4 if four else 8 if eight else None
        if not full:
            lora(draft, options, _USUAL, bits=bits, of=[*of_adapter, *keys])
            if four:
                draft.put("adapter.qlora.quant_type", "nf4", note="Unsloth's default")
                draft.put("adapter.qlora.double_quant", True, note="Unsloth's default")
                draft.put("adapter.qlora.compute_dtype", draft.entries["model.dtype"].value, note="the dtype")
    else:
        chosen = {
            "max_seq_length": length,
            **({"load_in_4bit": True} if four else {}),
            **({"full_finetuning": True} if full else {}),
        }
        note = "" if draft.has((MODEL, "load_in_4bit")) or not four else "4 bits are Unsloth's default"
        draft.put("loader", {"unsloth": chosen}, *keys, note=note)
        if not full:
            lora(draft, options, _USUAL, of=of_adapter, kind="unsloth-lora")
            if checkpoints == "unsloth":
                draft.put(
                    "adapter.unsloth-lora.offload_checkpoints",
                    True,
                    *(k for k in ((PEFT, "use_gradient_checkpointing"),) if draft.has(k)),
                )
    draft.use("max_length", *keys[-1:])
    draft.put(
        "gradient_checkpointing",
        bool(checkpoints),
        note="" if draft.has((PEFT, "use_gradient_checkpointing")) else "Unsloth's default",
    )


def _rows(draft: Draft) -> None:
    """What the script makes of its rows, and what of them is trained."""
    said = [(MARKERS, k) for k in ("instruction_part", "response_part") if draft.has((MARKERS, k))]
    if RENDERS in draft.source.traits:
        if draft.get(MARKERS) is not None:
            draft.put(
                "assistant_only_loss", True, *said, note="the rows are conversations, whose answers need no marker here"
            )
        for group in (CONFIG, TRAINER):
            if draft.has((group, "dataset_text_field")):
                draft.same("conversations are rendered by the chat template here", (group, "dataset_text_field"))
    elif ALPACA in draft.source.traits:
        draft.put(
            "format",
            {"alpaca": {"style": "alpaca"}},
            note="the script puts Alpaca's prompt around the columns instruction, input and output",
        )
        if draft.get(MARKERS) is None:
            draft.put("completion_only_loss", False, note="the script trains the whole text")
        for group in (CONFIG, TRAINER):
            if draft.has((group, "dataset_text_field")):
                draft.same("the format makes the text", (group, "dataset_text_field"))
        draft.same("the loss is on the answers alone", *said)
    else:
        trl.markers(draft)
    for name in draft.get(MARKERS, {}) or {}:
        if not draft.knows((MARKERS, name)):
            draft.same("an object of the script", (MARKERS, name))


def _arguments(draft: Draft) -> None:
    """Row length and precision, which the script gives in several places."""
    places: list[Key] = [
        (CONFIG, "max_length"),
        (CONFIG, "max_seq_length"),
        (TRAINER, "max_seq_length"),
        (MODEL, "max_seq_length"),
    ]
    said = [key for key in places if draft.has(key)]
    length = draft.get(said[0]) if said else 2048
    draft.put("max_length", length, *said, note="" if said else "Unsloth's default")
    for group in (CONFIG, PLAIN_ARGUMENTS):
        for name in ("bf16", "fp16"):
            if draft.get((group, name)) == "auto":
                draft.same("bfloat16 where the GPU has it, as here", (group, name))
    for name in ("packing", "dataset_num_proc", "dataset_text_field"):
        if draft.has((TRAINER, name)) and not draft.knows((TRAINER, name)):
            field(draft, name, draft.get((TRAINER, name)), (TRAINER, name))


def _tokens(draft: Draft) -> None:
    if draft.has((TEMPLATE, "chat_template")):
        template(draft, draft.get((TEMPLATE, "chat_template")), (TEMPLATE, "chat_template"))
    for name in draft.get(TEMPLATE, {}) or {}:
        if not draft.knows((TEMPLATE, name)):
            draft.same("roles and keys of messages are known by themselves", (TEMPLATE, name))
    for name, value in (draft.get(TOKENIZER) or {}).items():
        if name in ("pad_token", "eos_token") and isinstance(value, str):
            draft.put(name, value, (TOKENIZER, name))
        else:
            draft.same("the tokenizer comes with the model", (TOKENIZER, name))
    if draft.get((TRAINER, "peft_config")) == OURS:
        draft.same("an object of the script", (TRAINER, "peft_config"))
    for group in (python.LORA, python.BITS):
        if draft.has(group):
            draft.left("Unsloth's get_peft_model takes its place", group)
