"""Supervised fine-tuning of language models on a minimal core of pluggy hooks.

Public names are imported on first use, so `import sftcore` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from sftcore.util.lazy import lazy_names

if TYPE_CHECKING:
    from sftcore.compat.chat_template_utils import get_training_chat_template, supports_tool_calling
    from sftcore.compat.collator import DataCollatorForLanguageModeling
    from sftcore.compat.data_utils import (
        apply_chat_template,
        is_conversational,
        is_conversational_from_value,
        maybe_apply_chat_template,
        maybe_convert_to_chatml,
        pack_dataset,
        prepare_multimodal_messages,
    )
    from sftcore.compat.loaded import DatasetConfig
    from sftcore.compat.script_arguments import (
        DatasetMixtureConfig,
        ScriptArguments,
        TrlParser,
        get_dataset,
        init_zero_verbose,
    )
    from sftcore.compat.vision_collator import DataCollatorForVisionLanguageModeling
    from sftcore.config.model_config import ModelConfig, get_peft_config, get_quantization_config
    from sftcore.config.sft_config import SFTConfig
    from sftcore.core.errors import (
        CheckError,
        ConflictError,
        DataError,
        ModelError,
        PluginError,
        RecipeError,
        RowError,
        SFTCoreError,
    )
    from sftcore.core.hookspecs import hookimpl
    from sftcore.core.plugin_class import plugin
    from sftcore.core.types import (
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
    from sftcore.data.mixing.mixture import DataSource, Mixture
    from sftcore.losses.token_loss import TokenLoss
    from sftcore.model.embeddings import clone_chat_template
    from sftcore.model.precision import get_kbit_device_map
    from sftcore.train.reporting.progress import RichProgressCallback
    from sftcore.train.trainer import SFTTrainer

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - grouped by module, as above
    "__version__",
    "clone_chat_template", "get_training_chat_template", "supports_tool_calling", "DataCollatorForLanguageModeling",
    "ModelConfig", "SFTConfig", "get_peft_config", "get_quantization_config",
    "apply_chat_template", "is_conversational", "is_conversational_from_value", "maybe_apply_chat_template",
    "maybe_convert_to_chatml", "pack_dataset", "prepare_multimodal_messages",
    "CheckError", "ConflictError", "DataError", "ModelError", "PluginError", "RecipeError", "RowError", "SFTCoreError",
    "hookimpl", "plugin", "get_kbit_device_map", "RichProgressCallback",
    "DatasetConfig", "DatasetMixtureConfig", "ScriptArguments", "TrlParser", "get_dataset", "init_zero_verbose",
    "DataSource", "Mixture", "TokenLoss", "SFTTrainer", "DataCollatorForVisionLanguageModeling",
    "AttentionBackend", "Collator", "Example", "Formatter", "LoadOptions", "LoadedModel", "LossFunction", "LossOutput",
    "Message", "ModelRequest", "Part", "PatchReport", "Plan", "Probe", "Problem", "Removable", "Row", "Selection",
    "Span", "TokenizedRow",
]  # fmt: skip

_GONE = {
    "DataCollatorForCompletionOnlyLM": "Give rows with the columns prompt and completion, or conversations with "
    "assistant_only_loss=True: no response_template is needed.",
    "ConstantLengthDataset": 'Use SFTConfig(packing=True); packing_strategy="wrapped" cuts rows as it did.',
    "setup_chat_format": 'Use clone_chat_template(model, tokenizer, "a tokenizer with ChatML"), or '
    "SFTConfig(chat_template_path=…).",
}
"""Names of TRL before 1.0, and what to write today."""

__getattr__, __dir__ = lazy_names(__name__, _GONE)


def _alias(name: str, module: str) -> None:
    """Make `sftcore.<name>` another name of `sftcore.<module>`, which is loaded when it is first used."""
    spec = importlib.util.find_spec(f"{__name__}.{module}")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    made = importlib.util.module_from_spec(spec)
    sys.modules[f"{__name__}.{name}"] = sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    globals()[name] = made


# Scripts written for TRL import helpers from trl.data_utils and trl.chat_template_utils
_alias("data_utils", "compat.data_utils")
_alias("chat_template_utils", "compat.chat_template_utils")
