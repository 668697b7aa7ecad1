"""GPTQ (arXiv:2210.17323) by llmcompressor, on a CPU or a GPU, saved as compressed-tensors.

Of the two maintained libraries, this is the one whose result plain transformers loads with one small pure-Python
package, and which installs without compiling anything (docs/how-to/after-training.md compares them).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftcore.core.types import TokenizedRow
    from sftcore.tools.quantization.outcome import Options

LIBRARIES = ("llmcompressor", "compressed-tensors")
_EXPECTED = ("No accelerator available", "Disabling tokenizer parallelism")
"""Warnings of llmcompressor 0.14 that do not concern the result."""


def quantise(model: Any, rows: Sequence[TokenizedRow], options: Options, group_size: int) -> tuple[str, ...]:
    """Quantise all linear layers except the head in place, each on the outputs of the layers quantised before it.

    Weights are symmetric, in the range with the least squared error. Zero points would be more exact, but
    compressed-tensors 0.20 does not pack them as transformers 5.24 expects, which then refuses the weights.

    Returns the library's warnings, such as layers whose statistics it could not invert.
    """
    # llmcompressor reads this at import; otherwise it logs every layer to stdout
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    head = model.get_output_embeddings()
    weights = {
        "num_bits": options.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "observer": "memoryless_mse",
    }
    recipe = GPTQModifier(
        config_groups={"linear": {"targets": ["Linear"], "weights": weights}},
        ignore=[name for name, module in model.named_modules() if module is head],
    )
    with _warnings() as found:
        oneshot(model=model, dataset=_batches(rows), recipe=recipe, pipeline="sequential")
    return tuple(dict.fromkeys(found))


def _batches(rows: Sequence[TokenizedRow]) -> Any:
    """Batches of one row each, since padding would enter the statistics of the layers' inputs."""
    import torch
    from torch.utils.data import DataLoader

    ids = [torch.tensor([list(row.input_ids)]) for row in rows]
    # DataLoader's annotation asks for a Dataset, but a list works as well
    batches: Any = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    return DataLoader(batches, batch_size=None)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect llmcompressor's warnings, and suppress torch's messages about tracing."""
    from loguru import logger

    found: list[str] = []

    def keep(message: Any) -> None:
        text = message.record["message"]
        if not text.startswith(_EXPECTED):
            found.append(text)

    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    sink = logger.add(keep, level="WARNING", filter=lambda record: record["level"].name != "METRIC")
    try:
        yield found
    finally:
        logger.remove(sink)
