"""Chat templates by the names that other tools give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.read.source import Key

TEMPLATES: Mapping[str, str] = {
    "chatml": "chatml",
    "llama2": "llama2",
    "llama-2": "llama2",
    "llama2_zh": "llama2",
    "llama3": "llama3",
    "llama-3": "llama3",
    "llama-3.1": "llama3",
    "llama3_2": "llama3",
    "llama-3.2": "llama3",
    "llama-3.3": "llama3",
    "llama31": "llama3",
    "qwen": "qwen",
    "qwen2_5": "qwen",
    "qwen_25": "qwen",
    "qwen-2.5": "qwen",
    "qwen2.5": "qwen",
    "qwen25": "qwen",
    "qwen3": "qwen3",
    "qwen-3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma-2": "gemma",
    "gemma_chatml": "chatml",
    "mistral": "mistral",
    "mistral_v1": "mistral",
    "mistral_v2v3": "mistral",
    "phi": "phi3",
    "phi3": "phi3",
    "phi-3": "phi3",
    "phi_3": "phi3",
    "phi_35": "phi3",
    "phi-3.5": "phi3",
    "phi4": "phi4",
    "phi-4": "phi4",
    "phi_4": "phi4",
    "zephyr": "zephyr",
    "alpaca": "alpaca",
    "vicuna": "vicuna",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek",
}


def template(draft: Draft, name: Any, *of: str | Key) -> None:
    """A chat template by its name, or as text, where the name is known; else the model's own is used."""
    text = str(name)
    if "{{" in text or "{%" in text:
        draft.put("chat_template", text, *of)
    elif (ours := TEMPLATES.get(text.lower())) is not None:
        draft.put("chat_template", ours, *of)
    else:
        draft.left(
            f"there is no template {text!r} here, and the model's own is used: compare with sftcore preview", *of
        )
