"""Supervised fine-tuning of language models on a minimal core of pluggy hooks.

Names are imported on first use, so that `import sftcore` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftcore.chat import clone_chat_template
    from sftcore.chat_template_utils import get_training_chat_template, supports_tool_calling
    from sftcore.collator import DataCollatorForLanguageModeling
    from sftcore.config import ModelConfig, SFTConfig, get_peft_config, get_quantization_config
    from sftcore.data_utils import (
        apply_chat_template,
        is_conversational,
        is_conversational_from_value,
        maybe_apply_chat_template,
        maybe_convert_to_chatml,
        pack_dataset,
        prepare_multimodal_messages,
    )
    from sftcore.errors import (
        CheckError,
        ConflictError,
        DataError,
        ModelError,
        PluginError,
        RecipeError,
        RowError,
        SFTCoreError,
    )
    from sftcore.hookspecs import hookimpl
    from sftcore.plugin_class import plugin
    from sftcore.precision import get_kbit_device_map
    from sftcore.run.progress import RichProgressCallback
    from sftcore.script_arguments import (
        DatasetConfig,
        DatasetMixtureConfig,
        ScriptArguments,
        TrlParser,
        get_dataset,
        init_zero_verbose,
    )
    from sftcore.token_loss import TokenLoss
    from sftcore.trainer import SFTTrainer
    from sftcore.types import (
        AttentionBackend,
        Collator,
        Example,
        Formatter,
        LoadedModel,
        LoadOptions,
        LossFunction,
        LossOutput,
        Message,
        ModelRequest,
        Part,
        PatchReport,
        Plan,
        Probe,
        Problem,
        Removable,
        Row,
        Selection,
        Span,
        TokenizedRow,
    )
    from sftcore.vision_collator import DataCollatorForVisionLanguageModeling

__version__ = "0.1.0"

_WHERE = {
    "chat": ("clone_chat_template",),
    "chat_template_utils": ("get_training_chat_template", "supports_tool_calling"),
    "collator": ("DataCollatorForLanguageModeling",),
    "config": ("ModelConfig", "SFTConfig", "get_peft_config", "get_quantization_config"),
    "data_utils": (
        "apply_chat_template",
        "is_conversational",
        "is_conversational_from_value",
        "maybe_apply_chat_template",
        "maybe_convert_to_chatml",
        "pack_dataset",
        "prepare_multimodal_messages",
    ),
    "errors": (
        "CheckError",
        "ConflictError",
        "DataError",
        "ModelError",
        "PluginError",
        "RecipeError",
        "RowError",
        "SFTCoreError",
    ),
    "hookspecs": ("hookimpl",),
    "plugin_class": ("plugin",),
    "precision": ("get_kbit_device_map",),
    "run.progress": ("RichProgressCallback",),
    "script_arguments": (
        "DatasetConfig",
        "DatasetMixtureConfig",
        "ScriptArguments",
        "TrlParser",
        "get_dataset",
        "init_zero_verbose",
    ),
    "token_loss": ("TokenLoss",),
    "trainer": ("SFTTrainer",),
    "vision_collator": ("DataCollatorForVisionLanguageModeling",),
    "types": (
        "AttentionBackend",
        "Collator",
        "Example",
        "Formatter",
        "LoadOptions",
        "LoadedModel",
        "LossFunction",
        "LossOutput",
        "Message",
        "ModelRequest",
        "Part",
        "PatchReport",
        "Plan",
        "Probe",
        "Problem",
        "Removable",
        "Row",
        "Selection",
        "Span",
        "TokenizedRow",
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [  # noqa: RUF022 - sorted by module, as above
    "__version__",
    "clone_chat_template", "get_training_chat_template", "supports_tool_calling", "DataCollatorForLanguageModeling",
    "ModelConfig", "SFTConfig", "get_peft_config", "get_quantization_config",
    "apply_chat_template", "is_conversational", "is_conversational_from_value", "maybe_apply_chat_template",
    "maybe_convert_to_chatml", "pack_dataset", "prepare_multimodal_messages",
    "CheckError", "ConflictError", "DataError", "ModelError", "PluginError", "RecipeError", "RowError", "SFTCoreError",
    "hookimpl", "plugin", "get_kbit_device_map", "RichProgressCallback",
    "DatasetConfig", "DatasetMixtureConfig", "ScriptArguments", "TrlParser", "get_dataset", "init_zero_verbose",
    "TokenLoss", "SFTTrainer", "DataCollatorForVisionLanguageModeling",
    "AttentionBackend", "Collator", "Example", "Formatter", "LoadOptions", "LoadedModel", "LossFunction", "LossOutput",
    "Message", "ModelRequest", "Part", "PatchReport", "Plan", "Probe", "Problem", "Removable", "Row", "Selection",
    "Span", "TokenizedRow",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
