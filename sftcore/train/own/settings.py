"""What is set in a trainer's `args` once it is made: checked as by a constructor, or refused where it is too late."""

from __future__ import annotations

from enum import Enum
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig

from sftcore.config.fields import config_fields, wrong_fields
from sftcore.config.settings.later import Made, snapshot
from sftcore.config.settings.values import as_ours, plain_value
from sftcore.core.errors import ConflictError, raise_all

_OF_THE_MODEL = (
    "model_init_kwargs", "trust_remote_code", "allow_pickle", "adapter_dtype", "master_weights", "bf16", "fp16",
    "use_liger_kernel", "loss_type", "neftune_noise_alpha", "plugins", "block", "freeze_vision_tower",
)  # fmt: skip
_OF_THE_TOKENIZER = (
    "chat_template", "chat_template_path", "eos_token", "bos_token", "unk_token", "pad_token", "new_tokens",
)  # fmt: skip
_OF_THE_DATA = (
    "dataset_text_field", "rows", "dataset_kwargs", "image_folder", "system_prompt", "max_length", "truncation_mode",
    "long_rows", "shuffle_dataset", "packing", "packing_strategy", "padding_free", "pad_to_multiple_of", "eval_packing",
    "completion_only_loss", "assistant_only_loss", "response_marker", "instruction_marker", "mask_style",
    "per_device_train_batch_size",
)  # fmt: skip
_TAKEN = frozenset((*_OF_THE_MODEL, *_OF_THE_TOKENIZER, *_OF_THE_DATA))
"""Fields that the constructor of a trainer has read for good: another value would change nothing."""


def as_made(args: Any) -> Made:
    """The settings as the trainer's constructor leaves them."""
    return Made.of(snapshot(args, config_fields()), args)


def take_changes(args: Any, made: Made) -> None:
    """Check what was set since the trainer was made, and hold it as the configuration does.

    Raises:
        ConflictError: it was read already, so that the run would go on without it.
        RecipeError, SettingsError: what is wrong with a value.
    """
    changed = made.changed(args)
    if late := [name for name in changed if name in _TAKEN]:
        raise ConflictError(
            f"{', '.join(late)} was set after the trainer was made, which has read it: nothing would change.",
            where="SFTTrainer.args",
            fix="Set it in SFTConfig, before the trainer is made.",
        )
    known = config_fields()
    values = {name: plain_value(as_ours(name, getattr(args, name)), known[name]) for name in changed}
    values = {name: value for name, value in values.items() if not isinstance(value, AcceleratorConfig)}
    raise_all(wrong_fields(values, where="SFTTrainer.args"))
    for name, value in values.items():
        kind = type(made.fields[name])
        setattr(args, name, kind(value) if issubclass(kind, Enum) else value)
