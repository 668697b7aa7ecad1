"""Names that fields had in older versions of transformers and TRL, which scripts and recipes still carry.

Where the meaning is the same they work, with a warning that gives the name of today; where it is not, the error says
what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore.core.errors import ConflictError, OptionTypeError, RecipeError
from sftcore.util.warned import warn

RENAMED = {
    "max_seq_length": "max_length", "evaluation_strategy": "eval_strategy", "use_liger": "use_liger_kernel",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size", "no_cuda": "use_cpu", "xpu_backend": "ddp_backend",
    "torchdynamo": "torch_compile_backend", "push_to_hub_model_id": "hub_model_id", "push_to_hub_token": "hub_token",
}  # fmt: skip
"""Fields that have the same values under their name of today."""

TRANSLATED: Mapping[str, tuple[type, str, Mapping[bool, Any]]] = {
    "group_by_length": (bool, "train_sampling_strategy", {True: "group_by_length"}),
    "adafactor": (bool, "optim", {True: "adafactor"}),
    "include_inputs_for_metrics": (bool, "include_for_metrics", {True: ["inputs"]}),
}
"""Switches: their type, the field of today, and its value where they are on; off, they say nothing."""

WITHOUT_EFFECT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "save_safetensors": ((True, None), "models are always saved as safetensors"),
    "fp16_backend": (("auto", None), "there is one backend"),
    "half_precision_backend": (("auto", None), "there is one backend"),
    "use_mps_device": ((True, False), "a device is used where there is one"),
    "jit_mode_eval": ((False,), "evaluations are not traced"),
    "use_ipex": ((False,), "transformers no longer knows it"),
    "past_index": ((-1,), "no past is kept"),
    "use_legacy_prediction_loop": ((False,), "there is one loop"),
    "include_tokens_per_second": ((True, False), "tokens are always counted"),
}
"""Fields that are gone: the values that change nothing, and why."""

GONE: Mapping[str, str] = {
    "logging_dir": "Set the environment variable TENSORBOARD_LOGGING_DIR; the default is runs in output_dir.",
    "fp16_opt_level": "Drop it: fp16 is that of torch, which has no levels.",
    "dispatch_batches": "Write accelerator_config with dispatch_batches.",
    "split_batches": "Write accelerator_config with split_batches.",
    "push_to_hub_organization": "Write hub_model_id with the organization: owner/name.",
    "fsdp_min_num_params": "Write fsdp_config with min_num_params.",
    "fsdp_transformer_layer_cls_to_wrap": "Write fsdp_config with transformer_layer_cls_to_wrap.",
    "tpu_num_cores": "Drop it.",
    "tpu_metrics_debug": "Write debug with tpu_metrics_debug.",
    "mp_parameters": "Drop it.",
    "ray_scope": "Drop it.",
    "num_of_sequences": "Drop it: rows are packed from the whole data set.",
    "chars_per_token": "Drop it: rows are packed by their tokens.",
    "dataset_batch_size": "Drop it: the size of the batches that are prepared changes nothing.",
    "infinite": "Drop it, and say how long to train with max_steps.",
    "tokenizer": "It belongs to SFTTrainer, as processing_class.",
    "processing_class": "It belongs to SFTTrainer.",
    "peft_config": "It belongs to SFTTrainer; in a recipe, write adapter.",
    "formatting_func": "It belongs to SFTTrainer; in a recipe, write format.",
}
"""Fields that are gone or never were fields, and what to write instead."""

OLDER = frozenset({*RENAMED, *TRANSLATED, *WITHOUT_EFFECT, *GONE, "warmup_ratio"})


def use_current_names(settings: dict[str, Any], *, where: str) -> None:
    """Give settings that stand under an older name their current one, with a warning.

    Raises:
        ConflictError: a field stands under both names.
        RecipeError: the field is gone, and its value has a meaning that no field of today has.
    """
    for old in [name for name in settings if name in OLDER]:
        if old in RENAMED:
            _replace(settings, old, {RENAMED[old]: settings[old]}, where)
        elif old == "warmup_ratio":
            _replace(settings, old, _warmup(settings, where), where)
        elif old in TRANSLATED:
            wanted, new, values = TRANSLATED[old]
            if not isinstance(settings[old], wanted):
                raise OptionTypeError(
                    f"{old} takes true or false, got {settings[old]!r}.", where=where, fix=f"Use {new}."
                )
            _replace(settings, old, {new: values[True]} if settings[old] else {}, where, new)
        elif old in WITHOUT_EFFECT:
            _drop(settings, old, where)
        else:
            raise RecipeError(f"{old} is not a field of SFTConfig.", where=where, fix=GONE[old])


def _warmup(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`warmup_steps` below 1 is a share of all steps. Steps went before a ratio where both were given."""
    ratio = settings["warmup_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise OptionTypeError(
            f"warmup_ratio is a share of all steps, from 0 to below 1, got {ratio!r}.",
            where=where,
            fix="Write warmup_steps: a share below 1, or a number of steps.",
        )
    return {"warmup_steps": settings.get("warmup_steps") or ratio} if ratio else {}


def _replace(settings: dict[str, Any], old: str, now: Mapping[str, Any], where: str, name: str = "") -> None:
    for new, value in now.items():
        if settings.get(new, value) != value and not (old == "warmup_ratio" and not settings[new]):
            raise ConflictError(f"{old} and {new} are the same setting.", where=where, fix=f"Keep {new}.")
    value = settings.pop(old)
    new = next(iter(now), name or "warmup_steps")
    spelled = f"={now[new]!r}" if new in now and now[new] is not value else ""
    if old == "warmup_ratio":
        spelled += ", where a value below 1 is a share of all steps"
    warn(f"{where}: {old} is now {new}{spelled}.", FutureWarning)
    settings.update(now)


def _drop(settings: dict[str, Any], old: str, where: str) -> None:
    harmless, reason = WITHOUT_EFFECT[old]
    value = settings.pop(old)
    if value not in harmless:
        raise RecipeError(f"{old} is {value!r}, and {reason}.", where=where, fix=f"Drop {old}.")
    warn(f"{where}: {old} is no longer needed: {reason}.", FutureWarning)
