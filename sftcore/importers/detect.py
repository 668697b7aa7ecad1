"""Tells which tool a configuration belongs to, by the keys that only that tool has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sftcore.core.errors import SFTCoreError
from sftcore.importers.read.source import text_of
from sftcore.importers.read.yaml11 import read_yaml

_KEYS: Mapping[str, tuple[str, ...]] = {
    "axolotl": (
        "base_model",
        "sequence_len",
        "micro_batch_size",
        "lora_target_linear",
        "pad_to_sequence_len",
        "sample_packing",
        "num_epochs",
        "dataset_prepared_path",
    ),
    "llamafactory": (
        "finetuning_type",
        "cutoff_len",
        "stage",
        "lora_rank",
        "lora_target",
        "neat_packing",
        "dataset_dir",
        "val_size",
    ),
    "swift": (
        "train_type",
        "tuner_type",
        "sft_type",
        "attn_impl",
        "split_dataset_ratio",
        "truncation_strategy",
        "torch_dtype",
        "lazy_tokenize",
    ),
    "trl": (
        "dataset_name",
        "use_peft",
        "dataset_train_split",
        "lora_target_modules",
        "max_seq_length",
        "attn_implementation",
        "model_name_or_path",
    ),
}
_COMMANDS: Mapping[str, str] = {
    "swift": r"\bswift\s+(?:sft|pt)\b|swift/cli/sft", "trl": r"\btrl\s+sft\b|\bsft\.py\b", "axolotl": r"\baxolotl\b",
    "llamafactory": r"llamafactory-cli|\btrain_bash\.py|llamafactory", "torchtune": r"\btune\s+run\b",
}  # fmt: skip
_IMPORTS: Mapping[str, str] = {"unsloth": r"^\s*(?:from|import)\s+unsloth", "trl": r"^\s*from\s+trl\s+import\b.*\bSFT"}


def detect(file: Path) -> str:
    """The tool whose configuration a file is, as `sftcore import` names it; empty where it is none's.

    A single key that a recipe of ours may have wrong is not enough.
    """
    kind = file.suffix.lower()
    try:
        if kind in (".yaml", ".yml", ".json"):
            return _of_keys(file)
        text = text_of(file)
    except SFTCoreError:
        return ""
    patterns = _IMPORTS if kind == ".py" else _COMMANDS
    return next((name for name, pattern in patterns.items() if re.search(pattern, text, re.MULTILINE)), "")


def _of_keys(file: Path) -> str:
    values = read_yaml(file).values
    names = {str(key).replace("-", "_") for key in values}
    if any(isinstance(one, Mapping) and "_component_" in one for one in values.values()):
        return "torchtune"
    counts = {name: len(names & set(keys)) for name, keys in _KEYS.items()}
    best = max(counts, key=lambda name: counts[name])
    told = counts[best] >= 2 and not {"model", "data"} <= names
    return best if told and list(counts.values()).count(counts[best]) == 1 else ""
