"""What plugins for images are tried with: a processor, a tiny vision-language model and rows with a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftcore.testing.tiny import make_tokenizer

FAMILY = "llava"


def processor_for(reads_images: bool) -> Any:
    """A tokenizer, or the processor of a vision-language model."""
    if not reads_images:
        return make_tokenizer()
    from sftcore.testing.tiny_vlm import make_processor

    return make_processor(FAMILY)


def model_with_rows(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """A saved model, and conversations of different lengths about a red square, of which one has no picture."""
    from PIL import Image

    from sftcore.testing.tiny_vlm import save

    model, picture = save(FAMILY, folder / "model"), folder / "square.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    rows = []
    for number in range(8):
        turns = [("user", "What is it?"), ("assistant", "hello world" * (1 + number % 3))]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"messages": messages, "images": [str(picture)] if number else []})
    return str(model), rows
