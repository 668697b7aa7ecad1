"""What can be known of a run before torch is imported or a weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftcore.errors import RecipeError, nearest
from sftcore.types import PACKING_STRATEGIES, ModelRequest, Plan, Probe, Problem

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.safetensors.index.json")


def probe_run(model: ModelRequest, columns: Sequence[str] | None = None) -> Probe:
    """Read the model's configuration where it is a local folder.

    Raises:
        RecipeError: its config.json is no JSON.
    """
    config = None
    if model.name and (path := Path(model.name).expanduser() / "config.json").is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"this is no JSON: {error}.", where=str(path)) from None
    return Probe(config, None if columns is None else tuple(columns), ready_model=model.name is None)


def core_problems(plan: Plan, *, needs_tokenizer: bool = True) -> list[Problem]:
    """What the core itself finds wrong: the model's files, and settings that contradict each other."""
    return [*_model_problems(plan.model, needs_tokenizer), *_setting_problems(plan.settings)]


def _model_problems(model: ModelRequest, needs_tokenizer: bool) -> Iterator[Problem]:
    if model.name is None:
        return
    path, where = Path(model.name).expanduser(), f"model {model.name}"
    if path.is_file():
        return
    if not path.exists():
        if model.name.startswith((".", "/", "~")) or model.name.endswith(".gguf") or model.name.count("/") > 1:
            yield Problem("no such folder or file.", where, "Give a hub id (owner/name) or an existing folder.")
        return
    if any(path.glob("*.gguf")) and not (path / "config.json").is_file():
        found = sorted(inner.name for inner in path.glob("*.gguf"))
        yield Problem("the folder holds GGUF files.", where, f"Name the file itself: model: {path / found[0]}")
        return
    if not (path / "config.json").is_file():
        yield Problem("the folder has no config.json.", where, "Give the folder that save_pretrained wrote.")
        return
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        yield Problem("the folder has no weights.", where, "Give the folder that model.save_pretrained wrote.")
    if needs_tokenizer and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        yield Problem(
            "the folder has no tokenizer.",
            where,
            "Save it there (tokenizer.save_pretrained), or pass processing_class.",
        )


def _setting_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    def given(name: str) -> Any:
        return settings.get(name)

    if given("fp16") and given("bf16"):
        yield Problem("fp16 and bf16 contradict each other.", fix="Keep one of the two.")
    max_length = given("max_length")
    if max_length is not None and max_length < 2:
        yield Problem(
            f"max_length is {max_length}: nothing could be predicted.", fix="Set it to at least 2, or to null."
        )
    if given("truncation_mode") not in (None, "keep_start", "keep_end"):
        yield Problem(f'truncation_mode "{given("truncation_mode")}" is not known.', fix="Use keep_start or keep_end.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if given(name) is not None and given(name) < 1:
            yield Problem(f"{name} is {given(name)}.", fix="It is at least 1.")
    if (given("packing") or given("eval_packing")) and max_length is None and "max_length" in settings:
        yield Problem(
            "packing needs the length of a block, and max_length is null.", fix="Set max_length to a block's tokens."
        )
    strategy = given("packing_strategy")
    if strategy not in (None, *PACKING_STRATEGIES):
        yield Problem(
            f'packing_strategy "{strategy}" is not known.{nearest(str(strategy), PACKING_STRATEGIES)}',
            fix=f"Use one of: {', '.join(PACKING_STRATEGIES)}.",
        )
    kwargs = given("gradient_checkpointing_kwargs") or given("activation_checkpointing_kwargs")
    if isinstance(kwargs, Mapping) and kwargs.get("selective"):
        yield Problem('gradient_checkpointing_kwargs: "selective" is not supported by this version.', fix="Remove it.")
    for name in _NOT_YET:
        if given(name):
            yield Problem(f"{name} is not supported by this version.", fix=f"Remove {name}.")


_NOT_YET = ("activation_offloading",)
"""Fields of TRL whose plugins are not part of this version: asked for, they are refused, never ignored."""
