"""What some built-ins are tried with: a model in one file of llama.cpp's, and rows with an image."""

from __future__ import annotations

import copy
import io
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
