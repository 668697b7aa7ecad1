"""What some built-ins are tried with: a model in one file of llama.cpp's, and rows of shapes of their own."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def gguf_file(model: Any, tokenizer: Any, folder: Path) -> Path:
    """The model as one file, as `LoaderTests.writer` has it: llama.cpp turns halves of queries and keys into pairs."""
    from tests.plugins.loaders.test_gguf import write_gguf

    paired, config, path = copy.deepcopy(model), model.config, folder / "tiny.gguf"
    for layer in paired.model.layers:
        attention = layer.self_attn
        for module, heads in (
            (attention.q_proj, config.num_attention_heads),
            (attention.k_proj, config.num_key_value_heads),
        ):
            own = module.weight.data
            halves = own.reshape(heads, 2, own.shape[0] // heads // 2, own.shape[1])
            module.weight.data = halves.transpose(1, 2).reshape(own.shape).contiguous()
    write_gguf(path, paired, tokenizer)
    return path


def rows_with_images() -> list[dict[str, Any]]:
    """Two conversations about a red square, which stands in the first turn."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    image = {"bytes": file.getvalue(), "path": None}
    return [
        {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "hello world"}],
            "images": [image],
        }
        for asked in ("say it", "What is it?")
    ]


def conversations() -> list[dict[str, Any]]:
    """Texts in turn, the user's first."""
    return [{"conversation": ["say it", "hello world"]}, {"conversation": ["say it", "hello", "What?", "world"]}]


def trees() -> list[dict[str, Any]]:
    """Trees of messages, of which one reply has a better rank."""

    def message(role: str, text: str, rank: int | None = None, *replies: Any) -> dict[str, Any]:
        return {"role": role, "text": text, "rank": rank, "deleted": False, "replies": list(replies)}

    replies = message("assistant", "world", 1), message("assistant", "hello world", 0)
    return [{"message_tree_id": "1", "prompt": message("prompter", "say it", None, *replies)}]


def preferences() -> list[dict[str, Any]]:
    """A better and a worse answer."""
    return [{"prompt": "say it", "chosen": "hello world", "rejected": "world"}]


def segments() -> list[dict[str, Any]]:
    """Texts that count and texts that do not."""
    return [{"segments": [{"label": False, "text": "say it:"}, {"label": True, "text": " hello world"}]}]


def calls() -> list[dict[str, Any]]:
    """A question, the tools that there are, and the call that answers it."""
    parameters = {"word": {"type": "str", "description": "what is said"}}
    tools = [{"name": "say", "description": "says a word", "parameters": parameters}]
    answers = [{"name": "say", "arguments": {"word": "hello world"}}]
    return [{"query": "say it", "tools": json.dumps(tools), "answers": json.dumps(answers)}]


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "dialogue": conversations,
    "oasst": trees,
    "preference": preferences,
    "segments": segments,
    "vlm": rows_with_images,
    "xlam": calls,
}
"""Rows of the formats that detect none of the common shapes."""
